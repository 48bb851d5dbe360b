"""Row-level security: on one and the same pooled connection, a transaction sees its own tenant's rows and no others."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import delete, func, select, text, update

from storage import api_keys, explanations, models, tenants, training_files
from storage.database import Database
from storage.errors import NotFound, StorageError
from storage.tables import ApiKey, Explanation, Model, Table, Tenant, TrainingFile

OWNED = (ApiKey, Model, Explanation, TrainingFile)


async def fill(database: Database, tenant: str) -> str:
    """One row in each table; the API key's secret."""
    async with database.transaction(tenant) as session:
        _, secret = await api_keys.create(session, tenant=tenant, name="k", scopes=["read"])
        await models.add(session, name="m", kind="causal-lm", path="/m")
        id = training_files.new_id()
        of_file = {"purpose": "fine-tune", "type": "jsonl", "bytes": 1, "digest": b"d" * 32, "lines": 1}
        await training_files.add(session, id=id, filename="f", **of_file)
    await explanations.add(database, tenant, **explanation())
    return secret


def explanation(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "id": explanations.new_id(),
        "kind": "explain",
        "model": "m",
        "model_digest": "d",
        "request_key": b"key",
        "request": {"prompt": "p"},
        "attribution": {"values": [1.0]},
        "seconds": 0.5,
        "forwards": 3,
    }
    return fields | changes


@pytest.mark.parametrize("table", OWNED)
async def test_other_tenants_rows_are_out_of_reach(
    database: Database, tenant: str, other_tenant: str, table: type[Any]
) -> None:
    await fill(database, tenant)
    async with database.transaction(tenant) as session:
        assert await session.scalar(select(func.count()).select_from(table)) == 1
    for who in (other_tenant, None):
        async with database.transaction(who) as session:
            assert await session.scalar(select(func.count()).select_from(table)) == 0
            changed = await session.execute(update(table).values(created_at=func.now()).returning(table.tenant_id))
            assert changed.all() == []
            assert (await session.execute(delete(table).returning(table.tenant_id))).all() == []
    async with database.transaction(tenant) as session:
        assert await session.scalar(select(func.count()).select_from(table)) == 1


async def test_nothing_is_written_for_another_tenant(database: Database, tenant: str, other_tenant: str) -> None:
    for who in (other_tenant, None):
        with pytest.raises(StorageError, match="InsufficientPrivilege"):
            async with database.transaction(who) as session:
                await api_keys.create(session, tenant=tenant, name="k", scopes=["read"])
        with pytest.raises(StorageError, match="InsufficientPrivilege"):
            async with database.transaction(who) as session:
                await session.execute(text("INSERT INTO tenants VALUES ('intruder')"))
    with pytest.raises(StorageError):
        async with database.transaction() as session:
            await models.add(session, name="m", kind="causal-lm", path="/m")


async def test_rows_do_not_move_to_another_tenant(database: Database, tenant: str, other_tenant: str) -> None:
    await fill(database, tenant)
    with pytest.raises(StorageError, match="InsufficientPrivilege"):
        async with database.transaction(tenant) as session:
            await session.execute(update(Explanation).values(tenant_id=other_tenant))


async def test_tenants_are_listed_but_not_removed_by_others(database: Database, tenant: str, other_tenant: str) -> None:
    async with database.transaction() as session:
        assert {tenant, other_tenant} <= {row.id for row in await tenants.list_all(session)}
    async with database.transaction(other_tenant) as session:
        assert (await session.execute(delete(Tenant).where(Tenant.id == tenant).returning(Tenant.id))).all() == []
    async with database.transaction(tenant) as session:
        assert (await session.execute(delete(Tenant).returning(Tenant.id))).scalars().all() == [tenant]


async def test_a_removed_tenant_takes_its_rows_along(database: Database, tenant: str) -> None:
    secret = await fill(database, tenant)
    async with database.transaction(tenant) as session:
        await session.execute(delete(Tenant))
    assert await api_keys.find_by_secret(database, secret) is None


async def test_the_secret_opens_its_own_key_only(database: Database, tenant: str, other_tenant: str) -> None:
    secret = await fill(database, tenant)
    await fill(database, other_tenant)
    async with database.transaction(key_hash=api_keys.digest(secret)) as session:
        assert [key.tenant_id for key in await api_keys.list_all(session)] == [tenant]
        assert await models.list_all(session) == []
        changed = await session.execute(update(ApiKey).values(name="x").returning(ApiKey.id))
        assert changed.all() == []
    async with database.transaction() as session:
        assert await api_keys.list_all(session) == []


async def test_a_failed_transaction_leaves_no_tenant_behind(database: Database, tenant: str) -> None:
    await fill(database, tenant)
    with pytest.raises(NotFound):
        async with database.transaction(tenant) as session:
            await models.get(session, "none")
    async with database.transaction() as session:
        assert await models.list_all(session) == []


async def test_every_table_is_protected(database: Database) -> None:
    query = text(
        "SELECT relname, relrowsecurity AND relforcerowsecurity, EXISTS (SELECT FROM pg_policy WHERE polrelid = c.oid) "
        "FROM pg_class c WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace"
    )
    async with database.transaction() as session:
        protected = {name: forced and policies for name, forced, policies in await session.execute(query)}
    assert protected.pop("alembic_version") is False
    # The job library's own tables hold no more of a job than its tenant and its id.
    protected = {name: safe for name, safe in protected.items() if not name.startswith("procrastinate_")}
    assert protected == dict.fromkeys(Table.metadata.tables, True)


@pytest.mark.parametrize("table", Table.metadata.sorted_tables, ids=str)
def test_the_tenant_is_in_every_key(table: Any) -> None:
    column = "id" if table.name == "tenants" else "tenant_id"
    assert column in table.primary_key.columns
    assert all(column in key.column_keys for key in table.foreign_key_constraints)
