"""Machines with data directories of their own, one database and one store: they build together and answer alike."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import make_url

from app import influence_build, training_material
from app.backup import back_up, kept
from app.device import Steps
from app.index_files import IndexFiles
from app.influence_build import Build
from app.influence_ground import ground_of
from app.refusals import Refusal, StoreAway
from app.runtime import SharedJob
from app.shard_tasks import take_part
from app.shelf import Shelf
from app.store import open_store
from explainers.influence import generic
from storage import influence, jobs
from storage.database import home
from tests.app.conftest import Running, Start, empty
from tests.app.indexes import sent
from tests.fine_tunes import PAIRS, save_base, save_fine_tune, training_file
from tests.postgres import Server as Postgres


@pytest.fixture(scope="module")
def folders(models_dir: Path) -> Path:
    save_fine_tune(models_dir / "store-tuned", save_base(models_dir / "store-base"))
    return models_dir


class Machines:
    """Applications with data directories of their own, on one database and one store; none works on jobs by itself."""

    def __init__(self, start: Start, postgres: Postgres, place: Path, stack: AsyncExitStack) -> None:
        self.start, self.postgres, self.place, self.stack = start, postgres, place, stack

    @property
    def url(self) -> str:
        return f"file://{self.place}/store"

    async def add(self, name: str, **changes: Any) -> Running:
        own = {"data_dir": self.place / name, "database_url": self.postgres.url, "store_url": self.url}
        (self.place / name).mkdir(exist_ok=True)
        return await self.stack.enter_async_context(self.start(**own, worker=False, **changes))

    @contextmanager
    def away(self) -> Iterator[None]:
        store, elsewhere = self.place / "store", self.place / "elsewhere"
        store.rename(elsewhere)
        store.touch()
        yield
        store.unlink()
        elsewhere.rename(store)

    def stored(self, pattern: str) -> list[Path]:
        return sorted((self.place / "store").glob(pattern))


@pytest.fixture
async def machines(
    start: Start, postgres: Postgres, tmp_path: Path, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Machines]:
    monkeypatch.setattr(training_material, "SHARD_TOKENS", 150)
    monkeypatch.setattr(generic, "LONGEST", 8)
    async with AsyncExitStack() as stack:
        made = Machines(start, postgres, tmp_path, stack)
        yield made
        await empty(await made.add("last"))


async def asked_for(running: Running) -> str:
    """The job of an index of the training pairs."""
    await empty(running)
    for name, folder, base in (("base", "store-base", None), ("tuned", "store-tuned", "base")):
        body = {"name": name, "kind": "causal-lm", "path": folder, "base": base}
        assert (await running.client.post("/models", json=body)).status_code == 201
    return await asked_again(running, await sent(running, training_file()))


async def asked_again(running: Running, file: str) -> str:
    asked = await running.client.post("/models/tuned/influence-index", json={"training_files": [file]})
    return str(asked.json()["id"])


async def build_on(running: Running, job: str) -> Build:
    """This machine's attempt at the job."""
    explainer = running.server.explainer
    async with explainer.database.transaction(tenant="default") as session:
        claimed, request = await jobs.claim(session, UUID(job), stale=0, most=10) or pytest.fail("nobody works on it")
    return Build(explainer, claimed, Steps(), await ground_of(explainer, claimed, UUID(request["index"])))


async def ask(running: Running, pair: int = 2) -> tuple[int, Any]:
    """What was answered before is not asked of an index again."""
    question, answer = PAIRS[pair]
    body = {"model_id": "tuned", "question": question, "answer": answer}
    told = await running.client.post("/influence", json=body)
    return told.status_code, told.json()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


