"""Explaining stored inferences by several workers: shared, each shard once, and never in the way of other jobs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from app import backfill
from app.backfill import Held, Share
from app.explainability import find_state, scorer_of
from storage import jobs, shards
from storage.ids import time_ordered
from tests.app import predictors
from tests.app.conftest import Running, Start, until
from tests.app.predictors import definition, records, rows
from tests.app.test_explainability import asked, created, enabled, referenced, registered, sent, settled

COUNT = 24
SLOW = 0.15


@pytest.fixture(scope="module")
def artifact(models_dir: Path) -> Path:
    return predictors.boosted(models_dir, "shared")


class Turns(list[tuple[int, str, list[str]]]):
    """Who explained which rows of which model; the shard at a place ends when `may_end` says so of it."""

    def __init__(self) -> None:
        self.may_end: Callable[[int], bool] = lambda _: True

    @property
    def workers(self) -> set[int]:
        return {who for who, *_ in self}


@pytest.fixture
def explained_by(monkeypatch: pytest.MonkeyPatch) -> Turns:
    """Shards of two rows that take their time."""
    monkeypatch.setattr(backfill, "SHARD_ROWS", 2)
    found, explained = Turns(), Share.explained

    async def slow(share: Share, held: Held) -> Any:
        ids, place = [row.partner_inference_id for row in held.rows], len(found)
        found.append((id(share.explainer), share.model.definition.partner_model_id, ids))
        await asyncio.sleep(SLOW)
        await until(lambda: found.may_end(place))
        return await explained(share, held)

    monkeypatch.setattr(Share, "explained", slow)
    return found


async def prepared(running: Running, artifact: Path, count: int = COUNT) -> tuple[str, str]:
    """Name and id of a model with inferences, which are not explained yet."""
    name = f"shared-{uuid4()}"
    await registered(running, artifact, name)
    id = await created(running, definition(name))
    await referenced(running, id, rows(60, seed=1))
    await sent(running, id, records(artifact, rows(count)))
    return name, id


async def scored(running: Running, id: str) -> list[str]:
    names = [{"property": each} for each in ("partner_inference_id", "explainer_attribute", "explainer_score")]
    found = await asked(running, id, select=names)
    return sorted(str(sorted(each.items())) for each in found)


async def test_all_idle_workers_share_a_backfill(start: Start, artifact: Path, explained_by: Turns) -> None:
    async with start() as one:
        name, id = await prepared(one, artifact)
        await enabled(one, id, explanation_nsamples=60)
        await settled(one, name)
        alone = await scored(one, id)
        assert len(explained_by.workers) == 1
        shares = Counter(tuple(ids) for *_, ids in explained_by)
        explained_by.clear()
        async with start(), start():
            explained_by.may_end = lambda _: len(explained_by.workers) == 3  # whoever is idle has time to come
            await enabled(one, id, explanation_nsamples=61)
            await settled(one, name)
            workers = Counter(who for who, *_ in explained_by)
            assert Counter(tuple(ids) for *_, ids in explained_by) == shares  # the same shards, each once
            await enabled(one, id, explanation_nsamples=60)
            jobs = await settled(one, name)
        assert await scored(one, id) == alone
    assert len(workers) == 3, workers
    assert all((job["kind"], job["done"], job["total"]) == ("explain-inferences", COUNT, COUNT) for job in jobs)


async def test_a_helper_makes_way_for_a_job_that_waits(start: Start, artifact: Path, explained_by: Turns) -> None:
    asked_at: list[int] = []

    def may_end(place: int) -> bool:
        """The small job is asked for while two are at work on the large one, and nobody is done before it is over."""
        turns = [model for _, model, _ in explained_by]
        if turns[place] == small[0] or (asked_at and place < asked_at[0]):
            return True
        if not asked_at or small[0] not in turns:
            return False
        later = explained_by[turns.index(small[0]) :]
        return place < turns.index(small[0]) or len({who for who, model, _ in later if model == large[0]}) == 2

    async with start() as one, start():
        large, small = await prepared(one, artifact), await prepared(one, artifact, count=2)
        explained_by.may_end = may_end
        await enabled(one, large[1], explanation_nsamples=60)
        await until(lambda: len(explained_by.workers) == 2)
        await enabled(one, small[1], explanation_nsamples=60)
        asked_at.append(len(explained_by))
        (quick,) = await settled(one, small[0])
        (slow,) = await settled(one, large[0])
    assert quick["finished_at"] < slow["finished_at"]
    turns = [model for _, model, _ in explained_by]
    assert turns.index(small[0]) < len(turns) - 2  # others of the large one came after
    assert len({tuple(ids) for _, model, ids in explained_by if model == large[0]}) == turns.count(large[0])
    assert (
        len({who for who, model, _ in explained_by[turns.index(small[0]) :] if model == large[0]}) == 2
    )  # it came back


async def test_a_worker_that_comes_back_too_late_stores_nothing(
    start: Start, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start(worker=False) as idle:
        _, id = await prepared(idle, artifact, count=3)
        explainer = idle.server.explainer
        await enabled(idle, id, explanation_nsamples=60)
        model, state = await find_state(explainer, "default", id)
        scorer = await scorer_of(explainer, "default", model, state)
        job = time_ordered()
        share = Share(explainer, "default", job, model, scorer, state.acting)
        async with share.transaction() as session:
            assert await jobs.add(session, id=job, kind="explain-inferences", model="m", request={})
            await shards.cut(session, job, share.wanted(0), rows=3, most=1)
        monkeypatch.setattr(backfill, "LEASE_SECONDS", -1.0)
        async with share.transaction() as session:
            late = await share.leased(session)
        assert late is not None and len(late.rows) == 3
        outcomes = await share.explained(late)
        monkeypatch.setattr(backfill, "LEASE_SECONDS", 60.0)
        async with share.transaction() as session:
            assert await share.leased(session)  # another worker
            await share.store(session, late, outcomes)
        assert await asked(idle, id) == []
        async with share.transaction() as session:
            await jobs.cancel(session, job)
        with pytest.raises(backfill.Outdated):
            async with share.transaction() as session:
                await share.store(session, late, outcomes)
        (waiting,) = [each for each in (await idle.client.get("/jobs")).json()["jobs"] if each["state"] == "queued"]
        await idle.client.delete(f"/jobs/{waiting['id']}")
        assert UUID(waiting["id"]) != job
