"""The audit log: one entry for each request, added when its outcome is known; of a change also before it begins.

The row that comes before says that nothing changed unseen: a change whose server ended has it, and no outcome.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeAlias
from uuid import UUID

from sqlalchemy import ColumnElement, Text, and_, bindparam, cast, column, delete, exists, func, or_, select, tuple_
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from storage.cursors import cursor_at, position
from storage.database import Database, compiled
from storage.errors import InvalidValue
from storage.ids import time_ordered
from storage.tables import AuditEntry as Row
from storage.values import UNSTORABLE, json_text

Kind: TypeAlias = Literal["change", "computation", "read", "command"]
Outcome: TypeAlias = Literal["done", "refused", "failed", "unanswered"]

BEGUN, LEFT = 0, 499
"""No outcome yet; and nobody was left to be answered."""
OUTCOMES: Mapping[Outcome, ColumnElement[bool]] = {
    "done": Row.status.between(1, 399),
    "refused": and_(Row.status.between(400, 499), Row.status != LEFT),
    "failed": Row.status >= 500,
    "unanswered": Row.status.in_((BEGUN, LEFT)),
}
MAX_PAGE = 500
LONGEST = 256
"""Characters of a value that are kept."""
KEPT = timedelta(days=7)
"""Younger rows are never removed: see the migration."""
WRITTEN = ("id", "status", "kind", "method", "route", "object", "key_id", "key_name", "request_id")
GIVEN = (
    func.jsonb_to_recordset(cast(bindparam("rows", type_=Text), JSONB))
    .table_valued(*(column(name, Row.__table__.c[name].type) for name in WRITTEN), name="given")
    .render_derived(with_types=True)
)
# Sent a second time when the first answer is lost with its connection.
INSERT = compiled(
    insert(Row)
    .from_select(WRITTEN, select(*(GIVEN.c[name] for name in WRITTEN)))
    .on_conflict_do_nothing(index_elements=("tenant_id", "id", "status"))
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One request or command, without its outcome. Texts are cut to what is kept, and hold what Postgres can."""

    kind: Kind
    method: str
    route: str
    object: Mapping[str, str] = field(default_factory=dict)
    key: UUID | None = None
    key_name: str | None = None
    request_id: str | None = None
    id: UUID = field(default_factory=time_ordered)

    def values(self, status: int) -> dict[str, Any]:
        return {
            "id": str(self.id),
            "status": status,
            "kind": self.kind,
            "method": self.method,
            "route": self.route,
            "object": {name: kept(value) for name, value in self.object.items()},
            "key_id": self.key and str(self.key),
            "key_name": self.key_name,
            "request_id": self.request_id,
        }


@dataclass(frozen=True, slots=True)
class Listed:
    """An entry with its outcome; `created_at` is the time of that."""

    id: UUID
    status: int
    created_at: datetime
    kind: Kind
    method: str
    route: str
    object: Mapping[str, str]
    key_id: UUID | None
    key_name: str | None
    request_id: str | None

    @property
    def outcome(self) -> Outcome:
        if self.status in (BEGUN, LEFT):
            return "unanswered"
        return "done" if self.status < 400 else "refused" if self.status < 500 else "failed"


@dataclass(frozen=True, slots=True)
class Page:
    """`next_cursor` asks for the following page; None on the last one."""

    rows: tuple[Listed, ...]
    next_cursor: str | None


COLUMNS = [getattr(Row, name) for name in Listed.__dataclass_fields__]


def kept(value: str) -> str:
    return UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", value[:LONGEST])


async def write(database: Database, tenant: str, entry: Entry, status: int = BEGUN) -> None:
    """As `write_all` with one."""
    await write_all(database, tenant, [(entry, status)])


async def write_all(database: Database, tenant: str, outcomes: Sequence[tuple[Entry, int]]) -> None:
    """Adds rows in a transaction of their own, all or none. Those with an outcome are not waited for until they are on
    the disk: they survive the end of this process, and are lost only where Postgres itself ends within a moment.
    """
    given = json_text([entry.values(status) for entry, status in outcomes])
    durable = any(status == BEGUN for _, status in outcomes)
    await database.ask(INSERT, {"rows": given}, tenant=tenant, durable=durable)


async def add(session: AsyncSession, entry: Entry, status: int) -> None:
    """Adds a row in the transaction of what it tells of."""
    await session.execute(insert(Row).values(entry.values(status)))


async def page(
    session: AsyncSession,
    *,
    since: datetime | None = None,
    key: UUID | None = None,
    route: str | None = None,
    outcome: Outcome | None = None,
    cursor: str | None = None,
    limit: int = 50,
) -> Page:
    """Entries newest first, at most `limit` (1 to 500), each once. Raises InvalidCursor, InvalidValue."""
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidValue(f"a page has 1 to {MAX_PAGE} rows")
    query = select(*COLUMNS).where(_latest()).order_by(Row.created_at.desc(), Row.id.desc()).limit(limit + 1)
    for own, wanted in ((Row.key_id, key), (Row.route, route)):
        query = query if wanted is None else query.where(own == wanted)
    if since is not None:
        query = query.where(Row.created_at >= since)
    if outcome is not None:
        query = query.where(OUTCOMES[outcome])
    if cursor is not None:
        query = query.where(tuple_(Row.created_at, Row.id) < tuple_(*position(cursor)))
    rows = tuple(Listed(*row) for row in await session.execute(query))
    last = rows[limit - 1] if len(rows) > limit else None
    return Page(rows[:limit], None if last is None else cursor_at(last.created_at, last.id))


def _latest() -> ColumnElement[bool]:
    """The row with the outcome, or the one that came before as long as there is none."""
    other = aliased(Row)
    same = (other.tenant_id == Row.tenant_id, other.id == Row.id, other.status != BEGUN)
    return or_(Row.status != BEGUN, ~exists().where(*same))


async def prune(session: AsyncSession, before: datetime) -> int:
    """Removes the rows of before that time; their number. Raises InvalidValue for a time that is too near."""
    if before.tzinfo is None or before > datetime.now(UTC) - KEPT:
        raise InvalidValue(f"the last {KEPT.days} days of the audit log are kept")
    await session.execute(select(func.set_config("whence.audit_before", before.isoformat(), True)))
    removed = await session.execute(delete(Row).where(Row.created_at < before).returning(Row.id))
    return len(removed.all())
