"""Shards of jobs that explain inferences: cut once, leased by any number of workers, and each stored once.

Context: workers on many machines share a job, and any of them may be killed, stopped or cut off, and come back later.
Decision: a shard is a range of inferences that follows from what is stored alone, never from how fast somebody was. It
is leased for a time, which is renewed while its worker lives; one whose lease has run out is leased to the next. The
number of the lease is named when the result is stored, in the same transaction. Consequence: a worker that comes back
too late changes nothing, and the job's rows are the same whoever computed them.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import ColumnElement, and_, delete, func, literal, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from storage import leases
from storage.scores import Wanted, numbered
from storage.tables import JobShard as Row


@dataclass(frozen=True, slots=True)
class Shard:
    """A leased one; `lease` is the number that must be named when its result is stored."""

    number: int
    first: int
    last: int
    rows: int
    lease: int


@dataclass(frozen=True, slots=True)
class Left:
    """What is not done of a job's shards: how many, how many of them nobody has leased, and their inferences."""

    shards: int
    free: int
    rows: int


async def cut(session: AsyncSession, job: UUID, wanted: Wanted, *, rows: int, most: int) -> Left:
    """Makes shards of so many rows of the inferences that lack scores, `most` shards at a time, in the order of `seq`.

    Those of the job that were there are forgotten: whoever calls this must have seen that they are done.
    """
    await session.execute(delete(Row).where(Row.job_id == job))
    lacking = numbered(wanted, rows * most).subquery("lacking")
    number = (lacking.c.place - 1) // literal(rows)
    shards = select(literal(job), number, func.min(lacking.c.seq), func.max(lacking.c.seq), func.count())
    columns = ["job_id", "number", "first", "last", "rows"]
    await session.execute(insert(Row).from_select(columns, shards.group_by(number), include_defaults=False))
    return await left(session, job)


async def lease(session: AsyncSession, job: UUID, seconds: float) -> Shard | None:
    """The first shard that nobody computes, the caller's for so long; None: there is none."""
    taken = leases.first(Row, _left(job), seconds)
    shard = taken.returning(Row.number, Row.first, Row.last, Row.rows, Row.leases)
    row = (await session.execute(shard)).one_or_none()
    return None if row is None else Shard(*row)


async def renew(session: AsyncSession, job: UUID, shard: Shard, seconds: float) -> bool:
    """Lets a lease go on; False when it is another's, or nobody's."""
    return await _changed(session, job, shard, leased_until=leases.until(seconds))


async def release(session: AsyncSession, job: UUID, shard: Shard) -> bool:
    """Ends a lease whose shard is not done."""
    return await _changed(session, job, shard, leased_until=None)


async def finish(session: AsyncSession, job: UUID, shard: Shard) -> bool:
    """The result is stored in this transaction; False, and it must not be, when the shard is another's, or gone."""
    return await _changed(session, job, shard, leased_until=None, done=True)


async def left(session: AsyncSession, job: UUID) -> Left:
    sums = select(func.count(), func.count().filter(leases.nobodys(Row)), func.coalesce(func.sum(Row.rows), 0))
    count, free, rows = (await session.execute(sums.where(_left(job)))).one()
    return Left(int(count), int(free), int(rows))


async def forget(session: AsyncSession, job: UUID) -> None:
    """All shards of a job: nobody stores anything under a lease of theirs."""
    await session.execute(delete(Row).where(Row.job_id == job))


def _left(job: UUID) -> ColumnElement[bool]:
    return and_(Row.job_id == job, ~Row.done)


async def _changed(session: AsyncSession, job: UUID, shard: Shard, **values: object) -> bool:
    return await leases.change(session, Row, _left(job), shard.number, shard.lease, **values)
