"""Jobs: work that outlives its request. The row says how far it is; an entry of the queue says who must look at it.

A job that is not finished has an entry in the queue at all times. Whoever works on a job has claimed it, which counts
an attempt, and is heard of from time to time; one not heard of for long is claimed by the next who looks at the job.
Everything a worker writes names its attempt, so that one whose job was cancelled or claimed by another changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, BigInteger, ColumnElement, and_, case, delete, exists, func, or_, select, tuple_, update
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from storage import queue
from storage.cursors import cursor_at, position
from storage.errors import InvalidValue, NotFound
from storage.tables import Job as Row

FINISHED = ("succeeded", "failed", "cancelled")
MAX_PAGE = 500


@dataclass(frozen=True, slots=True)
class Job:
    """A job without its request, which can be large; the fields of the table."""

    tenant_id: str
    id: UUID
    kind: str
    model: str
    state: str
    done: int
    total: int
    result: UUID | None
    error: Mapping[str, Any] | None
    attempts: int
    version: int
    created_at: datetime
    started_at: datetime | None
    heartbeat_at: datetime | None
    finished_at: datetime | None

    @property
    def finished(self) -> bool:
        return self.state in FINISHED


@dataclass(frozen=True, slots=True)
class Page:
    """`next_cursor` asks for the following page; None on the last one."""

    rows: tuple[Job, ...]
    next_cursor: str | None


CLAIMS = 0x7768656E6364
"""The advisory lock of whoever claims a job that must run alone."""
COLUMNS = [getattr(Row, name) for name in Job.__dataclass_fields__]
RUNNING: dict[str, Any] = {
    "state": "running",
    "done": 0,
    "started_at": func.now(),
    "heartbeat_at": func.now(),
    "version": Row.version + 1,
}
"""What a claim changes, beside the number of attempts."""


async def add(
    session: AsyncSession,
    *,
    id: UUID,
    kind: str,
    model: str,
    request: dict[str, Any],
    running: bool = False,
    seconds: int = 0,
    lane: str = queue.QUEUE,
    behind: bool = False,
) -> Job | None:
    """A new job and its entry in the queue, to be looked at after so many seconds; None where the id is taken.

    With `running` the caller is at its first attempt already; `behind` puts it behind all other entries of its lane,
    also those to come. Raises InvalidValue for what JSON cannot carry.
    """
    values: dict[str, Any] = {"id": id, "kind": kind, "model": model, "request": request}
    if running:
        values |= RUNNING | {"version": 1, "attempts": 1}
    added = insert(Row).values(values).on_conflict_do_nothing().returning(*COLUMNS)
    row = (await session.execute(added)).one_or_none()
    if row is None:
        return None
    await queue.put(session, row.tenant_id, id, seconds=seconds, lane=lane, behind=behind)
    return Job(*row)


async def widen(session: AsyncSession, *, kind: str, model: str, model_id: UUID, after: int) -> bool:
    """Lets a job of that kind and model that waits begin at `after` of its request or before; False without one.

    Names are used again: the job's request must say the same `model_id`.
    """
    given = sql_cast(Row.request, JSONB)
    first = func.least(sql_cast(given["after"].astext, BigInteger), after)
    request = sql_cast(given.op("||")(func.jsonb_build_object("after", first)), JSON)
    same = given["model_id"].astext == str(model_id)
    where = (Row.kind == kind, Row.model == model, Row.state == "queued", same)
    return await _changed(session, where, {"request": request})


async def forget(session: AsyncSession, *, kind: str, model: str, keep: int) -> None:
    """Deletes the finished jobs of that kind and model but the last `keep`."""
    finished = (Row.kind == kind, Row.model == model, Row.state.in_(FINISHED))
    last = select(Row.id).where(*finished).order_by(Row.created_at.desc(), Row.id.desc()).limit(keep)
    await session.execute(delete(Row).where(*finished, Row.id.not_in(last)))


async def get(session: AsyncSession, id: UUID) -> Job:
    """The tenant's job with that id. Raises NotFound."""
    row = (await session.execute(select(*COLUMNS).where(Row.id == id))).one_or_none()
    if row is None:
        raise NotFound("no such job")
    return Job(*row)


async def page(
    session: AsyncSession,
    *,
    state: str | None = None,
    without: Sequence[str] = (),
    cursor: str | None = None,
    limit: int = 50,
) -> Page:
    """Jobs newest first, at most `limit` (1 to 500), all or those in one state, but for some kinds.

    Rows added meanwhile neither repeat nor shift the following pages. Raises InvalidCursor, InvalidValue.
    """
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidValue(f"a page has 1 to {MAX_PAGE} rows")
    query = select(*COLUMNS).order_by(Row.created_at.desc(), Row.id.desc()).limit(limit + 1)
    if state is not None:
        query = query.where(Row.state == state)
    if without:
        query = query.where(Row.kind.not_in(without))
    if cursor is not None:
        query = query.where(tuple_(Row.created_at, Row.id) < tuple_(*position(cursor)))
    rows = tuple(Job(*row) for row in await session.execute(query))
    last = rows[limit - 1] if len(rows) > limit else None
    return Page(rows[:limit], None if last is None else cursor_at(last.created_at, last.id))


