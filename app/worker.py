"""The job worker: looks at the jobs in the queue, in the server or in a process of its own.

One at a time in each lane, for all jobs of a process share one device, where their pieces of work take turns; what a
killed process had begun counts as an attempt. The library's worker ends when it loses the database, so it is begun
again until the program ends; what it left behind is put back into the queue by whichever worker notices first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import UUID

from procrastinate import App
from procrastinate.worker import Worker

from app.jobs import BEAT_SECONDS, LOOK_AGAIN_SECONDS, STALE_SECONDS, Jobs
from storage.database import Database
from storage.queue import LANES, Later, put_back_stalled, queue_of

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0
"""New entries are noticed at once; this is for those whose time has come."""
RESTART_SECONDS = 1.0
STOP_SECONDS = 5.0


@asynccontextmanager
async def working(jobs: Jobs) -> AsyncIterator[None]:
    """Works on jobs as long as the context is open; those under way at its end go back into the queue."""
    worker = asyncio.create_task(work(jobs, jobs.left))
    try:
        yield
    finally:
        jobs.leave()
        await asyncio.wait({worker}, timeout=STOP_SECONDS)
        await end(worker)  # it waits for a database that is away


async def end(task: asyncio.Task[None]) -> None:
    """Cancels a task until it has ended: before Python 3.12 the driver may swallow a cancellation (in `wait_for`)."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=1.0)


async def work(jobs: Jobs, ended: asyncio.Event) -> None:
    """Works on jobs until the event is set."""
    logging.getLogger("procrastinate").setLevel(logging.CRITICAL)  # its lines hold errors' texts; ours say what matters

    async def look(tenant: str, id: UUID) -> None:
        await look_safely(jobs, tenant, id)

    while not ended.is_set():
        try:
            async with queue_of(jobs.database, look).open_async() as queue:
                jobs.looking = True
                await run(queue, jobs.database, ended)
        except Exception as error:  # noqa: BLE001 - the job loop
            log.warning("the job worker ended and begins again: %s", type(error).__name__)
        jobs.looking = False
        with suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), RESTART_SECONDS)


async def run(queue: App, database: Database, ended: asyncio.Event) -> None:
    """Looks at entries, and for those left behind, until the event is set or the database is lost.

    A job under way is seen to its end, also without a database.
    """
    workers = [worker_of(queue, lane) for lane in LANES]
    watch, ending = asyncio.create_task(put_back(queue, database)), asyncio.create_task(ended.wait())
    running = [asyncio.create_task(worker.run()) for worker in workers]
    try:
        await asyncio.wait({*running, ending}, return_when=asyncio.FIRST_COMPLETED)
        while not all(task.done() for task in running):  # more than once: they forget what they were told before
            for worker in workers:
                worker.stop()
            await asyncio.wait(running, timeout=0.1)
        for task in running:
            task.result()
    finally:
        ending.cancel()
        for task in (watch, *running):
            await end(task)


def worker_of(queue: App, lane: str) -> Any:
    return Worker(
        queue,
        queues=[lane],
        concurrency=1,
        install_signal_handlers=False,
        fetch_job_polling_interval=POLL_SECONDS,
        update_heartbeat_interval=BEAT_SECONDS,
        stalled_worker_timeout=STALE_SECONDS,
        delete_jobs="always",
    )


async def put_back(queue: App, database: Database) -> None:
    while True:
        try:
            count = await put_back_stalled(database, queue, STALE_SECONDS)
            if count:
                log.warning("jobs whose worker has ended are looked at again: %s", count)
        except Exception as error:  # noqa: BLE001 - a job loop
            log.warning("the queue could not be searched for jobs left behind: %s", type(error).__name__)
        await asyncio.sleep(BEAT_SECONDS)


async def look_safely(jobs: Jobs, tenant: str, id: UUID) -> None:
    """Whatever goes wrong, the job stays in the queue, and the library never sees an error's text."""
    try:
        await jobs.look(tenant, id)
    except Later:
        raise
    except Exception as error:  # noqa: BLE001 - the job loop
        log.warning("job %s is looked at again: %s", id, type(error).__name__)
        raise Later(LOOK_AGAIN_SECONDS) from None
