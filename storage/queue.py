"""The queue of jobs: the job library's own tables, in which a job is no more than its tenant and its id.

An entry says that somebody has to look at a job, and when; what the job asks for, its state and its result are our own
row (`jobs`), behind row-level security. Whoever looks at a job must therefore bear to find it finished or taken.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from uuid import UUID

from procrastinate import App, BaseRetryStrategy, PsycopgConnector, RetryDecision
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Job as Entry
from procrastinate.manager import JobManager
from procrastinate.tasks import configure_task
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from storage.database import CONNECT_TIMEOUT_S, POOL_TIMEOUT_S, Database
from storage.errors import DatabaseUnavailable

QUEUE, SCORES, INDEXES = "jobs", "scores", "indexes"
"""Of jobs that people wait for, of long ones that explain what is stored, and of those that build influence indexes:
none waits for another lane's."""
LANES = (QUEUE, SCORES, INDEXES)
TASK = "look_at_job"
BEHIND = -1
"""The priority of entries that call for help with a job, which is given where nothing else waits."""
MOST_CONNECTIONS = 2
"""Beside those that listen for new entries."""
LOCK = 0x7768656E6366
"""The advisory lock of whoever looks for entries left behind."""


class Later(Exception):
    """Whoever looked at a job could not finish it: look again after `seconds`."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"look again after {seconds} seconds")
        self.seconds = seconds


class LookAgain(BaseRetryStrategy):
    """An entry stays in the queue until somebody has looked at its job without raising `Later`."""

    def get_retry_decision(self, *, exception: BaseException, job: Entry) -> RetryDecision | None:
        return RetryDecision(retry_in={"seconds": exception.seconds}) if isinstance(exception, Later) else None


def queue_of(database: Database, look: Callable[[str, UUID], Awaitable[None]]) -> App:
    """The queue with a way to look at the job of a tenant; connects when it is opened."""
    _, arguments = database.engine.dialect.create_connect_args(database.engine.url)
    queue = App(
        connector=PsycopgConnector(
            kwargs={"application_name": "whence-jobs", **arguments, "connect_timeout": CONNECT_TIMEOUT_S},
            min_size=MOST_CONNECTIONS,  # all at the start: one that is being added when the pool closes is lost open
            max_size=MOST_CONNECTIONS,
            timeout=POOL_TIMEOUT_S,
        )
    )

    @queue.task(name=TASK, queue=QUEUE, retry=LookAgain())
    async def look_at_job(tenant: str, id: str) -> None:
        await look(tenant, UUID(id))

    return queue


async def put(
    session: AsyncSession, tenant: str, id: UUID, *, seconds: int = 0, lane: str = QUEUE, behind: bool = False
) -> None:
    """Enters a job, to be looked at after so many seconds, in the transaction of the session; `behind` all others."""
    raw = await (await session.connection()).get_raw_connection()
    entry = configure_task(
        name=TASK,
        job_manager=JobManager(PsycopgConnector()),
        queue=lane,
        priority=BEHIND if behind else 0,
        connection=raw.driver_connection,
        schedule_in={"seconds": seconds} if seconds else None,
    )
    try:
        await entry.defer_async(tenant=tenant, id=str(id))
    except ConnectorException:
        raise DatabaseUnavailable("the queue of jobs cannot be reached") from None


MAKES_WAY = text(
    "WITH lane AS MATERIALIZED (SELECT id, status, priority, args ->> 'id' AS job FROM procrastinate_jobs"
    " WHERE queue_name = :lane AND (status = 'doing' OR"
    " status = 'todo' AND priority > :behind AND coalesce(scheduled_at <= now(), true)))"
    " SELECT count(*) FILTER (WHERE status = 'todo') > count(*) FILTER (WHERE status = 'doing' AND priority = :behind"
    " AND id > (SELECT max(id) FROM lane WHERE job = :job)) FROM lane"
)


async def makes_way(session: AsyncSession, lane: str, helper: UUID) -> bool:
    """Whether a helper is to leave its worker to a job of that lane, whosever it is, that waits for one.

    As many helpers leave as jobs wait, those who were called last.
    """
    return bool(await session.scalar(MAKES_WAY, {"lane": lane, "behind": BEHIND, "job": str(helper)}))


async def put_back_stalled(database: Database, queue: App, seconds: float) -> int:
    """Puts back the entries of workers that have not been heard of for so many seconds; their number.

    One process does it at a time. Raises DatabaseUnavailable.
    """
    async with database.transaction() as session:
        if not await session.scalar(text("SELECT pg_try_advisory_xact_lock(:lock)"), {"lock": LOCK}):
            return 0
        return await _put_back(queue.job_manager, seconds)


async def _put_back(entries: JobManager, seconds: float) -> int:
    try:
        stalled = list(await entries.get_stalled_jobs(seconds_since_heartbeat=seconds))
        for entry in stalled:
            await entries.retry_job(entry)
    except ConnectorException:
        raise DatabaseUnavailable("the queue of jobs cannot be reached") from None
    return len(stalled)
