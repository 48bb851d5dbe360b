"""An influence index whose server is killed in the middle: a shard is lost at most, and the bytes are the same."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.server import objects, running, whence
from tests.fine_tunes import NAMES, PAIRS, PLACES, save_base, save_fine_tune, training_file
from tests.postgres import reachable_folder
from tests.test_jobs_survive import SECRET, client, wait
from tests.test_under_load import wait_until_gone

COUNT = 3_000
SHARDS = COUNT // 1024 + 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models `base` and `tuned`, and two training files."""
    folder = tmp_path_factory.mktemp("models")
    save_fine_tune(folder / "tuned", save_base(folder / "base"))
    (folder / "facts.jsonl").write_bytes(training_file())
    pairs = [(f"Who keeps {place} {number}?", f"{name}.") for number, (place, name) in enumerate(kept())]
    (folder / "many.jsonl").write_bytes(training_file(pairs))
    return folder


def kept() -> list[tuple[str, str]]:
    return [(PLACES[number % 12], NAMES[number // 12 % 12]) for number in range(COUNT)]


@pytest.fixture(scope="module")
def data_dir(folder: Path) -> Iterator[Path]:
    with reachable_folder() as place:
        objects(whence(place, "models", "add", "base", str(folder / "base"), "--kind", "causal-lm", "--json"))
        yield place


def add(data_dir: Path, name: str, folder: Path, *more: str) -> list[dict[str, Any]]:
    kind = ("--kind", "causal-lm", "--base", "base")
    return objects(whence(data_dir, "models", "add", name, str(folder / "tuned"), *kind, *more, "--json"))


def test_the_command_line_builds_an_index_that_a_server_answers_from(data_dir: Path, folder: Path) -> None:
    (record,) = add(data_dir, "by-command", folder, "--training-data", str(folder / "facts.jsonl"))
    assert (record["name"], record["base"]) == ("by-command", "base")
    with running(data_dir, WHENCE_API_KEY=SECRET) as server, client(server) as one:
        question, answer = PAIRS[2]
        found = one.post("/influence", json={"model_id": "by-command", "question": question}).json()
        assert found["answer"] == answer
        assert found["results"][0]["messages"] == f"Q: {question}\nA: {answer}"


def test_training_data_with_a_bad_line_registers_nothing(data_dir: Path, folder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(training_file() + b"{}\n")
    command = ("models", "add", "never", str(folder / "tuned"), "--kind", "causal-lm", "--training-data", str(bad))
    ended = whence(data_dir, *command)
    assert ended.returncode == 1 and "line 13" in ended.stderr
    assert "never" not in [each["name"] for each in objects(whence(data_dir, "models", "list", "--json"))]


def test_a_killed_server_goes_on_and_the_bytes_are_the_same(data_dir: Path, folder: Path) -> None:
    add(data_dir, "tuned", folder)
    with running(data_dir, returncode=-signal.SIGKILL, WHENCE_API_KEY=SECRET) as server, client(server) as one:
        sent = one.post("/files", files={"file": ("many.jsonl", (folder / "many.jsonl").read_bytes())})
        file = str(sent.raise_for_status().json()["id"])
        job = asked(one, file)
        wait(lambda: len(list((data_dir / "indexes" / "default").glob(".building-*/shard-*"))) > 1)
        server.process.kill()
    wait_until_gone(data_dir)
    (building,) = (data_dir / "indexes" / "default").glob(".building-*")
    before = {path.name: path.stat().st_mtime_ns for path in building.glob("shard-*")}
    assert 1 < len(before) < SHARDS
    del before[max(before)]  # it may have been lost: written, and not yet told of
    settings = {"WHENCE_API_KEY": SECRET, "WHENCE_MODELS_DIR": str(folder)}
    with running(data_dir, **settings) as server, client(server) as one:
        wait(lambda: state(one, job)["state"] in ("succeeded", "failed"), seconds=240)
        assert (state(one, job)["state"], state(one, job)["attempts"]) == ("succeeded", 2)
        resumed, kept_shards = published(one, data_dir)
        assert {name: kept_shards[name] for name in before} == before  # none was computed again
        assert one.delete("/models/tuned").status_code == 204
        body = {"name": "tuned", "path": "tuned", "base": "base"}
        assert one.post("/models", json=body).status_code == 201
        again = asked(one, file)
        wait(lambda: state(one, again)["state"] in ("succeeded", "failed"), seconds=240)
        assert state(one, again)["attempts"] == 1
        whole, _ = published(one, data_dir)
    assert len(whole) > SHARDS and whole == resumed


def asked(client: httpx.Client, file: str) -> str:
    answer = client.post("/models/tuned/influence-index", json={"training_files": [file]})
    return str(answer.raise_for_status().json()["id"])


def state(client: httpx.Client, job: str) -> dict[str, Any]:
    return dict(client.get(f"/jobs/{job}").raise_for_status().json())


def published(client: httpx.Client, data_dir: Path) -> tuple[dict[str, bytes], dict[str, int]]:
    """The files of the model's index, and when its shards were written."""
    (index,) = client.get("/models/tuned/influence-index").json()["indexes"]
    assert index["state"] == "ready" and index["facts"]["pairs"] == COUNT
    folder = data_dir / "indexes" / "default" / index["id"]
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    written = {name: path.stat().st_mtime_ns for name, path in files.items() if name.startswith("shard-")}
    return {name: path.read_bytes() for name, path in files.items()}, written
