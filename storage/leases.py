"""Leases of shards, of all tables of shards alike: numbered, for a time, and renewed while their worker lives.

One whose lease has run out is leased to the next worker, and whoever comes back under an earlier number changes
nothing. `left` says everywhere which shards of a table are meant: those of a job or an index that are to be done.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Update, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from storage.tables import Leased


def first(table: type[Leased], left: ColumnElement[bool], seconds: float) -> Update:
    """Leases the first one that nobody computes, for so long; the caller adds what it is to return."""
    free = (
        select(table.number)
        .where(left, nobodys(table))
        .order_by(table.number)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    mine = update(table).where(left, table.number == free)
    return mine.values(leases=table.leases + 1, leased_until=until(seconds))


def nobodys(table: type[Leased]) -> ColumnElement[bool]:
    return or_(table.leased_until.is_(None), table.leased_until < func.now())


def until(seconds: float) -> ColumnElement[datetime]:
    return func.now() + timedelta(seconds=seconds)


async def change(
    session: AsyncSession, table: type[Leased], left: ColumnElement[bool], number: int, lease: int, **values: object
) -> bool:
    """Changes the shard with that number under that lease; False when it is another's, or nobody's."""
    mine = update(table).where(left, table.number == number, table.leases == lease)
    return await session.scalar(mine.values(values).returning(table.number)) is not None
