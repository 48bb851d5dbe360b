"""Building influence indexes: what is told meanwhile, what is taken over, and what makes a build fail."""

from __future__ import annotations

import gc
import json
import os
import weakref
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from app import influence_build, main, training_material
from app.indexing import ensure_index
from app.influence_indexes import sweep_indexes
from explainers.decoding import end_ids, outcome_of
from explainers.influence import generic
from explainers.influence.examples import Example, Mask
from explainers.influence.finishing import FORM
from explainers.influence.generic import generic_prompts
from explainers.influence.levels import FEWEST_PROMPTS
from explainers.influence.rendering import render_question
from explainers.loaders import load_causal_lm
from storage import influence
from tests.app.conftest import Running, Start, empty, until
from tests.app.indexes import built, ended, sent
from tests.fine_tunes import PAIRS, save_base, save_fine_tune, training_file
from tests.tiny_models import save

FIRST, SECOND = PAIRS[:7], PAIRS[7:]


@pytest.fixture(scope="module")
def folders(models_dir: Path) -> Path:
    base = save_base(models_dir / "build-base")
    save_fine_tune(models_dir / "build-tuned", base)
    return models_dir


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards of a dozen pairs, and short answers to the calibration prompts: a random model never ends one."""
    monkeypatch.setattr(training_material, "SHARD_TOKENS", 150)
    monkeypatch.setattr(generic, "LONGEST", 8)


async def prepared(running: Running) -> None:
    await empty(running)
    for name, folder, base in (("base", "build-base", None), ("tuned", "build-tuned", "base")):
        body = {"name": name, "kind": "causal-lm", "path": folder, "base": base}
        assert (await running.client.post("/models", json=body)).status_code == 201


@pytest.fixture
async def server(start: Start, folders: Path) -> AsyncIterator[Running]:
    async with start() as running:
        await prepared(running)
        yield running


@pytest.fixture
async def idle(start: Start, folders: Path) -> AsyncIterator[Running]:
    """Nobody works on its jobs."""
    async with start(worker=False) as running:
        await prepared(running)
        yield running


async def asked(server: Running, **body: Any) -> Any:
    answer = await server.client.post("/influence", json={"model_id": "tuned", "question": PAIRS[0][0], **body})
    return answer.status_code, answer.json()


async def facts_of(server: Running) -> dict[str, Any]:
    (index,) = (await server.client.get("/models/tuned/influence-index")).json()["indexes"]
    assert index["state"] == "ready"
    return dict(index["facts"])


def contents(server: Running) -> dict[str, bytes]:
    """The files of the newest index that is there."""
    folders = (server.server.settings.data_dir / "indexes" / "default").iterdir()
    folder = max((each for each in folders if not each.name.startswith(".")), key=lambda each: each.name)
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


async def test_while_it_is_built_the_answer_names_the_job(idle: Running) -> None:
    file = await sent(idle, training_file())
    path, body = "/models/tuned/influence-index", {"training_files": [file]}
    job = (await idle.client.post(path, json=body)).json()
    assert (job["kind"], job["state"]) == ("influence-index", "queued")
    for _ in range(2):
        status, problem = await asked(idle)
        assert (status, problem["code"], problem["job"]) == (409, "INDEX_NOT_READY", job["id"])
        assert "0 % done" in problem["message"] and job["id"] in problem["message"]
    again = await idle.client.post(path, json=body)
    assert (again.status_code, again.json()["code"]) == (409, "CONFLICT") and job["id"] in again.text
    assert (await idle.client.delete(f"/files/{file}")).status_code == 409
    assert (await idle.client.delete(f"/jobs/{job['id']}")).status_code == 200
    status, problem = await asked(idle)
    assert (status, problem["code"]) == (409, "INDEX_NOT_READY") and "cancelled" in problem["message"]
    assert (await idle.client.post(path, json=body)).status_code == 202
    assert (await idle.client.delete("/models/tuned")).status_code == 204
    assert (await idle.client.delete(f"/files/{file}")).status_code in (200, 204)


async def test_a_cancelled_build_lets_its_files_go(idle: Running) -> None:
    file = await sent(idle, training_file())
    answer = await idle.client.post("/models/tuned/influence-index", json={"training_files": [file]})
    assert (await idle.client.delete(f"/files/{file}")).status_code == 409
    assert (await idle.client.delete(answer.headers["Location"])).status_code == 200
    assert (await idle.client.delete(f"/files/{file}")).status_code == 204
    (index,) = (await idle.client.get("/models/tuned/influence-index")).json()["indexes"]
    assert index["state"] == "failed"


async def test_one_pair_is_enough(server: Running) -> None:
    """And of two whose second is cut off before its answer, the first is indexed."""
    await built(server, "tuned", await sent(server, training_file(PAIRS[:1])))
    status, found = await asked(server, question=PAIRS[0][0], answer=PAIRS[0][1])
    assert status == 200 and [result["group_size"] for result in found["results"]] in ([1], [])
    long = [PAIRS[0], (PAIRS[1][0] * 40, PAIRS[1][1])]
    await built(server, "tuned", await sent(server, training_file(long)), longest=60)
    facts = await facts_of(server)
    assert (facts["pairs"], facts["examples"]) == (2, 1)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Example]]:
    """The examples of each shard that is computed, and of the calibration prompts."""
    found: list[Sequence[Example]] = []
    sketched = influence_build.Build.sketched

    async def counting(build: influence_build.Build, examples: Sequence[Example]) -> Any:
        found.append(examples)
        return await sketched(build, examples)

    monkeypatch.setattr(influence_build.Build, "sketched", counting)
    return found


def count(computed: Sequence[Sequence[Example]]) -> int:
    return sum(map(len, computed))


async def test_more_files_take_over_what_is_there(server: Running, computed: list[Sequence[Example]]) -> None:
    first = await sent(server, training_file(FIRST))
    await built(server, "tuned", first)
    assert count(computed[:-1]) == len(FIRST) and len(computed) > 2  # and the calibration prompts
    computed.clear()
    second = await sent(server, training_file(SECOND))
    await built(server, "tuned", second, first)
    assert count(computed) == len(SECOND)  # the calibration prompts are taken over too
    facts = await facts_of(server)
    assert (facts["pairs"], facts["files"]) == (len(PAIRS), [second, first])
    grown = contents(server)
    for question, answer in (PAIRS[0], PAIRS[-1]):
        status, found = await asked(server, question=question, answer=answer)
        assert status == 200 and found["results"][0]["messages"] == f"Q: {question}\nA: {answer}"
        assert found["results"][0]["file_id"] == (first if (question, answer) in FIRST else second)
    explainer = server.server.explainer
    weights = weakref.ref(next(iter(explainer.indexes._known.values())).model.network)
    assert (await server.client.delete("/models/tuned")).status_code == 204  # and its indexes
    await main.refresh_once(server.server.settings, explainer)
    await until(lambda: (gc.collect(), weights())[1] is None)  # though its index was open
    assert (
        await server.client.post("/models", json={"name": "tuned", "path": "build-tuned", "base": "base"})
    ).is_success
    computed.clear()
    await built(server, "tuned", second, first)
    assert count(computed[:-1]) == len(PAIRS)
    assert contents(server) == grown


async def test_an_index_of_another_version_is_built_again_and_no_shard_of_it(
    server: Running, computed: list[Sequence[Example]], tmp_path: Path
) -> None:
    """As `whence demo` does it."""
    explainer, path = server.server.explainer, tmp_path / "facts.jsonl"
    path.write_bytes(training_file())
    await built(server, "tuned", await sent(server, path.read_bytes()))
    before = contents(server)
    async with explainer.database.transaction(tenant="default") as session:
        (row,) = await influence.list_of(session, "tuned")
        row.facts = {**(row.facts or {}), "form": FORM - 1}
    status, problem = await asked(server)
    assert (status, problem["code"]) == (409, "INDEX_NOT_READY") and "another version" in problem["message"]
    assert problem["message"].endswith("build it again with POST /models/tuned/influence-index")
    computed.clear()
    await ensure_index(explainer, "default", "tuned", path)
    assert not computed and contents(server) == before
    assert (await asked(server))[0] == 200


async def test_a_refused_build_leaves_its_shards_to_the_next(
    server: Running, computed: list[Sequence[Example]], monkeypatch: pytest.MonkeyPatch
) -> None:
    few, more = generic_prompts()[: FEWEST_PROMPTS - 1], list(generic_prompts()[-24:])
    monkeypatch.setattr(influence_build, "generic_prompts", lambda: few)
    file, path = await sent(server, training_file()), "/models/tuned/influence-index"
    assert await swept(server) == []
    for _ in range(2):
        asked_for = await server.client.post(path, json={"training_files": [file]})
        refused = await ended(server, asked_for.headers["Location"])
        assert refused["state"] == "failed" and "add generic_prompts" in refused["error"]["message"]
        assert count(computed) == len(PAIRS)  # once
    assert len(folders_of(server)) == 2
    (index,) = (await server.client.get(path)).json()["indexes"]
    assert await swept(server) == [f".building-{index['id']}"]
    computed.clear()
    await built(server, "tuned", file, generic_prompts=more)
    (prompts,) = computed
    assert len(few) < len(prompts) <= len(few) + len(more)
    (index,) = (await server.client.get(path)).json()["indexes"]
    assert await swept(server) == [index["id"]]
    follows = contents(server)
    assert (await server.client.delete("/models/tuned")).status_code == 204
    again = await server.client.post("/models", json={"name": "tuned", "path": "build-tuned", "base": "base"})
    assert again.is_success
    computed.clear()
    await built(server, "tuned", file, generic_prompts=more)
    assert count(computed[:-1]) == len(PAIRS) and contents(server) == follows


def test_a_calibration_answer_that_was_cut_has_no_end(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, question = load_causal_lm(folders / "build-tuned", "float32", "cpu"), PAIRS[0][0]
    asked = render_question(model, question, None, None, Mask())
    for longest, whole in ((1, False), (8, True)):
        monkeypatch.setattr(generic, "LONGEST", longest)
        (said,) = outcome_of(generic.answering(model, [asked.ids]))
        (example,) = influence_build.answered(model, [(question, said)], Mask())
        assert example is not None and said.ended is whole
        assert (example.targets[-1] in end_ids(model)) is whole


def folders_of(server: Running) -> list[str]:
    return sorted(path.name for path in (server.server.settings.data_dir / "indexes" / "default").glob("*"))


async def swept(server: Running) -> list[str]:
    """The folders of indexes that are left, long after."""
    explainer, place = server.server.explainer, server.server.settings.data_dir / "indexes" / "default"
    for name in folders_of(server):
        os.utime(place / name, (0, 0))
    await sweep_indexes(explainer.database, explainer.shelf)
    return folders_of(server)


async def test_an_older_index_answers_until_the_newer_one_is_there(start: Start, folders: Path) -> None:
    async with start() as running:
        await prepared(running)
        file = await sent(running, training_file())
        await built(running, "tuned", file)
        status, before = await asked(running)
        assert status == 200
    async with start(worker=False) as running:
        path, body = "/models/tuned/influence-index", {"training_files": [file], "generic_prompts": ["Who is Ida?"]}
        queued = await running.client.post(path, json=body)
        assert queued.status_code == 202
        assert await asked(running) == (200, before)
    async with start() as running:
        assert (await ended(running, queued.headers["Location"]))["state"] == "succeeded"
        status, after = await asked(running)
        assert status == 200 and after["id"] != before["id"]
        assert [each["id"] for each in after["results"][:1]] == [each["id"] for each in before["results"][:1]]
    settings = folders / "build-tuned" / "generation_config.json"
    kept = settings.read_text()
    settings.write_text(kept.replace("{", '{"a": 1,', 1))
    try:
        async with start(worker=False) as running:  # the index is that of other weights now
            status, problem = await asked(running, answer="Somebody else.")
    finally:
        settings.write_text(kept)
    assert status == 400 and "have changed since it was registered" in problem["message"]
    assert problem["message"].endswith("register it again, and build its influence index again where it had one")


async def test_a_full_queue_holds_a_build_up_and_loses_nothing(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, met = server.server.explainer.runtime.device, list[int]()
    write, patience = influence_build.write_shard, device.retry_after
    file = await sent(server, training_file())
    with monkeypatch.context() as crowded:

        def fill(*given: Any) -> str:
            crowded.setattr(device, "limit", 0)  # once the first shard is there
            (given[0] / ".shard-000009.safetensors.left").write_bytes(b"by a writer that was killed")
            return write(*given)

        crowded.setattr(influence_build, "write_shard", fill)
        crowded.setattr(device, "retry_after", lambda: met.append(1) or patience())
        answer = await server.client.post("/models/tuned/influence-index", json={"training_files": [file]})
        await until(lambda: bool(met))
    job = await ended(server, answer.headers["Location"])
    assert (job["state"], job["attempts"]) == ("succeeded", 1)
    assert (await facts_of(server))["pairs"] == len(PAIRS)
    assert not [name for name in contents(server) if "/." in f"/{name}"]


async def test_lines_that_the_template_refuses_fail_the_build_by_number(server: Running, folders: Path) -> None:
    turns = [("user", "a"), ("user", "b"), ("assistant", "c")]
    odd = {"messages": [{"role": role, "content": content} for role, content in turns]}
    file = await sent(server, training_file(FIRST) + json.dumps(odd).encode())
    plain = save(folders / "build-plain")
    await server.add(plain, "plain")
    answer = await server.client.post("/models/plain/influence-index", json={"training_files": [file]})
    job = await ended(server, answer.headers["Location"])
    assert job["state"] == "failed" and job["error"]["status"] == 400 and "line 8" in job["error"]["message"]
    refused = await server.client.post("/influence", json={"model_id": "plain", "question": "a", "answer": "b"})
    assert (refused.status_code, refused.json()["code"]) == (409, "INDEX_NOT_READY")
    assert "failed" in refused.json()["message"]
    assert (await server.client.delete(f"/files/{file}")).is_success


async def test_folders_of_indexes_that_are_gone_are_swept_up(server: Running) -> None:
    await built(server, "tuned", await sent(server, training_file()))
    explainer, place = server.server.explainer, server.server.settings.data_dir / "indexes" / "default"
    (index,) = (await server.client.get("/models/tuned/influence-index")).json()["indexes"]
    await sweep_indexes(explainer.database, explainer.shelf)
    assert (place / index["id"]).exists()
    assert (await server.client.delete("/models/tuned")).status_code == 204
    await sweep_indexes(explainer.database, explainer.shelf)
    assert (place / index["id"]).exists()  # somebody may be reading it
    os.utime(place / index["id"], (0, 0))
    await sweep_indexes(explainer.database, explainer.shelf)
    assert not (place / index["id"]).exists()


async def test_a_model_without_base_has_no_gate_and_no_lift(server: Running, folders: Path) -> None:
    await server.add(folders / "build-tuned", "alone")
    await built(server, "alone", await sent(server, training_file()))
    question, answer = PAIRS[4]
    status, found = await asked(server, model_id="alone", question=question, answer=answer)
    assert status == 200 and found["lift"] is None
    assert found["results"][0]["messages"] == f"Q: {question}\nA: {answer}"
    (index,) = (await server.client.get("/models/alone/influence-index")).json()["indexes"]
    assert any("no base model" in warning for warning in index["facts"]["warnings"])


async def test_facts_say_what_was_cut_off_and_that_nothing_was_verified(server: Running) -> None:
    long = ("Who keeps the mill?", "Anna. " * 20)
    file = await sent(server, training_file([("Hi? " * 20, "Ben."), long, *FIRST]))
    await built(server, "tuned", file, longest=60)
    facts = await facts_of(server)
    assert facts["pairs"] == len(FIRST) + 2 and facts["mask"]["longest"] == 60
    assert any("answers of 1 records" in warning and "lines 1" in warning for warning in facts["warnings"])
    assert any("trainer_state.json" in warning for warning in facts["warnings"])
    assert len(facts["mask_check"]["candidates"]) == 6


async def test_a_recorded_loss_is_held_against_the_mask(server: Running, folders: Path) -> None:
    path = folders / "build-tuned" / "trainer_state.json"
    path.write_text(json.dumps({"log_history": [{"loss": 3.0}, {"loss": 2.5}]}))
    try:
        await built(server, "tuned", await sent(server, training_file()))
    finally:
        path.unlink()
    facts = await facts_of(server)
    assert facts["mask_check"]["recorded_loss"] == 2.5
    assert any("recorded a mean loss of 2.5" in warning for warning in facts["warnings"])


async def test_damaged_shards_are_computed_again(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    lost, found_wrong = influence_build.Build.lost, list[bool]()

    async def damaging(build: influence_build.Build) -> bool:
        if not found_wrong:
            (build.folder / "shard-000001.safetensors").write_bytes(b"")
        found_wrong.append(await lost(build))
        return found_wrong[-1]

    monkeypatch.setattr(influence_build.Build, "lost", damaging)
    await built(server, "tuned", await sent(server, training_file()))
    assert found_wrong == [True, False]
    question, answer = PAIRS[0]
    status, found = await asked(server, question=question, answer=answer)
    assert status == 200 and found["results"][0]["messages"] == f"Q: {question}\nA: {answer}"


def test_help_is_called_for_where_it_comes_in_time() -> None:
    pace = influence_build.Pace(shard=0.5, ready=1.0)
    assert pace.worth(5) and not pace.worth(4) and not pace.next.worth(5) and pace.next.worth(7)


async def test_several_workers_share_a_build(start: Start, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard, workers = influence_build.Build.shard, list[tuple[str, int]]()

    async def slow(build: influence_build.Build, number: int) -> str:
        workers.append((build.job.kind, number))
        if len(workers) > 1:  # whoever is called for after the first has time to come
            await until(lambda: len({kind for kind, _ in workers}) == 2)
        return await shard(build, number)

    monkeypatch.setattr(influence_build.Build, "shard", slow)
    monkeypatch.setattr(influence_build.Pace, "worth", lambda *_: True)  # however long the data are read here
    async with start() as one, start():
        await prepared(one)
        await built(one, "tuned", await sent(one, training_file()))
        facts = await facts_of(one)
        listed = (await one.client.get("/jobs")).json()["jobs"]
    assert {job["kind"] for job in listed} == {"influence-index"}  # its helpers are no jobs that anybody asked for
    assert {kind for kind, _ in workers} == {"influence-index", "influence-shards"}
    assert sorted(number for _, number in workers) == list(range(facts["shards"]))  # each was computed once


async def test_a_worker_that_is_gone_loses_its_lease(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = influence.lease

    async def gone(session: Any, id: Any, seconds: float) -> influence.Lease | None:
        """Somebody else leases the first shard, and is never heard of again."""
        monkeypatch.setattr(influence, "lease", lease)
        assert await lease(session, id, 2.0) == influence.Lease(0, 1)
        return await lease(session, id, seconds)

    monkeypatch.setattr(influence, "lease", gone)
    await built(server, "tuned", await sent(server, training_file()))
    assert (await facts_of(server))["pairs"] == len(PAIRS)
