"""Logging in: the name and the secret of an API key for a token that stands for the key for a while.

Context: clients that log in want a token of limited life, which must end with its key. Decision: the token names the
key, whose row is read at every request, so that scopes, revocation and expiry of the key count at once; it is signed
with 32 random bytes of this installation, made at the first login and kept in its data folder. Consequences: tokens
survive a restart; who has read the database alone, with the hashes of the keys, can sign none; removing the file ends
every token; servers that share a database, but not the folder, do not know each other's tokens.
"""

from __future__ import annotations

import hmac
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from app.refusals import Unauthorized
from app.throttle import Throttle
from app.tokens import claims_of, signed
from explainers.errors import MissingCapability
from storage import api_keys
from storage.database import Database

FILE = "login-secret"
SECRET_BYTES = 32
LIFE_SECONDS = 2 * 60 * 60
"""The vendor's client renews its token five minutes before the end."""


async def log_in(
    database: Database, folder: Path, throttle: Throttle, address: str, login: str, password: str
) -> tuple[Any, str]:
    """The row of the key with this name and secret, and a token.

    Raises `Unauthorized`, the same for either mistake, and `TooManyFailures` where an address tries too often.
    """
    throttle.begin(address, login)
    try:
        found = await checked(database, folder, login, password)
    except Unauthorized:
        raise
    except BaseException:  # nobody knows whether it was right
        throttle.forgive(address, login)
        raise
    throttle.forgive(address, login)
    return found


async def checked(database: Database, folder: Path, login: str, password: str) -> tuple[Any, str]:
    row = await api_keys.find_by_secret(database, password)
    name = "" if row is None else row.name
    named = hmac.compare_digest(name.encode(errors="surrogatepass"), login.encode(errors="surrogatepass"))
    if row is None or not named:
        raise Unauthorized("the login or the password is wrong: they are the name and the secret of an API key")
    now = int(time.time())
    claims = {"sub": str(row.id), "tenant": row.tenant_id, "iat": now, "exp": now + LIFE_SECONDS}
    return row, signed(claims, signing_secret(folder))


async def token_owner(database: Database, folder: Path, token: str) -> Any | None:
    """The row of the key that a token stands for; None for a bad or expired token, or a key that is usable no more."""
    secret = kept_secret(folder)
    claims = None if secret is None else claims_of(token, secret, time.time())
    return None if claims is None else await api_keys.find_by_id(database, claims["tenant"], UUID(claims["sub"]))


def signing_secret(folder: Path) -> bytes:
    """The secret of this installation, made when there is none; raises MissingCapability where it cannot be kept."""
    with suppress(OSError):
        if not (folder / FILE).exists():
            make_secret(folder)
    secret = kept_secret(folder)
    if secret is None:
        raise MissingCapability(f"logins need a file {FILE} in the data folder, which cannot be written: use API keys")
    return secret


def make_secret(folder: Path) -> None:
    """Whole or not at all; of two processes that make it at once one wins."""
    folder.mkdir(0o711, parents=True, exist_ok=True)
    draft = folder / f"{FILE}.{uuid4().hex}"
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(draft, folder / FILE)
    finally:
        draft.unlink(missing_ok=True)


def kept_secret(folder: Path) -> bytes | None:
    """None before the first login. A file of another length is none of ours: a short one could be guessed."""
    try:
        secret = (folder / FILE).read_bytes()
    except OSError:
        return None
    return secret if len(secret) == SECRET_BYTES else None
