"""What a task on a node does for a job, called here as a node calls it: it helps, or says why it cannot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

import pytest

from app import training_material
from app.backfill import Share
from app.device import Steps
from app.explainability import KIND, find_state, scorer_of
from app.influence_build import Build
from app.influence_ground import ground_of
from app.runtime import SharedJob
from app.shard_tasks import Ended, take_part
from explainers.influence.shards import shard_path
from storage import influence, jobs, shards
from storage.database import home
from storage.ids import time_ordered
from tests.app import predictors
from tests.app.conftest import Running, Start, empty
from tests.app.indexes import sent
from tests.app.test_backfill import prepared, scored
from tests.app.test_explainability import enabled, settled
from tests.fine_tunes import save_base, save_fine_tune, training_file
from tests.postgres import Server as Postgres

Environment = Callable[..., None]


@pytest.fixture(scope="module")
def folders(models_dir: Path) -> Path:
    save_fine_tune(models_dir / "task-tuned", save_base(models_dir / "task-base"))
    return models_dir


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, postgres: Postgres, data_dir: Path) -> Environment:
    """Sets what a node has in its environment, which is this process's."""

    def put(**changes: str | None) -> None:
        for name, value in {"DATABASE_URL": postgres.url, "DATA_DIR": str(data_dir), **changes}.items():
            if value is None:
                monkeypatch.delenv(f"WHENCE_{name}", raising=False)
            else:
                monkeypatch.setenv(f"WHENCE_{name}", value)

    put()
    return put


@dataclass
class Led:
    """A build that somebody leads and does nothing for: its shards are planned, and its folder is there."""

    running: Running
    build: Build

    @property
    def shared(self) -> SharedJob:
        return SharedJob.of(self.build.job, self.build.id, "cpu")

    async def helped(self, shared: SharedJob | None = None, home_name: str | None = None) -> Ended:
        name = home_name or await home(self.running.server.explainer.database)
        return await asyncio.to_thread(take_part, shared or self.shared, name, 1)

    async def missing(self) -> int:
        return (await self.build.look()).missing


@pytest.fixture
async def led(start: Start, folders: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Led]:
    monkeypatch.setattr(training_material, "SHARD_TOKENS", 150)
    async with start(worker=False) as running:
        await empty(running)
        for name, folder, base in (("base", "task-base", None), ("tuned", "task-tuned", "base")):
            body = {"name": name, "kind": "causal-lm", "path": folder, "base": base}
            assert (await running.client.post("/models", json=body)).status_code == 201
        file = await sent(running, training_file())
        asked = await running.client.post("/models/tuned/influence-index", json={"training_files": [file]})
        explainer, id = running.server.explainer, UUID(asked.json()["id"])
        async with explainer.database.transaction(tenant="default") as session:
            job, request = await jobs.claim(session, id, stale=8, most=10) or pytest.fail("nobody works on it")
        build = Build(explainer, job, Steps(), await ground_of(explainer, job, UUID(request["index"])))
        await build.make_folder()
        async with build.transaction() as session:
            await influence.plan(session, build.id, build.ground.material.pieces)
        yield Led(running, build)
        await running.client.delete(f"/jobs/{id}")


async def test_a_node_computes_the_bytes_of_whoever_leads(led: Led, environment: Environment) -> None:
    count = await led.missing()
    assert count > 2 and await led.helped() == ("done", "")
    assert await led.missing() == 0 and not await led.build.lost()
    places = [shard_path(led.build.folder, number) for number in range(count)]
    theirs = [place.read_bytes() for place in places]
    async with led.build.transaction() as session:
        await influence.lose(session, led.build.id, range(count))
    await led.build.compute_all()
    assert [place.read_bytes() for place in places] == theirs


