"""Signed tokens: JSON Web Tokens (RFC 7519) with HMAC-SHA256, and no others.

One header is written, and only that one is read, to the letter: no token chooses how it is checked.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json, to_json

HEADER = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"
"""`{"alg":"HS256","typ":"JWT"}`."""


def signed(claims: Mapping[str, Any], secret: bytes) -> str:
    text = f"{HEADER}.{encoded(to_json(claims))}"
    return f"{text}.{signature(text, secret)}"


def is_token(text: str) -> bool:
    """Whether it claims to be one of ours; API keys do not start like this."""
    return text.startswith(f"{HEADER}.")


def claims_of(token: str, secret: bytes, now: float) -> dict[str, Any] | None:
    """What was signed; None when it was not signed with this secret, or has expired. `now`: seconds since 1970."""
    text, _, given = token.rpartition(".")
    if not is_token(text) or not hmac.compare_digest(signature(text, secret).encode(), given.encode()):
        return None
    claims: dict[str, Any] = from_json(decoded(text.removeprefix(f"{HEADER}.")))
    return claims if claims["exp"] > now else None


def signature(text: str, secret: bytes) -> str:
    return encoded(hmac.digest(secret, text.encode(), "sha256"))


def encoded(content: bytes) -> str:
    """Base64 as tokens have it: of the URL alphabet, without padding."""
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
