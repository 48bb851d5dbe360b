"""Searches of stored explanations: what is found, page by page, and what older releases have stored."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import NullPool, create_engine, text

from storage import explanations, migrations
from storage.database import Database, postgres_url
from storage.explanations import Filter
from storage.migrations import migrate
from storage.tables import Explanation
from tests.postgres import Server
from tests.storage.test_tenancy import explanation


async def ids(database: Database, tenant: str, **filter: Any) -> list[UUID]:
    """Of all pages of two rows."""
    found: list[UUID] = []
    cursor: str | None = None
    while True:
        async with database.transaction(tenant) as session:
            page = await explanations.page(session, Filter(**filter), cursor=cursor, limit=2)
        found += [row.id for row in page.rows]
        cursor = page.next_cursor
        if cursor is None:
            return found


async def add(database: Database, tenant: str, prompt: str, target: str = "", **more: Any) -> UUID:
    fields = explanation(prompt=prompt, target=target, **more)
    await explanations.add(database, tenant, **fields)
    return UUID(str(fields["id"]))


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("oslo", True),
        ("  OSLO ", True),
        ("in oslo.\n", True),
        ("anna   lives", True),
        ("straße", True),
        ("STRASSE", True),
        ("cafe\u0301", True),
        ("rome", True),
        ("", True),
        (" \n", True),
        ("osl%", False),
        ("_slo", False),
        ("lives oslo", False),
        ("\\", False),
        ("'; DROP TABLE explanations; --", False),
        ("\0", True),
        ("\ud800", True),
        ("\ufffd", True),
        ("\0\0", False),
    ],
    ids=ascii,
)
async def test_a_search_finds_parts_of_texts(database: Database, tenant: str, search: str, found: bool) -> None:
    id = await add(database, tenant, "Anna\nlives in  OSLO. Caf\u00e9 Stra\u00dfe \0", " Rome")
    assert await ids(database, tenant, search=search) == ([id] if found else [])


async def test_lists_show_how_texts_begin(database: Database, tenant: str) -> None:
    await add(database, tenant, "\0\ud800" + "p" * 300, "t" * 300)
    async with database.transaction(tenant) as session:
        (row,) = (await explanations.page(session)).rows
    assert (row.prompt, row.target) == ("\ufffd\ufffd" + "p" * 198, "t" * 200)


async def test_of_long_texts_the_beginning_is_found(database: Database, tenant: str) -> None:
    id = await add(database, tenant, "p" * 15_996 + "near far" + "p" * 200_000, "t" * 3_999 + "!?")
    assert await ids(database, tenant, search="near") == [id] == await ids(database, tenant, search="t!")
    assert await ids(database, tenant, search="far") == [] == await ids(database, tenant, search="!?")


async def test_pages_of_a_search_look_at_so_many_rows_and_miss_none(
    database: Database, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explanations, "SCANNED", 3)
    stored = [await add(database, tenant, f"number {place}" + " rare" * (place % 7 == 0)) for place in range(20)]
    assert await ids(database, tenant, search="rare") == [stored[14], stored[7], stored[0]]
    assert await ids(database, tenant, search="number") == stored[::-1]
    assert await ids(database, tenant, search="nothing") == []
    async with database.transaction(tenant) as session:
        first = await explanations.page(session, Filter(search="rare"), limit=2)
    assert first.rows == () and first.next_cursor is not None


async def test_pages_of_a_search_read_so_many_bytes(
    database: Database, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of words that Postgres would make small."""
    monkeypatch.setattr(explanations, "SCANNED_BYTES", 40_000)
    stored = [await add(database, tenant, f"number {place} " + "p" * 15_000) for place in range(9)]
    assert await ids(database, tenant, search="number") == stored[::-1]
    async with database.transaction(tenant) as session:
        page = await explanations.page(session, Filter(search="number 5"))
        assert page.rows == () and page.next_cursor is not None
        page = await explanations.page(session, Filter(search="number 5"), cursor=page.next_cursor)
    assert [row.id for row in page.rows] == [stored[5]]


async def test_filters_go_together(database: Database, tenant: str, other_tenant: str) -> None:
    await add(database, other_tenant, "theirs and ours")
    first = await add(database, tenant, "ours", kind="influence", model="a")
    second = await add(database, tenant, "ours", kind="completion", model="a")
    third = await add(database, tenant, "ours", kind="completion", model="b")
    assert await ids(database, tenant, search="our") == [third, second, first]
    assert await ids(database, tenant, search="our", model="a") == [second, first]
    assert await ids(database, tenant, search="our", model="a", kind="influence") == [first]
    async with database.transaction(tenant) as session:
        times = [(await explanations.get(session, id)).created_at for id in (first, second)]
    assert await ids(database, tenant, until=times[1]) == [first]
    assert await ids(database, tenant, since=times[1], until=times[1] + timedelta(microseconds=1)) == [second]
    assert await ids(database, tenant, search="theirs") == []