async def test_a_node_that_cannot_help_says_why_and_does_nothing(
    led: Led, environment: Environment, tmp_path: Path, postgres: Postgres
) -> None:
    count = await led.missing()
    environment(DATABASE_URL=None)
    assert await led.helped() == ("refused", "WHENCE_DATABASE_URL is not set there")
    environment(DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    assert await led.helped() == ("failed", "DatabaseUnavailable")
    environment(DATA_DIR=str(tmp_path))
    assert (await led.helped()).why.startswith("the folder of the index is not in its WHENCE_DATA_DIR")
    environment(QUEUE_LIMIT="none")
    assert (await led.helped()).why.startswith("its settings are wrong")
    environment(QUEUE_LIMIT=None)
    assert await led.helped(home_name="1/whence") == ("refused", "its WHENCE_DATABASE_URL is that of another database")
    other = await led.helped(replace(led.shared, versions=("0.0.1", "2.0.0")))
    assert other.how == "refused" and "('0.0.1', '2.0.0')" in other.why
    assert await led.missing() == count


async def test_a_node_that_would_compute_other_shards_computes_none(
    led: Led, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = await led.missing()
    monkeypatch.setattr(training_material, "SHARD_TOKENS", 300)
    ended = await led.helped()
    assert ended.how == "refused" and ended.why.startswith("its shards would be others")
    assert await led.missing() == count


async def test_a_node_without_the_models_says_so(led: Led, environment: Environment, folders: Path) -> None:
    (folders / "task-tuned").rename(folders / "away")
    try:
        ended = await led.helped()
    finally:
        (folders / "away").rename(folders / "task-tuned")
    assert ended.how == "refused" and ended.why.startswith("models or training data cannot be used there")
    assert str(folders) not in ended.why


async def test_help_ends_with_the_attempt(led: Led, environment: Environment) -> None:
    """Of another attempt none begins; of this one it waits for a shard that another has, until the job is cancelled."""
    count = await led.missing()
    assert await led.helped(replace(led.shared, attempt=2)) == ("done", "")
    assert await led.missing() == count
    async with led.build.transaction() as session:
        assert await influence.lease(session, led.build.id, 600.0)
    helping = asyncio.create_task(led.helped())
    for _ in range(600):
        if await led.missing() == 1:
            break
        await asyncio.sleep(0.1)
    assert await led.missing() == 1 and not helping.done()
    async with led.build.transaction() as session:
        await jobs.cancel(session, led.build.job.id)
    assert await asyncio.wait_for(helping, 120) == ("done", "")


async def test_a_node_explains_rows_as_a_worker_does(start: Start, models_dir: Path, environment: Environment) -> None:
    artifact = predictors.boosted(models_dir, "task-rows")
    async with start(worker=False) as idle:
        name, id = await prepared(idle, artifact, count=6)
        await enabled(idle, id, explanation_nsamples=60)
        share, shared = await led_backfill(idle, id)
        where = await home(idle.server.explainer.database)
        other = await asyncio.to_thread(take_part, replace(shared, device="cuda"), where, 1)
        assert other == ("refused", "its model would run on another device (cpu)")
        helping = asyncio.create_task(asyncio.to_thread(take_part, shared, where, 1))
        await while_some_are_left(share)
        async with share.transaction() as session:
            await jobs.cancel(session, share.id)
        assert await asyncio.wait_for(helping, 120) == ("done", "")
        theirs = await scored(idle, id)
    async with start() as worker:
        for samples in (61, 60):
            await enabled(worker, id, explanation_nsamples=samples)
            await settled(worker, name)
        assert theirs and await scored(worker, id) == theirs


async def led_backfill(idle: Running, id: str) -> tuple[Share, SharedJob]:
    """A job that somebody leads and does nothing for: its shards of two rows are cut."""
    explainer = idle.server.explainer
    model, state = await find_state(explainer, "default", id)
    scorer = await scorer_of(explainer, "default", model, state)
    share = Share(explainer, "default", time_ordered(), model, scorer, state.acting)
    async with share.transaction() as session:
        job = await jobs.add(session, id=share.id, kind=KIND, model="m", request={}, running=True)
        assert job is not None
        await shards.cut(session, share.id, share.wanted(0), rows=2, most=3)
    return share, SharedJob.of(job, model.id, scorer.device)


async def while_some_are_left(share: Share) -> None:
    for _ in range(600):
        async with share.transaction() as session:
            if not (await shards.left(session, share.id)).shards:
                return
        await asyncio.sleep(0.1)
    raise AssertionError("shards are left")