async def claim(
    session: AsyncSession, id: UUID, *, stale: float, most: int, alone: Sequence[str] = ()
) -> tuple[Job, dict[str, Any]] | None:
    """Begins the next attempt, `most` in all, at a job nobody works on; the job and its request.

    None when there is nothing to begin: it is finished, gone, at its last attempt, or somebody works on it, who was
    heard of during the last `stale` seconds; or another one of the same kind and model runs, and the kind is one of
    those that run `alone`.
    """
    if alone:
        await session.execute(select(func.pg_advisory_xact_lock(CLAIMS)))
    other = aliased(Row)
    same = (other.kind == Row.kind, other.model == Row.model, other.state == "running", other.id != Row.id)
    claimed = (
        update(Row)
        .where(Row.id == id, _unattended(stale), Row.attempts < most)
        .where(Row.kind.not_in(alone) | ~exists().where(*same))
        .values(RUNNING | {"attempts": Row.attempts + 1})
        .returning(*COLUMNS, Row.request)
    )
    row = (await session.execute(claimed)).one_or_none()
    return None if row is None else (Job(*row[:-1]), row.request)


async def give_up(session: AsyncSession, id: UUID, *, stale: float, most: int, error: dict[str, Any]) -> bool:
    """Ends a job nobody works on, and that has had all its attempts, as failed; whether it was one."""
    where = (Row.id == id, _unattended(stale), Row.attempts >= most)
    return await _changed(session, where, {"state": "failed", "error": error, "finished_at": func.now()})


async def beat(session: AsyncSession, id: UUID, attempt: int, done: int, total: int) -> bool:
    """Says that the attempt goes on, and how far it is; False when it is no longer wanted."""
    grown = or_(Row.done != done, Row.total != total)
    values = {
        "heartbeat_at": func.now(),
        "version": case((grown, Row.version + 1), else_=Row.version),
        "done": done,
        "total": total,
    }
    return await _changed(session, _ours(id, attempt), values)


async def is_wanted(session: AsyncSession, id: UUID) -> bool:
    """Whether a job is neither finished nor removed."""
    return await session.scalar(select(Row.id).where(Row.id == id, Row.state.not_in(FINISHED))) is not None


async def succeed(session: AsyncSession, id: UUID, attempt: int, *, total: int, result: UUID) -> bool:
    """The result of an attempt; False, and nothing is written, when it was no longer wanted."""
    values = {"state": "succeeded", "done": total, "total": total, "result": result}
    return await _changed(session, _ours(id, attempt), values | {"heartbeat_at": func.now(), "finished_at": func.now()})


async def fail(session: AsyncSession, id: UUID, attempt: int, *, error: dict[str, Any]) -> bool:
    """Why an attempt, and the job with it, failed; False when it was no longer wanted."""
    values = {"state": "failed", "error": error, "heartbeat_at": func.now(), "finished_at": func.now()}
    return await _changed(session, _ours(id, attempt), values)


async def release(session: AsyncSession, id: UUID, attempt: int, *, counted: bool) -> bool:
    """Lets go of a job, to be claimed again by whoever looks next; the attempt counts or never was."""
    values = {"state": "queued", "done": 0, "attempts": Row.attempts - (0 if counted else 1)}
    return await _changed(session, _ours(id, attempt), values)


async def cancel(session: AsyncSession, id: UUID) -> Job:
    """Ends a job that is not finished as cancelled; the job as it then stands. Raises NotFound."""
    values = {"state": "cancelled", "finished_at": func.now()}
    await _changed(session, (Row.id == id, Row.state.not_in(FINISHED)), values)
    return await get(session, id)


async def cancel_all(session: AsyncSession, *, kind: str, model: str) -> None:
    """Ends all jobs of that kind and model that are not finished."""
    values = {"state": "cancelled", "finished_at": func.now(), "version": Row.version + 1}
    await session.execute(
        update(Row).where(Row.kind == kind, Row.model == model, Row.state.not_in(FINISHED)).values(values)
    )


def _unattended(stale: float) -> ColumnElement[bool]:
    silent = Row.heartbeat_at < func.now() - timedelta(seconds=stale)
    return or_(Row.state == "queued", and_(Row.state == "running", silent))


def _ours(id: UUID, attempt: int) -> tuple[ColumnElement[bool], ...]:
    return Row.id == id, Row.state == "running", Row.attempts == attempt


async def _changed(session: AsyncSession, where: tuple[ColumnElement[bool], ...], values: dict[str, Any]) -> bool:
    changed = update(Row).where(*where).values({"version": Row.version + 1, **values}).returning(Row.id)
    return await session.scalar(changed) is not None
