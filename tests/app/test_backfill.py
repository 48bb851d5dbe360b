"""Explaining stored inferences by several workers: shared, each shard once, and never in the way of other jobs."""

from __future__ import annotations

import asyncio
from collections import Counter
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


@pytest.fixture
def explained_by(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str, list[str]]]:
    """Shards of two rows that take their time; who explained which rows of which model."""
    monkeypatch.setattr(backfill, "SHARD_ROWS", 2)
    found: list[tuple[int, str, list[str]]] = []
    explained = Share.explained

    async def slow(share: Share, held: Held) -> Any:
        ids = [row.partner_inference_id for row in held.rows]
        found.append((id(share.explainer), share.model.definition.partner_model_id, ids))
        await asyncio.sleep(SLOW)
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


async def test_all_idle_workers_share_a_backfill(
    start: Start, artifact: Path, explained_by: list[tuple[int, str, list[str]]]
) -> None:
    async with start() as one:
        name, id = await prepared(one, artifact)
        await enabled(one, id, explanation_nsamples=60)
        await settled(one, name)
        alone = await scored(one, id)
        assert {who for who, *_ in explained_by} == {next(who for who, *_ in explained_by)}
        shares = Counter(tuple(ids) for *_, ids in explained_by)
        explained_by.clear()
        async with start(), start():
            await enabled(one, id, explanation_nsamples=61)
            await settled(one, name)
            workers = Counter(who for who, *_ in explained_by)
            assert Counter(tuple(ids) for *_, ids in explained_by) == shares  # the same shards, each once
            await enabled(one, id, explanation_nsamples=60)
            jobs = await settled(one, name)
        assert await scored(one, id) == alone
    assert len(workers) == 3, workers
    assert all((job["kind"], job["done"], job["total"]) == ("explain-inferences", COUNT, COUNT) for job in jobs)


async def test_a_helper_makes_way_for_a_job_that_waits(
    start: Start, artifact: Path, explained_by: list[tuple[int, str, list[str]]]
) -> None:
    async with start() as one, start():
        large, small = await prepared(one, artifact), await prepared(one, artifact, count=2)
        await enabled(one, large[1], explanation_nsamples=60)
        await until(lambda: len({who for who, *_ in explained_by}) == 2)
        await enabled(one, small[1], explanation_nsamples=60)
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