@pytest.mark.parametrize("search", ["0 end", ""])
async def test_all_that_are_meant_are_found_in_one_pass(
    database: Database, tenant: str, monkeypatch: pytest.MonkeyPatch, search: str
) -> None:
    """Each stretch begins where the one before has ended, so that no row is looked at twice."""
    monkeypatch.setattr(explanations, "SCANNED", 2)
    stored = [await add(database, tenant, f"{place % 2} end") for place in range(5)]
    meant = [stored[4], stored[2], stored[0]] if search else stored[::-1]
    stretches, after = [], None
    while not stretches or after is not None:
        async with database.transaction(tenant) as session:
            found = await explanations.stretch(session, Filter(search=search), after=after)
            rows = await explanations.whole(session, found.ids)
        assert all(isinstance(row, Explanation) and row.request == {"prompt": "p"} for row in rows)
        assert [row.id for row in rows] == list(found.ids)
        stretches.append(found.ids)
        after = found.end
    assert [id for ids in stretches for id in ids] == meant and len(stretches) == 3


OLD = (
    (
        {"prompt": [{"type": "text", "data": "Caf\u00e9 \0\ud800"}, {"type": "token_ids", "data": [1]}], "target": ""},
        {"targets": [{"text": " Os"}, {"text": "lo"}]},
        ("Caf\u00e9 \ufffd\ufffd", " Oslo", "oslo\ncaf\u00e9 \ufffd\ufffd"),
    ),
    (
        {"prompt": [{"type": "text", "data": "a"}, {"type": "text", "data": "B"}], "target": "T"},
        {"targets": []},
        ("a\nB", "T", "t\na b"),
    ),
    (
        {"question": "Who?", "answer": None, "system_prompt": None},
        {"answer": "Anna"},
        ("Who?", "Anna", "anna\nwho?"),
    ),
    ({"prompt": "of no known form"}, {"values": [1.0]}, ("", "", "\n")),
)


async def test_what_was_stored_before_can_be_found(postgres: Server) -> None:
    with postgres.empty_database() as url:
        engine = create_engine(postgres_url(url), poolclass=NullPool)
        with engine.begin() as connection:
            command.upgrade(migrations._config(connection), "0008")
        with engine.begin() as connection:
            for tenant in ("one", "two"):
                connection.execute(text("SELECT set_config('whence.tenant', :name, true)"), {"name": tenant})
                connection.execute(text("INSERT INTO tenants (id) VALUES (:name)"), {"name": tenant})
                for request, attribution, _ in OLD:
                    connection.execute(
                        text(
                            "INSERT INTO explanations (id, kind, model, model_digest, request_key, request, "
                            "attribution, seconds, forwards) "
                            "VALUES (:id, 'k', 'm', 'd', 'key', :request, :attribution, 1, 1)"
                        ),
                        {
                            "id": explanations.new_id(),
                            "request": json.dumps(request),
                            "attribution": json.dumps(attribution),
                        },
                    )
        migrate(url)
        with engine.begin() as connection:
            for tenant in ("one", "two"):
                connection.execute(text("SELECT set_config('whence.tenant', :name, true)"), {"name": tenant})
                rows = connection.execute(text("SELECT prompt, target, words FROM explanations ORDER BY id")).all()
                assert [tuple(row) for row in rows] == [wanted for _, _, wanted in OLD]


@pytest.mark.parametrize("most", [1, 250, 600, 10**9])
async def test_what_was_stored_before_is_read_in_parts_of_so_many_bytes(
    database: Database, tenant: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that is larger comes alone; no row is left out, or read twice."""
    migration: Any = ScriptDirectory(str(migrations.SCRIPTS)).get_revision("0009").module
    monkeypatch.setattr(migration, "ROWS", 4)
    for place in range(9):
        await add(database, tenant, "p", request={"prompt": "p" * (500 if place == 3 else 80)}, attribution={})
    async with database.transaction(tenant) as session:
        connection = await session.connection()
        found = await connection.run_sync(lambda plain: list(migration.ranges(plain, most)))
        lengths = "SELECT id, octet_length(request::text) + octet_length(attribution::text) AS size FROM explanations"
        sizes = {row.id: row.size for row in await session.execute(text(lengths))}
    ids = sorted(sizes)
    parts = [[id for id in ids if first <= id <= last] for first, last in found]
    assert [id for part in parts for id in part] == ids
    assert all(len(part) == 1 or sum(sizes[id] for id in part) <= most for part in parts)
    assert all(len(part) <= 4 for part in parts)
