"""Row-level security: on one and the same pooled connection, a transaction sees its own tenant's rows and no others."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Column, UniqueConstraint, delete, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from storage import api_keys, explanations, models, tenants, training_files
from storage.database import Database
from storage.errors import NotFound, StorageError
from storage.migrations import SCHEMA
from storage.tables import ApiKey, Explanation, Tenant

OWNED = [table for table in SCHEMA.sorted_tables if "tenant_id" in table.columns]
APPEND_ONLY = ("audit",)
"""Here not even its tenant changes or removes a row: see test_audit.py."""
SETTING = "current_setting('whence.tenant'::text, true))"
BY_SECRET = "(key_hash = decode(NULLIF(current_setting('whence.key_hash'::text, true), ''::text), 'hex'::text))"
OTHERS = {"tenants": {"true"}, "api_keys": {BY_SECRET}}
"""Policies of another kind: the list of tenants is everybody's to read, and a key is found by its secret."""
SAID = {"slot_kind": "number", "state": "queued"}
"""Values of columns that take only some."""
VALUES: dict[type[Any], Any] = {object: "v", int: 1, float: 1.0, bool: True, list: [], dict: {}}


def value_for(column: Column[Any]) -> Any:
    kind = column.type.python_type
    if kind in (UUID, bytes):  # each another one: secrets are unique over all tenants
        return uuid4() if kind is UUID else uuid4().bytes
    return datetime.now(UTC) if kind is datetime else SAID.get(column.name, VALUES[kind])


async def fill_all(session: AsyncSession, tenant: str) -> None:
    """One row in each table, whatever its columns are; what refers to a row takes its key from there."""
    made: dict[str, dict[str, Any]] = {}
    for table in OWNED:
        row: dict[str, Any] = {"tenant_id": tenant}
        for key in table.foreign_key_constraints:
            parent = made.get(key.referred_table.name, {"id": tenant})
            wanted = any(not column.nullable for column in key.columns if column.name != "tenant_id")
            row |= {each.parent.name: parent[each.column.name] for each in key.elements if wanted} | {
                "tenant_id": tenant
            }
        for column in table.columns:
            given = column.name in row or column.nullable or column.server_default is not None or column.identity
            row |= {} if given else {column.name: value_for(column)}
        made[table.name] = dict((await session.execute(insert(table).values(row).returning(table))).one()._mapping)


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
        "prompt": "p",
        "target": "t",
    }
    return fields | changes


async def counted(database: Database, who: str | None) -> dict[str, int]:
    async with database.transaction(who) as session:
        return {table.name: (await session.scalar(select(func.count()).select_from(table))) or 0 for table in OWNED}


async def test_other_tenants_rows_are_out_of_reach(database: Database, tenant: str, other_tenant: str) -> None:
    async with database.transaction(tenant) as session:
        await fill_all(session, tenant)
    assert await counted(database, tenant) == {table.name: 1 for table in OWNED}
    for who in (other_tenant, None):
        assert not any((await counted(database, who)).values())
        for table in OWNED:
            if table.name in APPEND_ONLY:
                continue
            async with database.transaction(who) as session:
                changed = update(table).values(tenant_id=table.c.tenant_id).returning(table.c.tenant_id)
                assert (await session.execute(changed)).all() == [], table.name
                assert (await session.execute(delete(table).returning(table.c.tenant_id))).all() == [], table.name
    assert await counted(database, tenant) == {table.name: 1 for table in OWNED}


async def test_no_table_takes_a_row_for_another_tenant(database: Database, tenant: str, other_tenant: str) -> None:
    """The rows are copies of ones that exist, so that nothing else stands against them."""
    async with database.transaction(tenant) as session:
        await fill_all(session, tenant)
        rows = {table: dict((await session.execute(select(table))).one()._mapping) for table in OWNED}
    for who in (other_tenant, None):
        for table, row in rows.items():
            with pytest.raises(StorageError, match="InsufficientPrivilege"):
                async with database.transaction(who) as session:
                    await session.execute(insert(table).values(row))


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
    """As Postgres knows them: row-level security, policies that compare the tenant, and the tenant in every key."""
    query = text(
        "SELECT relname, relrowsecurity AND relforcerowsecurity, "
        "(SELECT array_agg(concat_ws(' ', pg_get_expr(polqual, c.oid), pg_get_expr(polwithcheck, c.oid))) "
        "FROM pg_policy WHERE polrelid = c.oid), "
        "(SELECT array_agg(pg_get_constraintdef(k.oid)) FROM pg_constraint k WHERE conrelid = c.oid AND "
        "contype IN ('p', 'f')) "
        "FROM pg_class c WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace"
    )
    async with database.transaction() as session:
        found = {row[0]: row[1:] for row in await session.execute(query)}
    assert found.pop("alembic_version")[0] is False
    # The job library's own tables hold no more of a job than its tenant and its id.
    found = {name: facts for name, facts in found.items() if not name.startswith("procrastinate_")}
    assert set(found) == set(SCHEMA.tables)
    for name, (forced, policies, keys) in found.items():
        own = "id" if name == "tenants" else "tenant_id"
        assert forced and policies and keys, name
        assert all(re.match(rf"(PRIMARY|FOREIGN) KEY \({own}\b", key) for key in keys), (name, keys)
        for policy in set(policies) - OTHERS.get(name, set()):
            assert f"({own} = {SETTING}" in policy and " OR " not in policy, (name, policy)


@pytest.mark.parametrize("table", SCHEMA.sorted_tables, ids=str)
def test_the_tenant_is_in_every_key(table: Any) -> None:
    column = "id" if table.name == "tenants" else "tenant_id"
    assert column in table.primary_key.columns
    assert all(column in key.column_keys for key in table.foreign_key_constraints)
    unique = [each for each in table.constraints if isinstance(each, UniqueConstraint)]
    assert all(column in each.columns for each in unique) or table.name == "api_keys"  # a secret names its tenant
    assert all(column in index.columns for index in table.indexes)
