"""The audit log: added to, read by its tenant, and removed by age alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncSession

from storage import audit
from storage.audit import BEGUN, LEFT, Entry
from storage.database import Database
from storage.errors import InvalidCursor, InvalidValue, StorageError
from storage.ids import time_ordered
from storage.tables import AuditEntry

OLD = datetime.now(UTC) - timedelta(days=30)
KEY = time_ordered()


def entry(**changes: Any) -> Entry:
    return Entry(
        **{"kind": "change", "method": "DELETE", "route": "/files/{id}", "key": KEY, "key_name": "k"} | changes
    )


async def old_row(session: AsyncSession, **changes: Any) -> None:
    await session.execute(insert(AuditEntry).values(entry().values(204) | {"created_at": OLD} | changes))


async def listed(database: Database, tenant: str, **filters: Any) -> tuple[audit.Listed, ...]:
    async with database.transaction(tenant) as session:
        return (await audit.page(session, **filters)).rows


async def test_an_entry_is_listed_once_with_its_outcome(database: Database, tenant: str) -> None:
    whole, cut = entry(object={"id": "f-1"}, request_id="r"), entry()
    await audit.write(database, tenant, whole)
    await audit.write(database, tenant, cut)
    assert [row.outcome for row in await listed(database, tenant)] == ["unanswered"] * 2
    for _ in range(2):  # the second time its connection was lost
        await audit.write(database, tenant, whole, 204)
    newest, oldest = await listed(database, tenant)
    assert (newest.id, newest.status, newest.outcome, newest.object) == (whole.id, 204, "done", {"id": "f-1"})
    assert (newest.key_id, newest.key_name, newest.request_id) == (KEY, "k", "r")
    assert (oldest.id, oldest.status, oldest.outcome) == (cut.id, BEGUN, "unanswered")


async def test_filters(database: Database, tenant: str) -> None:
    for status in (200, 303, 403, LEFT, 500, 503):
        await audit.write(database, tenant, entry(route=f"/{status}"), status)
    found = {}
    for outcome in audit.OUTCOMES:
        rows = await listed(database, tenant, outcome=outcome)
        assert {row.outcome for row in rows} == {outcome}
        found[outcome] = [row.status for row in rows]
    assert found == {"done": [303, 200], "refused": [403], "failed": [503, 500], "unanswered": [LEFT]}
    assert len(await listed(database, tenant, route="/403", key=KEY)) == 1
    assert await listed(database, tenant, key=time_ordered()) == ()
    assert await listed(database, tenant, since=datetime.now(UTC) + timedelta(hours=1)) == ()


async def test_pages(database: Database, tenant: str) -> None:
    made = [entry() for _ in range(5)]
    for each in made:
        await audit.write(database, tenant, each, 204)
    async with database.transaction(tenant) as session:
        first = await audit.page(session, limit=3)
        last = await audit.page(session, limit=3, cursor=first.next_cursor)
        assert [row.id for row in (*first.rows, *last.rows)] == [each.id for each in reversed(made)]
        assert last.next_cursor is None
        with pytest.raises(InvalidCursor):
            await audit.page(session, cursor="x")
        with pytest.raises(InvalidValue):
            await audit.page(session, limit=501)


async def test_any_text_is_kept_as_far_as_it_can_be(database: Database, tenant: str) -> None:
    await audit.write(database, tenant, entry(object={"id": "a\0b\ud800" + "x" * 1000}), 404)
    (row,) = await listed(database, tenant)
    assert row.object["id"].startswith("a\ufffdb\ufffdxx") and len(row.object["id"]) == audit.LONGEST


async def test_entries_are_of_one_tenant(database: Database, tenant: str, other_tenant: str) -> None:
    await audit.write(database, tenant, entry(), 204)
    assert await listed(database, other_tenant) == ()
    with pytest.raises(StorageError, match="InsufficientPrivilege"):
        async with database.transaction(other_tenant) as session:
            await session.execute(insert(AuditEntry).values(entry().values(200) | {"tenant_id": tenant}))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET status = 200",
        "UPDATE audit SET status = 200 WHERE false",
        "DELETE FROM audit",
        "DELETE FROM audit WHERE false",
        "TRUNCATE audit",
    ],
)
async def test_nothing_is_changed_or_removed(database: Database, tenant: str, statement: str) -> None:
    async with database.transaction(tenant) as session:
        await old_row(session)
    for who in (tenant, None):
        with pytest.raises(StorageError, match="InsufficientPrivilege"):
            async with database.transaction(who) as session:
                await session.execute(text(statement))
    assert len(await listed(database, tenant)) == 1


async def test_old_entries_can_be_removed_and_young_ones_never(
    database: Database, tenant: str, other_tenant: str
) -> None:
    await audit.write(database, tenant, entry(), 204)
    for each in (tenant, other_tenant):
        async with database.transaction(each) as session:
            await old_row(session)
    week = datetime.now(UTC) - audit.KEPT
    for before in (datetime.now(UTC), week + timedelta(minutes=1), week.replace(tzinfo=None)):
        with pytest.raises(InvalidValue):
            async with database.transaction(tenant) as session:
                await audit.prune(session, before)
    async with database.transaction(tenant) as session:
        assert await audit.prune(session, OLD) == 0
        assert await audit.prune(session, week) == 1
    # Who sets the limit by hand gets no further.
    async with database.transaction(tenant) as session:
        await session.execute(text("SELECT set_config('whence.audit_before', 'infinity', true)"))
        await session.execute(text("DELETE FROM audit"))
    assert [row.created_at > week for row in await listed(database, tenant)] == [True]
    assert len(await listed(database, other_tenant)) == 1
