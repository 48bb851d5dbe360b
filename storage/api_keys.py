"""API keys. A secret is shown once; stored is its sha256, which suffices for secrets of 256 random bits."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import and_, bindparam, delete, exists, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from storage.database import Database, compiled
from storage.errors import AlreadyExists, InvalidValue, NotFound
from storage.ids import time_ordered
from storage.tables import ApiKey, EndedSession

SCOPES = ("read", "explain", "ingest", "admin")
LIMITS = ("request_seconds", "requests_per_minute", "seconds_per_minute", "concurrency")
"""What a key may be limited in, by the names of its columns: null leaves it to the server, 0 is no limit."""
MIN_SECRET_LENGTH = 16
IN_USE = and_(ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now()))
USABLE = compiled(select(ApiKey).where(ApiKey.key_hash == bindparam("key_hash"), IN_USE))
USABLE_BY_ID = compiled(select(ApiKey).where(ApiKey.id == bindparam("id"), IN_USE))
NOT_ENDED = ~exists().where(EndedSession.id == bindparam("session"))
USABLE_IN_SESSION = compiled(select(ApiKey).where(ApiKey.id == bindparam("id"), IN_USE, NOT_ENDED))


async def create(
    session: AsyncSession,
    *,
    tenant: str,
    name: str,
    scopes: Collection[str],
    expires_at: datetime | None = None,
    secret: str | None = None,
    limits: Mapping[str, float | None] | None = None,
) -> tuple[ApiKey, str]:
    """A new key with its secret, or with the given one (at least 16 characters); `limits` by the names in LIMITS.

    Raises InvalidValue for an unknown scope or limit, a time without zone or a short secret, AlreadyExists for a secret
    in use.
    """
    _check(scopes, expires_at)
    _check_limits(limits or {})
    secret = f"whence_{secrets.token_urlsafe(32)}" if secret is None else secret
    if len(secret) < MIN_SECRET_LENGTH:
        raise InvalidValue(f"an API key has at least {MIN_SECRET_LENGTH} characters")
    values = {
        "tenant_id": tenant,
        "id": time_ordered(),
        "name": name,
        "key_hash": digest(secret),
        "scopes": [scope for scope in SCOPES if scope in scopes],
        "expires_at": expires_at,
        **(limits or {}),
    }
    key = await session.scalar(insert(ApiKey).values(values).on_conflict_do_nothing().returning(ApiKey))
    if key is None:
        raise AlreadyExists("that API key is already in use")
    return key, secret


def _check(scopes: Collection[str], expires_at: datetime | None) -> None:
    unknown = set(scopes) - set(SCOPES)
    if unknown or not scopes:
        raise InvalidValue(f"the scopes of an API key are one or more of {', '.join(SCOPES)}")
    if expires_at is not None and expires_at.tzinfo is None:
        raise InvalidValue("the time at which an API key expires needs a time zone")


def _check_limits(limits: Mapping[str, float | None]) -> None:
    for name, limit in limits.items():
        if name not in LIMITS:
            raise InvalidValue(f"the limits of an API key are {', '.join(LIMITS)}")
        if limit is not None and not 0 <= limit < 2**31:
            raise InvalidValue(f"{name} must be 0 (no limit) or more, and below {2**31}")


async def change_limits(session: AsyncSession, id: UUID, limits: Mapping[str, float | None]) -> ApiKey:
    """The key with other limits, from its next request on; those not named stay. Raises InvalidValue, NotFound."""
    _check_limits(limits)
    values = {"id": ApiKey.id, **limits}
    statement = update(ApiKey).where(ApiKey.id == id).values(**values).returning(ApiKey)
    key: ApiKey | None = await session.scalar(statement)
    if key is None:
        raise NotFound("no such API key")
    return key


def digest(secret: str) -> bytes:
    """What is stored of a secret."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).digest()


async def find_by_secret(database: Database, secret: str) -> Any | None:
    """The row of the key, of whatever tenant; None when unknown, revoked or expired."""
    key_hash = digest(secret)
    return await database.ask(USABLE, {"key_hash": key_hash}, key_hash=key_hash)


async def find_by_id(database: Database, tenant: str, id: UUID) -> Any | None:
    """The row of a key of that tenant; None when unknown, revoked or expired."""
    return await database.ask(USABLE_BY_ID, {"id": id}, tenant=tenant)


async def find_in_session(database: Database, tenant: str, id: UUID, session: UUID) -> Any | None:
    """The same for a sign-in with that key; None also when it was ended."""
    return await database.ask(USABLE_IN_SESSION, {"id": id, "session": session}, tenant=tenant)


async def end_session(session: AsyncSession, id: UUID, until: datetime) -> None:
    """Ends a sign-in for good, and forgets those that have expired since they were ended."""
    await session.execute(delete(EndedSession).where(EndedSession.until < func.now()))
    await session.execute(insert(EndedSession).values(id=id, until=until).on_conflict_do_nothing())


async def list_all(session: AsyncSession) -> list[ApiKey]:
    """The tenant's keys, oldest first, with the revoked and expired ones."""
    return list(await session.scalars(select(ApiKey).order_by(ApiKey.created_at, ApiKey.id)))


async def revoke(session: AsyncSession, id: UUID) -> None:
    """Ends a key's use at once; a second time changes nothing. Raises NotFound."""
    now = func.coalesce(ApiKey.revoked_at, func.now())
    if await session.scalar(update(ApiKey).where(ApiKey.id == id).values(revoked_at=now).returning(ApiKey.id)) is None:
        raise NotFound("no such API key")
