"""Training files: their rows, and their contents on disk."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from storage import training_files
from storage.content import content_path, read_content, remove_content, sweep_contents, write_content
from storage.database import Database
from storage.errors import InUse, InvalidValue, NotFound
from storage.training_tables import TrainingFile

USED = """CREATE TABLE users_of_files (tenant_id text, file uuid,
FOREIGN KEY (tenant_id, file) REFERENCES training_files (tenant_id, id))"""


async def added(database: Database, tenant: str, filename: str, **changes: Any) -> TrainingFile:
    fields = {"purpose": "fine-tune", "type": "jsonl", "bytes": 10, "digest": b"d" * 32, "lines": 1, **changes}
    async with database.transaction(tenant) as session:
        return await training_files.add(session, id=training_files.new_id(), filename=filename, **fields)


async def names(database: Database, tenant: str, **how: Any) -> list[str]:
    async with database.transaction(tenant) as session:
        return [file.filename for file in await training_files.page(session, **how)]


async def test_a_file_is_found_renamed_and_removed(database: Database, tenant: str, other_tenant: str) -> None:
    file = await added(database, tenant, "a.jsonl", bytes=2**40, digest=bytes(range(32)), lines=7)
    async with database.transaction(tenant) as session:
        found = await training_files.get(session, file.id)
        assert (found.bytes, found.digest, found.lines) == (2**40, bytes(range(32)), 7)
        assert await training_files.list_ids(session) == {file.id}
        assert (await training_files.rename(session, file.id, "../b")).filename == "../b"
    for who, id in ((other_tenant, file.id), (tenant, training_files.new_id())):
        async with database.transaction(who) as session:
            for work in (
                training_files.get(session, id),
                training_files.rename(session, id, "c"),
                training_files.remove(session, id),
            ):
                with pytest.raises(NotFound):
                    await work
    async with database.transaction(tenant) as session:
        await training_files.remove(session, file.id)
        assert await training_files.list_ids(session) == set()


async def test_pages(database: Database, tenant: str) -> None:
    await added(database, tenant, "b", bytes=3)
    await added(database, tenant, "a", bytes=2, type="parquet")
    await added(database, tenant, "c", bytes=1, purpose="alignment")
    assert await names(database, tenant) == ["c", "a", "b"]
    assert await names(database, tenant, descending=False) == ["b", "a", "c"]
    assert await names(database, tenant, sort="filename", descending=False) == ["a", "b", "c"]
    assert await names(database, tenant, sort="size") == ["b", "a", "c"]
    assert await names(database, tenant, sort="type") == ["a", "c", "b"]
    assert await names(database, tenant, offset=1, limit=1) == ["a"]
    assert await names(database, tenant, offset=2**62) == []
    assert await names(database, tenant, purpose="alignment") == ["c"]
    for how in ({"limit": 0}, {"limit": 10_001}, {"offset": -1}, {"offset": 2**63}):
        with pytest.raises(InvalidValue):
            await names(database, tenant, **how)


async def test_a_name_that_cannot_be_stored(database: Database, tenant: str) -> None:
    with pytest.raises(InvalidValue):
        await added(database, tenant, "a\0b")


async def test_what_another_row_needs_stays(database: Database, tenant: str) -> None:
    file = await added(database, tenant, "a")
    with pytest.raises(InUse):
        async with database.transaction(tenant) as session:
            await session.execute(text(USED))
            await session.execute(text("INSERT INTO users_of_files VALUES (:t, :f)"), {"t": tenant, "f": file.id})
            await training_files.remove(session, file.id)
    async with database.transaction(tenant) as session:
        assert await training_files.list_ids(session) == {file.id}


def test_a_content_comes_back_and_is_the_servers_alone(tmp_path: Path) -> None:
    id = training_files.new_id()
    write_content(tmp_path, "t", id, b"\0\xff" * 1000)
    path = content_path(tmp_path, "t", id)
    assert read_content(tmp_path, "t", id) == b"\0\xff" * 1000
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert [entry.name for entry in path.parent.iterdir()] == [str(id)]
    with pytest.raises(NotFound):
        read_content(tmp_path, "other", id)
    remove_content(tmp_path, "t", id)
    remove_content(tmp_path, "t", id)
    with pytest.raises(NotFound):
        read_content(tmp_path, "t", id)


def test_a_content_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    id = training_files.new_id()
    content_path(tmp_path, "t", id).mkdir(parents=True)
    with pytest.raises(OSError):
        write_content(tmp_path, "t", id, b"a")
    assert [entry.name for entry in content_path(tmp_path, "t", id).parent.iterdir()] == [str(id)]


def test_only_old_strays_are_swept(tmp_path: Path) -> None:
    known, stray, fresh = (training_files.new_id() for _ in range(3))
    for id in (known, stray, fresh):
        write_content(tmp_path, "t", id, b"a")
    (content_path(tmp_path, "t", stray).with_name("x.part")).write_bytes(b"half")
    old = time.time() - 7200
    for name in (str(known), str(stray), "x.part"):
        os.utime(tmp_path / "files" / "t" / name, (old, old))
    assert sweep_contents(tmp_path, "t", {known}) == 2
    assert {path.name for path in (tmp_path / "files" / "t").iterdir()} == {str(known), str(fresh)}
    assert sweep_contents(tmp_path, "nobody", ()) == 0
