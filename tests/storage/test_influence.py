"""Influence indexes: what is leased, what is done, which one answers, and which files are in use."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from storage import influence, models, training_files
from storage.database import Database
from storage.errors import InUse, NotFound
from storage.influence import Lease, Piece


async def new_file(database: Database, tenant: str) -> UUID:
    id = training_files.new_id()
    async with database.transaction(tenant) as session:
        await training_files.add(
            session, id=id, filename="f", purpose="fine-tune", type="jsonl", bytes=1, digest=b"d", lines=1
        )
    return id


async def new_index(database: Database, tenant: str, files: list[UUID], model: str = "tuned") -> UUID:
    id = influence.new_id()
    async with database.transaction(tenant) as session:
        if model not in [row.name for row in await models.list_all(session)]:
            await models.add(session, name=model, kind="causal-lm", path="/models/tuned")
        given = {"model_digest": "sha256:1", "base_digest": None, "job": uuid4(), "config": {}}
        await influence.add(session, id=id, model=model, files=files, **given)
    return id


async def planned(database: Database, tenant: str, count: int, file: UUID | None = None) -> UUID:
    id = await new_index(database, tenant, [file or await new_file(database, tenant)])
    async with database.transaction(tenant) as session:
        await influence.plan(session, id, [Piece(each, b"key-%d" % each, each * 10, 100) for each in range(count)])
    return id


async def test_a_file_in_use_cannot_be_deleted(database: Database, tenant: str) -> None:
    file = await new_file(database, tenant)
    id = await new_index(database, tenant, [file])
    with pytest.raises(InUse):
        async with database.transaction(tenant) as session:
            await training_files.remove(session, file)
    async with database.transaction(tenant) as session:
        assert [row.id for row in await influence.files_of(session, id)] == [file]
        await influence.fail(session, id)
        await training_files.remove(session, file)


async def test_the_files_of_a_ready_index_stay_in_use(database: Database, tenant: str) -> None:
    file = await new_file(database, tenant)
    id = await new_index(database, tenant, [file])
    async with database.transaction(tenant) as session:
        await influence.publish(session, id, {})
        await influence.fail(session, id)
        assert (await influence.get(session, id)).state == "ready"
    with pytest.raises(InUse):
        async with database.transaction(tenant) as session:
            await training_files.remove(session, file)


async def test_an_index_goes_with_its_model(database: Database, tenant: str) -> None:
    file = await new_file(database, tenant)
    id = await planned(database, tenant, 2, file)
    async with database.transaction(tenant) as session:
        await models.remove(session, "tuned")
        with pytest.raises(NotFound):
            await influence.get(session, id)
        await training_files.remove(session, file)


async def test_unknown_files_and_those_of_others_are_refused(
    database: Database, tenant: str, other_tenant: str
) -> None:
    theirs = await new_file(database, other_tenant)
    for file in (theirs, uuid4()):
        with pytest.raises(NotFound):
            await new_index(database, tenant, [file])


async def test_each_shard_is_leased_once_until_its_lease_runs_out(database: Database, tenant: str) -> None:
    id = await planned(database, tenant, 2)
    async with database.transaction(tenant) as session:
        assert await influence.lease(session, id, 60) == Lease(0, 1)
        assert await influence.lease(session, id, -1) == Lease(1, 1)
    async with database.transaction(tenant) as session:
        assert await influence.lease(session, id, 60) == Lease(1, 2)  # the former one is over
        assert await influence.lease(session, id, 60) is None
        assert not await influence.renew(session, id, Lease(1, 1), 60)
        assert not await influence.release(session, id, Lease(1, 1))
        assert not await influence.keep(session, id, Lease(1, 1), "late")
        assert await influence.lease(session, id, 60) is None and not await influence.digests(session, id)
        assert await influence.release(session, id, Lease(0, 1))
        assert await influence.lease(session, id, 60) == Lease(0, 2)
        assert await influence.keep(session, id, Lease(1, 2), "sha")
        assert not await influence.keep(session, id, Lease(1, 2), "twice")
        assert await influence.digests(session, id) == {1: "sha"}


async def test_shards_of_a_build_that_was_given_up_are_leased_no_more(database: Database, tenant: str) -> None:
    id = await planned(database, tenant, 2)
    async with database.transaction(tenant) as session:
        assert await influence.lease(session, id, 60) == Lease(0, 1)
        await influence.fail(session, id)
        assert await influence.lease(session, id, 60) is None


async def kept(session: Any, id: UUID, number: int) -> None:
    """All shards up to that one are leased, and it is done."""
    while (lease := await influence.lease(session, id, 60)) is not None and lease.number < number:
        pass
    assert lease is not None and await influence.keep(session, id, lease, "sha")


async def test_progress_is_in_tokens_and_what_is_lost_is_missing_again(database: Database, tenant: str) -> None:
    id = await planned(database, tenant, 3)
    async with database.transaction(tenant) as session:
        await kept(session, id, 1)
        await influence.plan(session, id, [Piece(1, b"another", 0, 7)])  # as a second attempt does
        found = await influence.progress(session, id)
        assert (found.done, found.total, found.missing, found.free) == (100, 300, 2, 1)
        assert await influence.digests(session, id) == {1: "sha"}
        await influence.lose(session, id, [1])
        found = await influence.progress(session, id)
        assert (found.missing, found.free) == (3, 2)
        assert await influence.lease(session, id, 60) == Lease(1, 2)


async def test_the_same_content_is_found_in_a_ready_index(database: Database, tenant: str, other_tenant: str) -> None:
    first, second = await planned(database, tenant, 2), await planned(database, tenant, 3)
    theirs = await planned(database, other_tenant, 2)
    async with database.transaction(tenant) as session:
        await kept(session, first, 1)
        assert await influence.twin(session, second, b"key-1") is None  # still building
        await influence.publish(session, first, {"pairs": 2})
        found = await influence.twin(session, second, b"key-1")
        assert found is not None and (found.index_id, found.number, found.first, found.digest) == (first, 1, 10, "sha")
        assert await influence.twin(session, second, b"key-0") is None
    async with database.transaction(other_tenant) as session:
        assert await influence.twin(session, theirs, b"key-1") is None


async def test_the_newest_published_index_replaces_the_others(database: Database, tenant: str) -> None:
    first, second, third = [await planned(database, tenant, 1) for _ in range(3)]
    async with database.transaction(tenant) as session:
        await influence.publish(session, first, {})
        await influence.fail(session, second)
        await influence.publish(session, third, {"pairs": 1})
        (only,) = await influence.list_of(session, "tuned")
        assert (only.id, only.state, only.facts) == (third, "ready", {"pairs": 1})
        assert await influence.list_ids(session) == {third}


async def test_of_builds_that_were_given_up_one_keeps_its_shards(database: Database, tenant: str) -> None:
    """That which has most of what the last one was to have; the last one's row stays, and says how it ended."""
    first, second, third, fourth = [await planned(database, tenant, 3) for _ in range(4)]
    other = await new_index(database, tenant, [await new_file(database, tenant)])
    async with database.transaction(tenant) as session:
        for number in (0, 1):
            await kept(session, first, number)
        await influence.fail(session, first)
        found = await influence.twin(session, second, b"key-1")
        assert found is not None and (found.index_id, found.number, found.digest) == (first, 1, "sha")
        assert await failed(session) == [first]
        await kept(session, second, 0)
        await influence.fail(session, second)  # has less than the first
        assert await failed(session) == [second, first] and not await influence.digests(session, second)
        assert second not in await influence.list_ids(session) and first in await influence.list_ids(session)
        for number in (0, 1):
            await kept(session, third, number)
        await influence.fail(session, third)  # as much
        assert await failed(session) == [third]
        await influence.fail(session, other)  # before anybody knew its shards
        assert await failed(session) == [other, third] and len(await influence.digests(session, third)) == 2
        await influence.publish(session, fourth, {})
        assert await failed(session) == []


async def failed(session: Any) -> list[UUID]:
    """Those of the model that were given up, newest first."""
    return [row.id for row in await influence.list_of(session, "tuned") if row.state == "failed"]


async def test_an_index_that_was_given_up_is_never_published(database: Database, tenant: str) -> None:
    """Its worker may not know yet: the ready one goes on to answer, and its files stay."""
    file = await new_file(database, tenant)
    old, late = await new_index(database, tenant, [file]), await new_index(database, tenant, [file])
    async with database.transaction(tenant) as session:
        await influence.publish(session, old, {})
        await influence.abandon(session, (await influence.get(session, late)).job)
        await influence.abandon(session, (await influence.get(session, old)).job)
    with pytest.raises(NotFound):
        async with database.transaction(tenant) as session:
            await influence.publish(session, late, {})
    async with database.transaction(tenant) as session:
        assert {row.id: row.state for row in await influence.list_of(session, "tuned")} == {
            old: "ready",
            late: "failed",
        }
        assert await influence.files_of(session, late) == []
        assert [each.id for each in await influence.files_of(session, old)] == [file]
