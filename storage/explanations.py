"""Finished explanations: added once, read by id, by request, or page by page."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, bindparam, insert, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from storage.errors import InvalidCursor, InvalidValue, NotFound
from storage.ids import time_ordered
from storage.tables import Explanation

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MAX_PAGE = 500
NEWEST_FIRST = (Explanation.created_at.desc(), Explanation.id.desc())
# Built once: it runs for every request.
SAME_REQUEST = (
    select(Explanation).where(Explanation.request_key == bindparam("request_key")).order_by(*NEWEST_FIRST).limit(1)
)
INSERT = insert(Explanation).returning(Explanation.tenant_id, Explanation.created_at)
COLUMNS = ("id", "kind", "model", "model_digest", "request_key", "seconds", "forwards", "created_at")


@dataclass(frozen=True, slots=True)
class Summary:
    """An explanation without its request and attribution, which can be large."""

    id: UUID
    kind: str
    model: str
    model_digest: str
    request_key: bytes
    seconds: float
    forwards: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Page:
    """`next_cursor` asks for the following page; None on the last one."""

    rows: tuple[Summary, ...]
    next_cursor: str | None


new_id = time_ordered


async def add(
    session: AsyncSession,
    *,
    id: UUID,
    kind: str,
    model: str,
    model_digest: str,
    request_key: bytes,
    request: dict[str, Any],
    attribution: dict[str, Any],
    seconds: float,
    forwards: int,
) -> Explanation:
    """Stores an explanation. Raises InvalidValue for what JSON cannot carry."""
    fields = {
        "id": id,
        "kind": kind,
        "model": model,
        "model_digest": model_digest,
        "request_key": request_key,
        "request": request,
        "attribution": attribution,
        "seconds": seconds,
        "forwards": forwards,
    }
    # Past the session's bookkeeping, which costs more than the statement.
    connection = await session.connection()
    given = (await connection.execute(INSERT, fields)).one()
    return Explanation(**fields, tenant_id=given.tenant_id, created_at=given.created_at)


async def get(session: AsyncSession, id: UUID) -> Explanation:
    """The tenant's explanation with that id. Raises NotFound."""
    row = await session.scalar(select(Explanation).where(Explanation.id == id))
    if row is None:
        raise NotFound("no such explanation")
    return row


async def find(session: AsyncSession, request_key: bytes) -> Explanation | None:
    """The newest explanation of the same request to the same model."""
    row: Explanation | None = await session.scalar(SAME_REQUEST, {"request_key": request_key})
    return row


async def page(
    session: AsyncSession,
    *,
    model: str | None = None,
    kind: str | None = None,
    since: datetime | None = None,
    cursor: str | None = None,
    limit: int = 50,
) -> Page:
    """Explanations newest first, at most `limit` (1 to 500); `since` is included and needs a time zone.

    Rows added meanwhile neither repeat nor shift the following pages. Raises InvalidCursor, InvalidValue.
    """
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidValue(f"a page has 1 to {MAX_PAGE} rows")
    columns = [getattr(Explanation, name) for name in COLUMNS]
    query = select(*columns).where(*_conditions(model, kind, since, cursor)).order_by(*NEWEST_FIRST).limit(limit + 1)
    rows = tuple(Summary(*row) for row in await session.execute(query))
    more = len(rows) > limit
    return Page(rows[:limit], _cursor(rows[limit - 1]) if more else None)


def _conditions(
    model: str | None, kind: str | None, since: datetime | None, cursor: str | None
) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if model is not None:
        conditions.append(Explanation.model == model)
    if kind is not None:
        conditions.append(Explanation.kind == kind)
    if since is not None:
        if since.tzinfo is None:
            raise InvalidValue("`since` needs a time zone")
        conditions.append(Explanation.created_at >= since)
    if cursor is not None:
        conditions.append(tuple_(Explanation.created_at, Explanation.id) < tuple_(*_position(cursor)))
    return conditions


def _cursor(row: Summary) -> str:
    """24 bytes, microseconds since 1970 and the id, as text."""
    microseconds = (row.created_at - EPOCH) // timedelta(microseconds=1)
    return base64.urlsafe_b64encode(microseconds.to_bytes(8) + row.id.bytes).decode()


def _position(cursor: str) -> tuple[datetime, UUID]:
    try:
        packed = base64.b64decode(cursor, altchars="-_", validate=True)
        if len(packed) != 24:
            raise InvalidCursor("not a cursor of this list")
        return EPOCH + timedelta(microseconds=int.from_bytes(packed[:8])), UUID(bytes=packed[8:])
    except (binascii.Error, ValueError, OverflowError):
        raise InvalidCursor("not a cursor of this list") from None
