"""Figures of the whole server for those who run it: jobs, the queue, its workers. No names of tenants, no content."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select, text

from storage import tenants
from storage.database import Database, compiled
from storage.tables import Job


@dataclass(frozen=True, slots=True)
class JobFigure:
    """Jobs of one kind and state; `oldest` is the age in seconds of the one asked for first."""

    kind: str
    state: str
    count: int
    oldest: float


@dataclass(frozen=True, slots=True)
class LaneFigure:
    """Entries of one lane of the queue: those that are due, and those that somebody looks at."""

    lane: str
    due: int
    taken: int


AGE = func.extract("epoch", func.now() - func.min(Job.created_at))
GROUPS = select(Job.kind, Job.state, func.count().label("count"), AGE.label("oldest")).group_by(Job.kind, Job.state)
ROW = func.json_build_array(*GROUPS.subquery("groups").c)
TALLY = compiled(select(func.coalesce(func.json_agg(ROW), text("'[]'::json")).label("groups")))
"""In one row, so that it takes one message for each tenant."""

LANES = text(
    "SELECT queue_name, count(*) FILTER (WHERE status = 'todo' AND coalesce(scheduled_at <= now(), true)),"
    " count(*) FILTER (WHERE status = 'doing') FROM procrastinate_jobs"
    " WHERE status IN ('todo', 'doing') GROUP BY queue_name"
)
WORKERS = text(
    "SELECT count(*) FROM procrastinate_workers WHERE last_heartbeat > now() - make_interval(secs => :seconds)"
)


async def jobs_by_kind(database: Database) -> list[JobFigure]:
    """Of all tenants together; one message for each, for no transaction sees the rows of two."""
    async with database.transaction() as session:
        names = [tenant.id for tenant in await tenants.list_all(session)]
    found: dict[tuple[str, str], JobFigure] = {}
    for name in names:
        row = await database.ask(TALLY, {}, tenant=name)
        for kind, state, count, oldest in () if row is None else row.groups:
            before = found.get((kind, state), JobFigure(kind, state, 0, 0.0))
            found[kind, state] = JobFigure(kind, state, before.count + count, max(before.oldest, float(oldest)))
    return list(found.values())


async def lanes(database: Database) -> list[LaneFigure]:
    async with database.transaction() as session:
        return [LaneFigure(*row) for row in await session.execute(LANES)]


async def workers(database: Database, seconds: float) -> int:
    """Lanes of worker processes that were heard of during the last `seconds`; each process works on all lanes."""
    async with database.transaction() as session:
        return int(await session.scalar(WORKERS, {"seconds": seconds}) or 0)
