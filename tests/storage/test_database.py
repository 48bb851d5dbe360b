"""Connections: restarts, refusals, and what error messages tell."""

from __future__ import annotations

import asyncio
import uuid

import pytest
from sqlalchemy import text

from storage import tenants
from storage.database import Database, Learnt, compiled, postgres_url
from storage.errors import DatabaseRefused, DatabaseUnavailable, InvalidValue, OutOfSpace, StorageError
from storage.tables import Tenant
from tests.postgres import Server, connection

OTHERS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = 'whence'"
ONE = compiled(text("SELECT CAST(:one AS integer) AS one"))
SLEEP = compiled(text("SELECT pg_sleep(CAST(:seconds AS float))"))


async def test_pooled_connections_that_died_cost_no_request(postgres: Server) -> None:
    database = Database.connect(postgres.url, pool_size=3)
    await asyncio.gather(*(hold(database) for _ in range(3)))
    with connection(postgres.superuser_url) as superuser:
        superuser.execute(OTHERS)
    await asyncio.gather(*(hold(database) for _ in range(3)))
    await database.close()


async def hold(database: Database) -> None:
    async with database.transaction() as session:
        await session.execute(text("SELECT pg_sleep(0.05)"))


async def test_a_question_survives_a_restart(postgres: Server) -> None:
    database = Database.connect(postgres.url, pool_size=3)
    await asyncio.gather(*(hold(database) for _ in range(3)))
    with connection(postgres.superuser_url) as superuser:
        superuser.execute(OTHERS)
    row = await database.ask(ONE, {"one": 1})
    assert row is not None and row.one == 1
    await database.close()


async def test_questions_keep_few_connections_to_themselves(postgres: Server) -> None:
    database = Database.connect(postgres.url, pool_size=4)
    await asyncio.gather(*(database.ask(SLEEP, {"seconds": 0.05}) for _ in range(8)))
    assert len(database.kept) == 1
    await asyncio.gather(*(hold(database) for _ in range(8)))
    with connection(postgres.superuser_url) as superuser:
        superuser.execute(OTHERS)
    assert (await asyncio.gather(*(database.ask(ONE, {"one": 1}) for _ in range(8))))[7].one == 1
    await database.close()
    assert database.kept == []


async def test_a_question_that_kills_its_connection_is_told(database: Database) -> None:
    with pytest.raises(DatabaseUnavailable):
        await database.ask(compiled(text("SELECT pg_terminate_backend(pg_backend_pid() + :x)")), {"x": 0})
    await database.ping()


async def test_a_question_is_one_transaction_of_one_tenant(database: Database, tenant: str) -> None:
    name = f"t-{uuid.uuid4().hex}"
    failing = compiled(
        text("WITH new AS (INSERT INTO tenants (id) VALUES (:name) RETURNING id) SELECT length(id) / 0 FROM new")
    )
    with pytest.raises(StorageError):
        await database.ask(failing, {"name": name})
    async with database.transaction() as session:
        assert name not in {row.id for row in await tenants.list_all(session)}
    shown = compiled(text("SELECT current_setting(:name, true) AS tenant"))
    row = await database.ask(shown, {"name": "whence.tenant"}, tenant=tenant)
    assert row is not None and row.tenant == tenant
    row = await database.ask(shown, {"name": "whence.tenant"})  # on the same pooled connection
    assert row is not None and not row.tenant


async def test_a_question_without_rows_or_result(database: Database) -> None:
    assert await database.ask(compiled(text("SELECT 1 WHERE :here")), {"here": False}) is None
    assert await database.ask(compiled(text("DELETE FROM tenants WHERE id = :id")), {"id": "nobody"}) is None


@pytest.mark.parametrize(
    "value", ["a'b", "a\\", "a\\'; DROP TABLE x; --", "é", '"', "$$", "%s", ":x", "%(value)s", ";"]
)
async def test_values_of_a_question_are_quoted(database: Database, value: str) -> None:
    row = await database.ask(compiled(text("SELECT CAST(:value AS text) AS shown")), {"value": value}, tenant=value)
    assert row is not None and row.shown == value


async def test_closing_waits_for_connections_in_use(postgres: Server) -> None:
    database = Database.connect(postgres.url, pool_size=1)
    begun = asyncio.Event()

    async def held() -> None:
        async with database.transaction() as session:
            await session.execute(text("SELECT 1"))
            begun.set()
            await session.execute(text("SELECT pg_sleep(0.05)"))

    task = asyncio.create_task(held())
    await begun.wait()
    await database.close()
    assert task.done()


async def test_a_cancelled_question_gives_its_connection_back(postgres: Server) -> None:
    database = Database.connect(postgres.url, pool_size=1)
    task = asyncio.create_task(database.ask(SLEEP, {"seconds": 600}))
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(database.ping(), 60)
    await database.close()


async def test_a_connection_lost_in_the_middle_is_told(database: Database, postgres: Server) -> None:
    with pytest.raises(DatabaseUnavailable):
        async with database.transaction() as session:
            with connection(postgres.superuser_url) as superuser:
                superuser.execute(OTHERS)
            await session.execute(text("SELECT 1"))
    await database.ping()


