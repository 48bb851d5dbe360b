"""Jobs: who may claim one, who may still write to it, and what the queue holds of it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from alembic import command
from procrastinate.schema import SchemaManager
from sqlalchemy import NullPool, create_engine, delete, func, select, text, update

from storage import jobs
from storage.database import Database, postgres_url
from storage.errors import InvalidCursor, InvalidValue, NotFound, StorageError
from storage.ids import time_ordered
from storage.jobs import Job
from storage.migrations import _config, migrate
from storage.queue import makes_way, put_back_stalled, queue_of
from storage.tables import Job as Row
from tests.postgres import Server, connection

REQUEST = {"question": {"prompt": "a \0 secret \ud800"}, "fresh": False}
STALE = 60.0
MOST = 3


async def added(database: Database, tenant: str, **changes: Any) -> Job:
    fields: dict[str, Any] = {"id": time_ordered(), "kind": "explain", "model": "m", "request": REQUEST}
    async with database.transaction(tenant) as session:
        job = await jobs.add(session, **(fields | changes))
    assert job is not None
    return job


async def claimed(database: Database, tenant: str, id: UUID, stale: float = STALE) -> Job | None:
    async with database.transaction(tenant) as session:
        found = await jobs.claim(session, id, stale=stale, most=MOST)
    assert found is None or found[1] == REQUEST
    return found and found[0]


async def read(database: Database, tenant: str, id: UUID) -> Job:
    async with database.transaction(tenant) as session:
        return await jobs.get(session, id)


async def entries(database: Database, id: UUID) -> list[dict[str, Any]]:
    async with database.transaction() as session:
        found = await session.execute(
            text("SELECT row_to_json(j) FROM procrastinate_jobs j WHERE args ->> 'id' = :id"), {"id": str(id)}
        )
        return list(found.scalars())


async def test_from_queued_to_succeeded(database: Database, tenant: str) -> None:
    job = await added(database, tenant)
    assert (job.state, job.attempts, job.version, job.started_at, job.finished) == ("queued", 0, 1, None, False)
    running = await claimed(database, tenant, job.id)
    assert running is not None
    assert (running.state, running.attempts, running.version) == ("running", 1, 2)
    assert await claimed(database, tenant, job.id) is None
    result = time_ordered()
    async with database.transaction(tenant) as session:
        assert await jobs.beat(session, job.id, 1, 0, 1)
        assert await jobs.beat(session, job.id, 1, 3, 9)
        assert await jobs.succeed(session, job.id, 1, total=9, result=result)
        assert not await jobs.succeed(session, job.id, 1, total=9, result=result)
        assert not await jobs.beat(session, job.id, 1, 0, 1)
    ended = await read(database, tenant, job.id)
    assert (ended.state, ended.done, ended.total, ended.result, ended.finished) == ("succeeded", 9, 9, result, True)
    assert ended.version == 4  # a heartbeat without progress is no change
    assert ended.started_at and ended.finished_at and ended.started_at <= ended.finished_at


async def test_the_queue_holds_no_more_than_tenant_and_id(database: Database, tenant: str) -> None:
    job = await added(database, tenant)
    (entry,) = await entries(database, job.id)
    assert entry["args"] == {"tenant": tenant, "id": str(job.id)}
    assert "secret" not in json.dumps(entry)


async def test_an_id_is_used_once(database: Database, tenant: str) -> None:
    job = await added(database, tenant, running=True, seconds=30)
    assert (job.state, job.attempts, job.version) == ("running", 1, 1) and job.heartbeat_at is not None
    async with database.transaction(tenant) as session:
        assert await jobs.add(session, id=job.id, kind="explain", model="m", request=REQUEST) is None
    assert len(await entries(database, job.id)) == 1


async def test_nothing_is_queued_when_the_transaction_fails(database: Database, tenant: str) -> None:
    id = time_ordered()
    with pytest.raises(ZeroDivisionError):
        async with database.transaction(tenant) as session:
            await jobs.add(session, id=id, kind="explain", model="m", request=REQUEST)
            raise ZeroDivisionError
    assert await entries(database, id) == []


async def test_a_silent_worker_loses_its_job_to_the_next(database: Database, tenant: str) -> None:
    job = await added(database, tenant)
    assert await claimed(database, tenant, job.id)
    await asyncio.sleep(0.01)
    second = await claimed(database, tenant, job.id, stale=0.001)
    assert second is not None and second.attempts == 2
    async with database.transaction(tenant) as session:  # what the first still does has no effect
        assert not await jobs.beat(session, job.id, 1, 1, 2)
        assert not await jobs.succeed(session, job.id, 1, total=1, result=time_ordered())
        assert not await jobs.fail(session, job.id, 1, error={})
        assert not await jobs.release(session, job.id, 1, counted=True)
        assert await jobs.succeed(session, job.id, 2, total=1, result=job.id)


async def test_attempts_are_counted_and_end(database: Database, tenant: str) -> None:
    job = await added(database, tenant)

    async def given_up() -> bool:
        async with database.transaction(tenant) as session:
            return await jobs.give_up(session, job.id, stale=STALE, most=MOST, error={"code": "WORKER_LOST"})

    for attempt in range(1, MOST + 1):
        assert not await given_up()
        assert await claimed(database, tenant, job.id)
        async with database.transaction(tenant) as session:
            assert await jobs.release(session, job.id, attempt, counted=False)
        assert await claimed(database, tenant, job.id)
        async with database.transaction(tenant) as session:
            assert await jobs.release(session, job.id, attempt, counted=True)
    assert await claimed(database, tenant, job.id) is None
    assert await given_up()
    ended = await read(database, tenant, job.id)
    assert (ended.state, ended.error, ended.attempts) == ("failed", {"code": "WORKER_LOST"}, MOST)


async def test_cancelled_wins_over_whoever_works(database: Database, tenant: str) -> None:
    for works in (False, True):
        job = await added(database, tenant)
        if works:
            assert await claimed(database, tenant, job.id)
        async with database.transaction(tenant) as session:
            assert (await jobs.cancel(session, job.id)).state == "cancelled"
            assert (await jobs.cancel(session, job.id)).version == 2 + works
            assert not await jobs.beat(session, job.id, 1, 0, 1)
            assert not await jobs.succeed(session, job.id, 1, total=1, result=job.id)
        assert await claimed(database, tenant, job.id) is None
        assert (await read(database, tenant, job.id)).result is None


async def test_pages(database: Database, tenant: str) -> None:
    made = [(await added(database, tenant)).id for _ in range(5)]
    async with database.transaction(tenant) as session:
        await jobs.cancel(session, made[2])
        seen: list[UUID] = []
        cursor: str | None = None
        while len(seen) < 5:
            page = await jobs.page(session, cursor=cursor, limit=2)
            seen += [job.id for job in page.rows]
            cursor = page.next_cursor
        assert (seen, cursor) == (made[::-1], None)
        assert [job.id for job in (await jobs.page(session, state="cancelled")).rows] == [made[2]]
        for bad in (0, 501):
            with pytest.raises(InvalidValue):
                await jobs.page(session, limit=bad)
        with pytest.raises(InvalidCursor):
            await jobs.page(session, cursor="x")


async def test_other_tenants_jobs_are_out_of_reach(database: Database, tenant: str, other_tenant: str) -> None:
    job = await added(database, tenant)
    for who in (other_tenant, None):
        async with database.transaction(who) as session:
            assert (await jobs.page(session)).rows == ()
            assert await jobs.claim(session, job.id, stale=0, most=MOST) is None
            assert not await jobs.give_up(session, job.id, stale=0, most=0, error={})
            for attempt in (jobs.get, jobs.cancel):
                with pytest.raises(NotFound):
                    await attempt(session, job.id)
            assert (await session.execute(delete(Row).returning(Row.id))).all() == []
        with pytest.raises(StorageError):
            async with database.transaction(who) as session:
                await session.execute(
                    text("INSERT INTO jobs (tenant_id, id) VALUES (:t, :i)"), {"t": tenant, "i": job.id}
                )
    async with database.transaction(tenant) as session:
        assert await session.scalar(select(func.count()).select_from(Row)) == 1
    with pytest.raises(StorageError, match="InsufficientPrivilege"):
        async with database.transaction(tenant) as session:
            await session.execute(update(Row).values(tenant_id=other_tenant))


async def test_entries_of_dead_workers_are_put_back(postgres: Server) -> None:
    """As a worker killed in the middle leaves them; each is put back once, and looked at again."""
    seen: list[tuple[str, UUID]] = []

    async def look(tenant: str, id: UUID) -> None:
        seen.append((tenant, id))

    with postgres.empty_database() as url:
        migrate(url)
        database = Database.connect(url, pool_size=2)
        with connection(url) as plain:
            plain.execute("INSERT INTO tenants SELECT 'lab' FROM set_config('whence.tenant', 'lab', false)")
        job = await added(database, "lab")
        async with queue_of(database, look).open_async() as queue:
            worker = await queue.job_manager.register_worker()
            assert await queue.job_manager.fetch_job(["jobs"], worker) is not None
            assert await put_back_stalled(database, queue, 60) == 0
            await asyncio.sleep(0.05)
            counts = await asyncio.gather(*(put_back_stalled(database, queue, 0.01) for _ in range(2)))
            assert sum(counts) == 1
            await queue.run_worker_async(wait=False, install_signal_handlers=False, delete_jobs="always")
        assert seen == [("lab", job.id)]
        assert await entries(database, job.id) == []
        await database.close()


def test_the_migrated_queue_is_that_of_the_installed_library() -> None:
    """A release that brings a newer schema needs a migration here before it can be used."""
    scripts = sorted(path.name for path in Path(SchemaManager.get_migrations_path()).glob("*.sql"))
    assert scripts[-1] == "03.04.00_50_post_add_retry_failed_job_procedure.sql"


def test_the_migration_can_be_undone(postgres: Server) -> None:
    with postgres.empty_database() as url:
        migrate(url)
        with create_engine(postgres_url(url), poolclass=NullPool).begin() as plain:
            command.downgrade(_config(plain), "0001")
        with connection(url) as direct:
            left = "SELECT count(*) FROM pg_class WHERE relname LIKE 'procrastinate%' OR relname LIKE 'jobs%'"
            assert direct.execute(left).fetchone() == (0,)
        migrate(url)


async def test_calls_for_help_stand_behind_all_others(database: Database, tenant: str) -> None:
    lane = f"lane-{tenant}"
    helper = (await added(database, tenant, lane=lane, behind=True)).id
    later, now = await added(database, tenant, lane=lane, seconds=600), await added(database, tenant, lane=lane)
    looked: list[UUID] = []

    async def look(_: str, id: UUID) -> None:
        looked.append(id)

    async with queue_of(database, look).open_async() as queue:
        await queue.run_worker_async(queues=[lane], wait=False, install_signal_handlers=False, delete_jobs="always")
    assert looked == [now.id, helper] and later.id not in looked


async def test_as_many_helpers_make_way_as_jobs_wait(database: Database, tenant: str) -> None:
    lane = f"lane-{tenant}"
    helpers = [(await added(database, tenant, lane=lane, behind=True)).id for _ in range(3)]

    async def leaving() -> list[bool]:
        async with database.transaction(tenant) as session:
            return [await makes_way(session, lane, helper) for helper in helpers]

    assert await leaving() == [False] * 3  # they are no jobs that anybody waits for
    async with database.transaction() as session:
        await session.execute(
            text("UPDATE procrastinate_jobs SET status = 'doing' WHERE queue_name = :lane"), {"lane": lane}
        )
    assert await leaving() == [False] * 3
    await added(database, tenant, lane=lane, seconds=600)
    await added(database, tenant, lane="another-lane")
    assert await leaving() == [False] * 3  # nor those that are not due, or another lane's
    await added(database, tenant, lane=lane)
    assert await leaving() == [False, False, True]
    await added(database, tenant, lane=lane)
    assert await leaving() == [False, True, True]
    async with database.transaction() as session:
        await session.execute(text("DELETE FROM procrastinate_jobs WHERE queue_name = :lane"), {"lane": lane})
