"""Finished explanations: added once, read by id, by request, or page by page."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, bindparam, func, literal_column, or_, select, true, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from storage.cursors import cursor_at, position
from storage.database import Database, compiled
from storage.errors import InvalidValue, NotFound
from storage.ids import time_ordered
from storage.tables import Explanation, Model
from storage.values import json_text, plain
from storage.wording import excerpt, folded, words

MAX_PAGE = 500
stands_at = tuple_(Explanation.created_at, Explanation.id)
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
    "prompt",
    "target",
    "words",
)
# Sent a second time when the first answer is lost with its connection.
INSERT = compiled(insert(Explanation).on_conflict_do_nothing(index_elements=("tenant_id", "id")), GIVEN)
COLUMNS = (
    "id", "kind", "model", "model_digest", "request_key", "seconds", "forwards", "created_at", "prompt", "target",
)  # fmt: skip
SCANNED, SCANNED_BYTES = 10_000, 16 * 2**20
"""Rows, and bytes of their words, that one page of a search looks at: it takes no longer where more are stored."""


@dataclass(frozen=True, slots=True)
class Summary:
    """An explanation without its request and attribution, which can be large; of its texts the beginnings."""

    id: UUID
    kind: str
    model: str
    model_digest: str
    request_key: bytes
    seconds: float
    forwards: int
    created_at: datetime
    prompt: str
    target: str


@dataclass(frozen=True, slots=True)
class Filter:
    """Which explanations are meant: of a model, of a kind, stored in [since, until), with `search` in their words.

    Raises InvalidValue for a time without a zone and for a name that Postgres cannot hold.
    """

    model: str | None = None
    kind: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    search: str | None = None

    def __post_init__(self) -> None:
        for name in ("since", "until"):
            time = getattr(self, name)
            if time is not None and time.tzinfo is None:
                raise InvalidValue(f"`{name}` needs a time zone")
        for text in (self.model, self.kind):
            plain(text or "")

    @property
    def sought(self) -> str:
        """As words are kept; empty: nothing in particular."""
        return folded(self.search or "")


@dataclass(frozen=True, slots=True)
class Page:
    """`next_cursor` asks for the following page; None on the last one."""

    rows: tuple[Summary, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Stretch:
    """The ids of those that are meant among the next rows, and where these end; None: they were the last."""

    ids: tuple[UUID, ...]
    end: tuple[datetime, UUID] | None


EVERYTHING = Filter()
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
    prompt: str,
    target: str,
) -> None:
    """Stores an explanation, in a transaction of its own; `prompt` and `target` are its whole texts.

    Raises InvalidValue for what JSON cannot carry.
    """
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
        "prompt": excerpt(prompt),
        "target": excerpt(target),
        "words": words(prompt, target),
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
    session: AsyncSession, filter: Filter = EVERYTHING, *, cursor: str | None = None, limit: int = 50
) -> Page:
    """Explanations newest first, at most `limit` (1 to 500).

    Rows added meanwhile neither repeat nor shift the following pages. A search looks at so many rows at a time: its
    page can have fewer rows than there are, or none, and a cursor. Raises InvalidCursor, InvalidValue.
    """
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidValue(f"a page has 1 to {MAX_PAGE} rows")
    columns = [getattr(Explanation, name) for name in COLUMNS]
    conditions, end = _conditions(filter, None if cursor is None else position(cursor)), None
    if filter.sought:
        end = await _last_scanned(session, conditions)
        conditions += [stands_at >= tuple_(*end)] if end else []
        conditions.append(func.strpos(Explanation.words, filter.sought) > 0)
    query = select(*columns).where(*conditions).order_by(*NEWEST_FIRST).limit(limit + 1)
    rows = tuple(Summary(*row) for row in await session.execute(query))
    if len(rows) > limit:
        end = (rows[limit - 1].created_at, rows[limit - 1].id)
    return Page(rows[:limit], cursor_at(*end) if end else None)


async def stretch(session: AsyncSession, filter: Filter, *, after: tuple[datetime, UUID] | None) -> Stretch:
    """Newest first; each row is looked at once, at most as many and as large ones as by a page of a search."""
    conditions = _conditions(filter, after)
    end = await _last_scanned(session, conditions)
    conditions += [stands_at >= tuple_(*end)] if end else []
    conditions += [func.strpos(Explanation.words, filter.sought) > 0] if filter.sought else []
    return Stretch(tuple(await session.scalars(select(Explanation.id).where(*conditions).order_by(*NEWEST_FIRST))), end)


async def whole(session: AsyncSession, ids: Collection[UUID]) -> list[Explanation]:
    """The rows with these ids, newest first, complete; without those that are gone."""
    return list(await session.scalars(select(Explanation).where(Explanation.id.in_(ids)).order_by(*NEWEST_FIRST)))


async def _last_scanned(session: AsyncSession, conditions: list[ColumnElement[bool]]) -> tuple[datetime, UUID] | None:
    """Where the last of the rows stands that a page of a search looks at; None where it looks at all that are left.

    The words are kept as they are, so that their size is known without reading them.
    """
    size = func.pg_column_size(Explanation.words)
    so_far = func.sum(size).over(order_by=NEWEST_FIRST, rows=(None, 0)).label("so_far")
    number = func.row_number().over(order_by=NEWEST_FIRST).label("number")
    columns = (Explanation.created_at, Explanation.id, so_far, number)
    first = select(*columns).where(*conditions).order_by(*NEWEST_FIRST).limit(SCANNED).subquery()
    enough = or_(first.c.so_far >= SCANNED_BYTES, first.c.number == SCANNED)
    place = select(first.c.created_at, first.c.id).where(enough).order_by(first.c.number).limit(1)
    row = (await session.execute(place)).one_or_none()
    return None if row is None else (row.created_at, row.id)


def _conditions(filter: Filter, after: tuple[datetime, UUID] | None) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if filter.model is not None:
        conditions.append(Explanation.model == filter.model)
    if filter.kind is not None:
        conditions.append(Explanation.kind == filter.kind)
    if filter.since is not None:
        conditions.append(Explanation.created_at >= filter.since)
    if filter.until is not None:
        conditions.append(Explanation.created_at < filter.until)
    if after is not None:
        conditions.append(stands_at < tuple_(*after))
    return conditions
