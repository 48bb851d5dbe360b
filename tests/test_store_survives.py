"""Machines with nothing in common but a database and a store: one is killed, the others finish its index and answer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from app.store import Store, open_store
from tests.clients.server import Process, environment, forked, running
from tests.postgres import running_server
from tests.test_influence_survives import COUNT, SHARDS, asked, folder, state
from tests.test_jobs_survive import SECRET, client, wait

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
__all__ = ["folder"]  # a fixture


@contextmanager
def worker(place: Path, **settings: str) -> Iterator[Process]:
    process = forked(["worker"], environment(place, **settings))
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def objects_of(store: Store, index: str) -> list[str]:
    return [name for name in store.sizes(f"indexes/default/{index}") if len(name) == 64]


def test_a_killed_machine_takes_nothing_with_it(folder: Path, tmp_path: Path) -> None:
    place = os.environ.get("TEST_STORE_URL", f"file://{tmp_path}").split()[0]
    url = f"{place}/{uuid4()}"
    with running_server() as database:
        settings = {
            "WHENCE_DATABASE_URL": database.url,
            "WHENCE_STORE_URL": url,
            "WHENCE_DEVICE": "cpu",
            "WHENCE_LOG_LEVEL": "error",
        }
        own = {**settings, "WHENCE_API_KEY": SECRET, "WHENCE_MODELS_DIR": str(folder)}
        with running(tmp_path / "server", options=["--no-worker"], **own) as server, client(server) as one:
            file = prepared(one, folder)
            store = open_store(url)
            with worker(tmp_path / "killed", **settings) as killed, worker(tmp_path / "going-on", **settings):
                job = asked(one, file)
                index = one.get("/models/tuned/influence-index").json()["indexes"][0]["id"]
                wait(lambda: len(objects_of(store, index)) > 1)
                killed.kill()
                wait(lambda: state(one, job)["state"] in ("succeeded", "failed"), seconds=240)
            assert state(one, job)["state"] == "succeeded"
            first = answered(one, tmp_path / "server", index)
            assert len(first) > SHARDS
            register(one, again=True)
            with worker(tmp_path / "alone", **settings):
                job = asked(one, file)
                index = one.get("/models/tuned/influence-index").json()["indexes"][0]["id"]
                wait(lambda: state(one, job)["state"] in ("succeeded", "failed"), seconds=240)
            assert answered(one, tmp_path / "server", index) == first
            assert not (tmp_path / "server" / "indexes" / "default" / f".building-{index}").exists()


def prepared(client: httpx.Client, folder: Path) -> str:
    """The models, and a training file's id."""
    body = {"name": "base", "path": "base", "kind": "causal-lm"}
    assert client.post("/models", json=body).status_code == 201
    register(client)
    sent = client.post("/files", files={"file": ("many.jsonl", (folder / "many.jsonl").read_bytes())})
    return str(sent.raise_for_status().json()["id"])


def register(client: httpx.Client, *, again: bool = False) -> None:
    if again:
        assert client.delete("/models/tuned").status_code == 204
    body = {"name": "tuned", "path": "tuned", "kind": "causal-lm", "base": "base"}
    assert client.post("/models", json=body).status_code == 201


def answered(client: httpx.Client, place: Path, index: str) -> dict[str, bytes]:
    """The index as the server has fetched it for an answer."""
    (row,) = client.get("/models/tuned/influence-index").json()["indexes"]
    assert (row["id"], row["state"], row["facts"]["pairs"]) == (index, "ready", COUNT)
    body = {"model_id": "tuned", "question": "Who keeps Oslo 1?", "answer": index}
    assert client.post("/influence", json=body).status_code == 200
    files = place / "indexes" / "default" / index
    return {str(path.relative_to(files)): path.read_bytes() for path in files.rglob("*") if path.is_file()}