async def test_all_connections_taken(postgres: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.database.POOL_TIMEOUT_S", 0.1)
    database = Database.connect(postgres.url, pool_size=1)
    async with database.transaction():
        with pytest.raises(DatabaseUnavailable, match="in use"):
            await database.ping()
        with pytest.raises(DatabaseUnavailable, match="in use"):
            await database.ask(ONE, {"one": 1})
    await database.close()


async def test_no_database_there() -> None:
    database = Database.connect("postgresql://u:secret@/d?host=/nonexistent")
    with pytest.raises(DatabaseUnavailable) as caught:
        await database.ping()
    assert "secret" not in str(caught.value)
    with pytest.raises(DatabaseUnavailable) as caught:
        await database.ask(ONE, {"one": 1})
    assert "secret" not in str(caught.value)
    await database.close()


@pytest.mark.parametrize("url", ["sqlite:///x", "mysql://u:secret@h/d", "secret", ""])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(DatabaseRefused) as caught:
        Database.connect(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["postgres://u:p@h/d", "postgresql://u:p@h/d", "postgresql+psycopg2://u:p@h/d"])
def test_the_driver_is_ours(url: str) -> None:
    assert postgres_url(url).render_as_string(hide_password=False) == "postgresql+psycopg://u:p@h/d"


async def test_errors_do_not_quote_rows(database: Database, tenant: str) -> None:
    secret = f"prompt-{uuid.uuid4().hex}"
    row = "INSERT INTO explanations (id, kind, model) VALUES (gen_random_uuid(), 'x', :secret)"
    for statement, kind in ((row, StorageError), ("SELECT CAST(:secret AS text)::integer", InvalidValue)):
        with pytest.raises(kind) as caught:
            async with database.transaction(tenant) as session:
                await session.execute(text(statement), {"secret": secret})
        shown = [str(caught.value), repr(caught.value.__cause__)]
        assert caught.value.__suppress_context__
        assert not any(secret in part for part in shown)
    with pytest.raises(StorageError) as refused:
        await database.ask(
            compiled(text("SELECT CAST(CAST(:secret AS text) AS integer)")), {"secret": secret}, tenant=tenant
        )
    assert secret not in str(refused.value) and refused.value.__suppress_context__


async def test_an_error_undoes_the_transaction(database: Database, tenant: str) -> None:
    lost = f"t-{uuid.uuid4().hex}"
    with pytest.raises(ZeroDivisionError):
        async with database.transaction(lost) as session:
            await tenants.ensure(session, lost)
            raise ZeroDivisionError
    async with database.transaction() as session:
        assert lost not in {row.id for row in await tenants.list_all(session)}


async def test_a_cancelled_transaction_gives_its_connection_back(database: Database) -> None:
    task = asyncio.create_task(sleeping(database))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(database.ping(), 60)


async def sleeping(database: Database) -> None:
    async with database.transaction() as session:
        await session.execute(text("SELECT pg_sleep(600)"))


async def test_added_rows_are_written_without_a_flush(database: Database) -> None:
    name = f"t-{uuid.uuid4().hex}"
    async with database.transaction(name) as session:
        session.add(Tenant(id=name))
    async with database.transaction() as session:
        assert await session.get(Tenant, name) is not None


@pytest.mark.parametrize("value", ["a'b", "a\\", "a\\'; DROP TABLE x; --", "é", '"', "$$", "%s", ":x"])
async def test_settings_are_quoted(database: Database, value: str) -> None:
    async with database.transaction(value, b"\x00\xff") as session:
        shown = await session.execute(
            text("SELECT current_setting('whence.tenant'), current_setting('whence.key_hash')")
        )
        assert shown.one() == (value, "00ff")


async def test_a_question_cancelled_while_it_was_planned_harms_nobody(postgres: Server) -> None:
    """It was planned all the same, and nobody took note of it."""
    database = Database.connect(postgres.url, pool_size=4)
    asked = compiled(text("SELECT CAST(:a AS text) AS a"))
    assert (await database.ask(asked, {"a": "one"})).a == "one"
    (connection,) = database.kept
    connection.info[Learnt].planned.clear()
    for _ in range(3):
        assert (await database.ask(asked, {"a": "two"})).a == "two"
    await database.close()


async def test_a_question_is_planned_again_after_a_rollback(postgres: Server) -> None:
    """The driver plans what it runs often, and forgets all plans of the connection, ours too, when it rolls back."""
    database = Database.connect(postgres.url, pool_size=1)
    asked = compiled(text("SELECT CAST(:a AS text) AS a"))
    assert (await database.ask(asked, {"a": "one"})).a == "one"
    with pytest.raises(ZeroDivisionError):
        async with database.transaction() as session:
            for _ in range(10):
                await session.execute(text("SELECT CAST(:b AS text)"), {"b": "often"})
            raise ZeroDivisionError
    async with database.transaction() as session:
        await session.execute(text("SELECT CAST(:b AS text)"), {"b": "again"})
    assert (await database.ask(asked, {"a": "two"})).a == "two"
    await database.close()


async def test_a_full_disk_is_told(database: Database) -> None:
    """With the code that Postgres has for it, raised by Postgres itself."""
    raising = "DO $$ BEGIN RAISE EXCEPTION 'full' USING ERRCODE = 'disk_full'; END $$"
    with pytest.raises(OutOfSpace, match="disk of the database"):
        async with database.transaction() as session:
            await session.execute(text(raising))
