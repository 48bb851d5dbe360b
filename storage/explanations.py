"""Finished explanations: added once, read by id, by request, or page by page."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, bindparam, literal_column, select, true, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from storage.cursors import cursor_at, position
from storage.database import Database, compiled
from storage.errors import InvalidValue, NotFound
from storage.ids import time_ordered
from storage.tables import Explanation, Model
from storage.values import json_text, plain

MAX_PAGE = 500
NEWEST_FIRST = (Explanation.created_at.desc(), Explanation.id.desc())
ANSWER = (Explanation.id, Explanation.model_digest, Explanation.attribution, Explanation.seconds, Explanation.forwards)
# Stored for the registered weights, since they were registered: how they are run may have changed then.
SAME_REQUEST = (
    select(*ANSWER)
    .where(
        Explanation.request_key == bindparam("request_key"),
        Explanation.model == Model.name,
        Explanation.model_digest == Model.digest,
        Explanation.created_at >= Model.created_at,
    )
    .order_by(*NEWEST_FIRST)
    .limit(literal_column("1"))
    .lateral("same")
)
FIND = compiled(
    select(Model, SAME_REQUEST).join(SAME_REQUEST, true(), isouter=True).where(Model.name == bindparam("model"))
)
GIVEN = (
    "id",
    "kind",
    "model",
    "model_digest",
    "request_key",
    "request",
    "attribution",
    "seconds",
    "forwards",
)
# Sent a second time when the first answer is lost with its connection.
INSERT = compiled(insert(Explanation).on_conflict_do_nothing(index_elements=("tenant_id", "id")), GIVEN)
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
    database: Database,
    tenant: str,
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
) -> None:
    """Stores an explanation, in a transaction of its own. Raises InvalidValue for what JSON cannot carry."""
    values = {
        "id": id,
        "kind": plain(kind),
        "model": plain(model),
        "model_digest": plain(model_digest),
        "request_key": request_key,
        "request": json_text(request),
        "attribution": json_text(attribution),
        "seconds": seconds,
        "forwards": forwards,
    }
    await database.ask(INSERT, values, tenant=tenant)


async def get(session: AsyncSession, id: UUID) -> Explanation:
    """The tenant's explanation with that id. Raises NotFound."""
    row = await session.scalar(select(Explanation).where(Explanation.id == id))
    if row is None:
        raise NotFound("no such explanation")
    return row


async def find(database: Database, tenant: str, model: str, request_key: bytes) -> Any | None:
    """A model's row together with the newest explanation of the same request to it; `id` is None without one.

    None for an unknown model. Raises InvalidValue for what cannot be a name.
    """
    return await database.ask(FIND, {"model": plain(model), "request_key": request_key}, tenant=tenant)


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
    return Page(rows[:limit], cursor_at(rows[limit - 1].created_at, rows[limit - 1].id) if more else None)


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
        conditions.append(tuple_(Explanation.created_at, Explanation.id) < tuple_(*position(cursor)))
    return conditions
