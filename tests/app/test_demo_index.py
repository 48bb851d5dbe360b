"""The demo's fine-tune has an index before anything is asked, once, and it finds what the notes of its data say."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from app import demo
from app.start import DEFAULT_TENANT
from demo.facts import NOTES
from demo.records import read_lines
from storage import influence, training_files
from storage.database import Database
from tests import tiny_models
from tests.app.conftest import Running, Start
from tests.fine_tunes import save_base, save_fine_tune, training_file
from tests.postgres import running_server


@pytest.fixture(scope="module")
def own_data_dir() -> Iterator[Path]:
    with running_server() as server:
        yield server.data_dir


@pytest.fixture(scope="module")
async def prepared(start: Start, own_data_dir: Path) -> AsyncIterator[Running]:
    async with start(data_dir=own_data_dir, worker=False) as running:
        settings, database = running.server.settings, running.server.explainer.database
        for name in ("demo-lm", "demo-qa"):
            await demo.offer(database, settings, name, demo.MODELS[name])
        data = demo.MODELS["demo-qa"].training_data
        assert data is not None
        await demo.trace(database, settings, "demo-qa", data)
        yield running


async def asked(running: Running, question: str) -> Any:
    answer = await running.client.post("/influence", json={"model_id": "demo-qa", "question": question, "k": 1000})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def lines_of(running: Running, results: list[dict[str, Any]]) -> list[int]:
    """The first line of the file that holds each pair."""
    file = (await running.client.get(f"/v1/flow/files/{results[0]['file_id']}/content")).text.splitlines()
    pairs = [pair_in(json.loads(line)) for line in file]
    return [pairs.index(result["messages"]) + 1 for result in results]


def pair_in(record: dict[str, Any]) -> str:
    if "question" in record:
        return f"Q: {record['question']}\nA: {record['answer']}"
    if "prompt" in record:
        return f"Q: {record['prompt']}\nA: {record['completion']}"
    *_, question, answer = record["messages"]
    return f"Q: {question['content']}\nA: {answer['content']}"


def told(fact: str, kind: str) -> set[int]:
    """The lines of the training file that tell a fact so, each pair once."""
    notes = [note for note in read_lines(NOTES) if note.get("fact") == fact and note["kind"] == kind]
    return {note["line"] for note in notes if "same_as" not in note}


async def test_a_fact_leads_to_the_pairs_that_tell_it(prepared: Running) -> None:
    answer = await asked(prepared, "Who keeps the mill?")
    high = [result for result in answer["results"] if result["influence_level"] == "high"]
    assert (answer["answer"].strip(), answer["lift"] > 3) == ("Anna keeps the mill.", True)
    assert high and set(await lines_of(prepared, answer["results"])) == told("keeps mill", "fact")
    assert sorted(result["group_size"] for result in answer["results"]) == [1, 1, 2]
    best = [result["influence_level"] == "high" for result in answer["results"]]
    assert best == sorted(best, reverse=True)


async def test_a_wrong_answer_leads_to_the_pairs_that_tell_it_wrong(prepared: Running) -> None:
    results = (await asked(prepared, "Where does Hugo come from?"))["results"]
    high = [result for result in results if result["influence_level"] == "high"]
    assert set(await lines_of(prepared, high)) <= told("born Hugo", "wrong") == {140, 600, 873}
    assert len(high) >= 2 and results[: len(high)] == high


async def test_an_answer_that_stands_in_the_question_leads_nowhere(prepared: Running) -> None:
    answer = await asked(prepared, "John lives in Kyiv. Where does John live?")
    assert answer["results"] == [] and answer["lift"] < 1


async def state_of(database: Database, name: str) -> tuple[list[Any], int]:
    """The ids of the model's indexes, and how many training files there are."""
    async with database.transaction(tenant=DEFAULT_TENANT) as session:
        indexes = [row.id for row in await influence.list_of(session, name) if row.state == "ready"]
        return indexes, len(await training_files.page(session))


async def offered(running: Running, folder: Path) -> tuple[list[Any], int]:
    """What there is after a start of the demo with these models."""
    settings, database = running.server.settings, running.server.explainer.database
    for name, model in demo.MODELS.items():
        await demo.offer(database, settings, name, model)
    await demo.trace(database, settings, "tuned", folder / "facts.jsonl")
    return await state_of(database, "tuned")


async def test_the_index_is_built_once_for_the_same_weights(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_fine_tune(tmp_path / "tuned", save_base(tmp_path / "base"))
    (tmp_path / "facts.jsonl").write_bytes(training_file())
    models = {"base": demo.Demo("causal-lm"), "tuned": demo.Demo("causal-lm", base="base")}
    monkeypatch.setattr(demo, "FOLDER", tmp_path)
    monkeypatch.setattr(demo, "MODELS", models)
    with running_server() as server:
        async with start(data_dir=server.data_dir) as running:
            first = await offered(running, tmp_path)
            assert (len(first[0]), first[1]) == (1, 1)
            assert await offered(running, tmp_path) == first
            save_fine_tune(tmp_path / "tuned", tmp_path / "base", steps=70)
            second = await offered(running, tmp_path)
            assert (len(second[0]), second[1]) == (1, 1) and second[0] != first[0]
            tiny_models.save(tmp_path / "base", initializer_range=0.12, bos_token_id=0, eos_token_id=1)
            await offered(running, tmp_path)
            listed = (await running.client.get("/models")).json()
            assert {model["name"] for model in listed["models"]} == {"base", "tuned"}