async def test_two_machines_build_one_index_and_a_third_answers_from_it(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = [await machines.add(name) for name in ("first", "second", "third")]
    job = await asked_for(first)
    leading = await build_on(first, job)
    async with leading.transaction() as session:
        await influence.plan(session, leading.id, leading.ground.material.pieces)
    count = (await leading.look()).missing
    assert count > 3
    # Another machine helps: it has the training file and the plan from the store and the database.
    other = second.server.explainer
    helping = Build(other, leading.job, Steps(), await ground_of(other, leading.job, leading.id))
    await helping.make_folder()
    kept_by = influence_build.influence.keep
    done: list[int] = []

    async def keeping(session: Any, id: UUID, lease: Any, digest: str) -> bool:
        done.append(lease.number)
        helping.makes_way = len(done) == 3
        return await kept_by(session, id, lease, digest)

    monkeypatch.setattr(influence_build.influence, "keep", keeping)
    monkeypatch.setattr(influence_build, "makes_way", lambda *_: asyncio.sleep(0, len(done) == 3))
    await helping.compute_all(helping=True)
    assert done == [0, 1, 2] and (await leading.look()).missing == count - 3
    # One of its shards is damaged in the store: that one is computed again, the others are not.
    async with leading.transaction() as session:
        digests = await influence.digests(session, leading.id)
    (place,) = machines.stored(f"indexes/default/{leading.id}/{digests[1]}")
    place.write_bytes(place.read_bytes()[:-1] + b"?")
    await leading.run()
    assert done == [0, 1, 2, *range(3, count), 1]
    shared = contents(leading.files.final)
    assert await kept_in_store(leading.files) == shared
    status, found = await ask(third)
    assert status == 200 and found["results"]
    assert contents(IndexFiles(third.server.explainer.shelf, "default", leading.id).final) == shared
    # The same index, built alone, has the same bytes.
    monkeypatch.setattr(Build, "known", lambda *_: asyncio.sleep(0))
    monkeypatch.setattr(Build, "known_generic", lambda *_: asyncio.sleep(0))
    (file,) = leading.ground.files
    await jobs_done(first, leading)
    alone = await build_on(third, await asked_again(third, file))
    await alone.run()
    assert contents(alone.files.final) == shared


async def jobs_done(running: Running, build: Build) -> None:
    async with build.transaction() as session:
        await jobs.succeed(session, build.job.id, build.job.attempts, total=1, result=build.id)


async def kept_in_store(files: IndexFiles) -> dict[str, bytes]:
    """The index as a machine with nothing of its own gets it."""
    shelf = Shelf(files.shelf.folder.with_name("bare"), files.shelf.store)
    bare = replace(files, shelf=shelf)
    await bare.bring((await files.publish())["digest"])
    return contents(bare.final)


async def test_killed_between_the_store_and_the_row_another_machine_goes_on(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await machines.add("first"), await machines.add("second")
    job = await asked_for(first)
    build = await build_on(first, job)
    with monkeypatch.context() as killed:
        killed.setattr(influence_build.influence, "publish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await build.run()
    assert (await ask(second))[0] == 409  # nothing is half published
    with machines.away(), pytest.raises(StoreAway):  # which gives nothing up: the job is tried again
        await influence_build.build_index(second.server.explainer, build.job, {"index": str(build.id)}, lambda _: None)
    monkeypatch.setattr(Build, "sketched", lambda *_: 1 / 0)
    resumed = await build_on(second, job)
    await resumed.run()
    assert contents(resumed.files.final) == contents(build.files.final)
    assert (await ask(second))[0] == 200
    await jobs_done(first, resumed)
    # A third one takes all that it needs for the next index from this one, out of the store.
    third, fourth = await machines.add("third"), await machines.add("fourth")
    taking = await build_on(third, await asked_again(third, *resumed.ground.files))
    await taking.run()
    assert contents(taking.files.final) == contents(build.files.final)
    assert not list((machines.place / "third" / "indexes" / "default").glob(".*"))
    await jobs_done(third, taking)
    # Damaged in the store, it is refused where it is not yet, and answers go on where it is.
    place = max(machines.stored(f"indexes/default/{taking.id}/*"), key=lambda path: path.stat().st_size)
    place.write_bytes(place.read_bytes()[:-1] + b"?")
    status, problem = await ask(fourth, 3)
    assert (status, problem["message"]) == (400, "the influence index in the store is damaged: build it again")
    place.unlink()
    assert (await ask(fourth, 3))[0] == 400
    assert (await ask(third, 3))[0] == 200


async def test_a_node_helps_from_a_folder_of_its_own_and_says_when_it_sees_another_store(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await machines.add("first")
    build = await build_on(first, await asked_for(first))
    async with build.transaction() as session:
        await influence.plan(session, build.id, build.ground.material.pieces)
    settings = {"DATABASE_URL": machines.postgres.url, "DATA_DIR": str(tmp_path / "node")}
    for name, value in {**settings, "STORE_URL": f"file://{tmp_path}/elsewhere"}.items():
        monkeypatch.setenv(f"WHENCE_{name}", value)
    shared = SharedJob.of(build.job, build.id, "cpu", first.server.explainer.shelf.name)
    place = await home(first.server.explainer.database)
    told = "its WHENCE_STORE_URL is not that of whoever leads the job"
    assert await asyncio.to_thread(take_part, shared, place, 1) == ("refused", told)
    monkeypatch.setenv("WHENCE_STORE_URL", machines.url)
    assert await asyncio.to_thread(take_part, shared, place, 1) == ("done", "")
    assert (await build.look()).missing == 0 and not await build.lost()
    await first.client.delete(f"/jobs/{build.job.id}")
    # Asked again after that, another machine has all shards from the store.
    second = await machines.add("second")
    again = await build_on(second, await asked_again(second, *build.ground.files))
    monkeypatch.setattr(Build, "sketched", lambda *_: 1 / 0)
    async with again.transaction() as session:
        await influence.plan(session, again.id, again.ground.material.pieces)
    await again.make_folder()
    await again.compute_all()
    assert not (await again.look()).missing and not await again.lost()
    await second.client.delete(f"/jobs/{again.job.id}")


async def test_a_training_file_is_on_every_machine_until_it_is_removed(machines: Machines, tmp_path: Path) -> None:
    first, second = await machines.add("first"), await machines.add("second")
    file = await sent(first, training_file())
    content = f"/files/{file}/content"
    (place,) = machines.stored("files/default/*")
    whole = place.read_bytes()
    place.write_bytes(whole[:-1])
    damaged = await second.client.get(content)
    assert damaged.status_code == 404 and "not the one that was sent" in damaged.json()["message"]
    place.write_bytes(whole)
    assert (await second.client.get(content)).content == training_file()
    stray = await second.key("admin", tenant="elsewhere")
    assert (await first.client.get(content, headers=stray)).status_code == 404
    ready = (await second.client.get("/readyz")).json()
    assert ready["store"] is True
    assert (await second.client.delete(f"/files/{file}")).status_code == 204
    assert not machines.stored("files/default/*") and (await first.client.get(content)).status_code == 404


async def test_a_backup_holds_what_is_in_the_store_alone(postgres: Postgres, start: Start, tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    own = {"store_url": f"file://{tmp_path}/store", "data_dir": tmp_path / "first", "worker": False}
    with postgres.empty_database() as url:
        async with start(**own, database_url=url) as running:
            file = await sent(running, training_file())
        store = open_store(own["store_url"])
        above = make_url(postgres.superuser_url).set(database=make_url(url).database)
        given = (tmp_path / "second", above.render_as_string(hide_password=False), tmp_path / "backup.tar", store)
        assert (await asyncio.to_thread(back_up, *given)).contents == 1
        assert [path.name for path in kept(tmp_path / "second")] == [file.removeprefix("file-")]
        (place,) = (tmp_path / "store").glob("files/default/*")
        place.write_bytes(b"{}")
        (tmp_path / "backup.tar").unlink()
        shutil.rmtree(tmp_path / "second" / "files")
        with pytest.raises(Refusal, match="in the store is damaged"):
            await asyncio.to_thread(back_up, *given)


async def test_a_store_that_comes_later_is_filled(machines: Machines, start: Start, tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    own = {"data_dir": tmp_path / "first", "database_url": machines.postgres.url, "worker": False}
    async with start(**own) as alone:
        file = await sent(alone, training_file())
        assert (await alone.client.get("/readyz")).json()["store"] is None
    await machines.add("first")
    second = await machines.add("second")
    assert (await second.client.get(f"/files/{file}/content")).content == training_file()


async def test_a_store_that_is_away_is_told(machines: Machines) -> None:
    first = await machines.add("first")
    with machines.away():
        refused = await first.client.post("/files", files={"file": ("facts.jsonl", training_file())})
        assert (refused.status_code, refused.json()["code"]) == (503, "UNAVAILABLE") and refused.headers["Retry-After"]
        ready = await first.client.get("/readyz")
        assert (ready.status_code, ready.json()["store"]) == (503, False) and "store" in ready.json()["not_ready"]
        with pytest.raises(Refusal, match="cannot be written, read and cleared"):
            await machines.add("second")
