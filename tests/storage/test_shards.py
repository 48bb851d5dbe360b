"""Shards of jobs: cut by what is stored, leased once, stored once."""

from __future__ import annotations

from uuid import UUID

import numpy as np

from storage import jobs, scores, shards
from storage.database import Database
from storage.ids import time_ordered
from storage.monitored_tables import Inference
from storage.scores import Scores, Wanted
from storage.shards import Left, Shard
from tests.storage.monitored import filled

IDS = [f"u-{place}" for place in range(7)]


async def prepared(database: Database, tenant: str) -> tuple[UUID, Wanted, list[Inference]]:
    """A job, and seven inferences that lack scores."""
    model_id, _, rows = await filled(database, tenant, IDS)
    id = time_ordered()
    async with database.transaction(tenant) as session:
        assert await jobs.add(session, id=id, kind="explain-inferences", model="m", request={}) is not None
    return id, Wanted(model_id, "lime", 7), rows


async def test_shards_are_cut_by_what_lacks_scores(database: Database, tenant: str, other_tenant: str) -> None:
    id, wanted, rows = await prepared(database, tenant)
    seqs = [row.seq for row in rows]
    async with database.transaction(tenant) as session:
        one = Scores(7, np.array([seqs[1]]), np.zeros((1, 6)), [{}])
        await scores.add(session, wanted.model_id, "lime", one)
        assert await shards.cut(session, id, wanted, rows=2, most=9) == Left(3, 3, 6)
        found = [await shards.lease(session, id, 60) for _ in range(4)]
        assert found == [Shard(0, seqs[0], seqs[2], 2, 1), Shard(1, *seqs[3:5], 2, 1), Shard(2, *seqs[5:], 2, 1), None]
        again = await scores.lacking(session, wanted, last=seqs[3])
        assert [row.seq for row in again] == [seqs[0], seqs[2], seqs[3]]
    async with database.transaction(other_tenant) as session:
        assert await shards.left(session, id) == Left(0, 0, 0)
    async with database.transaction(tenant) as session:
        assert await shards.cut(session, id, wanted, rows=2, most=2) == Left(2, 2, 4)  # the first ones
        assert not await shards.finish(session, id, Shard(2, *seqs[5:], 2, 1))  # of those before
        await shards.forget(session, id)
        assert await shards.left(session, id) == Left(0, 0, 0) and await shards.lease(session, id, 60) is None


async def test_only_the_last_lease_is_stored_and_only_once(database: Database, tenant: str) -> None:
    id, wanted, _ = await prepared(database, tenant)
    async with database.transaction(tenant) as session:
        await shards.cut(session, id, wanted, rows=7, most=1)
        late = await shards.lease(session, id, -1)
    async with database.transaction(tenant) as session:
        now = await shards.lease(session, id, 60)
        assert late is not None and now is not None and (late.lease, now.lease) == (1, 2)
        assert not await shards.renew(session, id, late, 60) and not await shards.release(session, id, late)
        assert not await shards.finish(session, id, late)
        assert await shards.left(session, id) == Left(1, 0, 7)
        assert await shards.renew(session, id, now, 60) and await shards.finish(session, id, now)
        assert not await shards.finish(session, id, now) and not await shards.release(session, id, now)
        assert await shards.left(session, id) == Left(0, 0, 0) and await shards.lease(session, id, 60) is None


async def test_shards_go_with_their_job(database: Database, tenant: str) -> None:
    id, wanted, _ = await prepared(database, tenant)
    async with database.transaction(tenant) as session:
        await shards.cut(session, id, wanted, rows=1, most=9)
        assert await jobs.is_wanted(session, id)
        await jobs.cancel(session, id)
        assert not await jobs.is_wanted(session, id)
        await jobs.forget(session, kind="explain-inferences", model="m", keep=0)
        assert await shards.left(session, id) == Left(0, 0, 0)
