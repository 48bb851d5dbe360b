"""Jobs of a real server that is killed in the middle of its work, or loses its database, each end exactly once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests import tiny_models
from tests.clients.server import Server, environment, forked, objects, running, whence
from tests.nursery import Process
from tests.postgres import reachable_folder
from tests.test_under_load import wait_until_gone

SECRET = "a-secret-of-the-jobs"
WORDS = " ".join(f"The key of house {number} is red." for number in range(14))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Data of a server with one small random model that takes seconds to explain."""
    model = tiny_models.save(
        tmp_path_factory.mktemp("model") / "slow",
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        max_position_embeddings=1024,
    )
    with reachable_folder() as folder:
        objects(whence(folder, "models", "add", "slow-lm", str(model), "--kind", "causal-lm", "--json"))
        yield folder


def client(server: Server) -> httpx.Client:
    return httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {SECRET}"}, timeout=60)


def submit(client: httpx.Client, number: int) -> str:
    body = {
        "model": "slow-lm",
        "prompt": f"{number} {WORDS}",
        "target": " red",
        "prompt_granularity": {"type": "word"},
        "fresh": number % 2 == 0,
    }
    response = client.post("/explain", json=body, headers={"Prefer": "respond-async"})
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def states(client: httpx.Client, ids: list[str]) -> list[str]:
    return [client.get(f"/jobs/{id}").raise_for_status().json()["state"] for id in ids]


def wait(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not condition():
        assert time.monotonic() < deadline
        pause.wait(0.1)


def assert_each_once(client: httpx.Client, ids: list[str], others: list[str] | None = None) -> None:
    """Every job succeeded and names an explanation of its own, and beside the others there are none."""
    jobs = [client.get(f"/jobs/{id}").json() for id in ids]
    assert [job["state"] for job in jobs] == ["succeeded"] * len(ids), jobs
    assert [job["explanation"] for job in jobs] == ids
    stored = [entry["id"] for entry in client.get("/explanations?limit=500").json()["explanations"]]
    assert sorted(stored) == sorted([*ids, *(others or [])])


@contextmanager
def worker(data_dir: Path) -> Iterator[Process]:
    process = forked(["worker"], environment(data_dir))
    assert process.stdout is not None
    with process.stdout as output:
        assert any("ready" in line for line in output)
        yield process
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(180) == 0


def test_jobs_of_a_killed_server_end_exactly_once(data_dir: Path) -> None:
    with running(data_dir, returncode=-signal.SIGKILL, WHENCE_API_KEY=SECRET) as server, client(server) as one:
        ids = [submit(one, number) for number in range(4)]
        wait(lambda: states(one, ids)[:2] == ["succeeded", "running"])
        server.process.kill()
    killed_at = time.monotonic()
    wait_until_gone(data_dir)
    with running(data_dir, WHENCE_API_KEY=SECRET) as server, client(server) as one:
        started_at = time.monotonic()
        wait(lambda: attempts(one, ids)[1] == 2)
        # Dead for eight seconds or more, and noticed within four; the server's own start takes its time, too.
        assert time.monotonic() - max(started_at, killed_at + 8) < 8
        wait(lambda: not {"queued", "running"} & set(states(one, ids)))
        assert_each_once(one, ids)
        assert attempts(one, ids) == [1, 2, 1, 1]


def attempts(client: httpx.Client, ids: list[str]) -> list[int]:
    return [client.get(f"/jobs/{id}").raise_for_status().json()["attempts"] for id in ids]


def test_a_killed_worker_and_a_killed_database_lose_nothing(data_dir: Path) -> None:
    """The server leaves jobs to workers of their own; one is killed in the middle, then the database under another."""
    with running(data_dir, WHENCE_API_KEY=SECRET, WHENCE_WORKER="false") as server, client(server) as one:
        before = [entry["id"] for entry in one.get("/explanations?limit=500").json()["explanations"]]
        ids = [submit(one, number) for number in range(10, 13)]
        with worker(data_dir) as first:
            wait(lambda: states(one, ids)[0] == "running")
            first.kill()
            first.wait()
        with worker(data_dir):
            wait(lambda: "running" in states(one, ids))
            at_kill = attempts(one, ids)
            os.kill(int((data_dir / "postgres" / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
            wait(lambda: one.get("/readyz").status_code == 200)
            wait(lambda: not {"queued", "running"} & set(states(one, ids)))
            # Its first job was begun anew; the one under way when the database went on, without a new attempt.
            assert max(at_kill) <= attempts(one, ids)[0] == 2 and max(attempts(one, ids)) == 2
        assert_each_once(one, ids, before)


def test_no_worker_leaves_jobs_alone(data_dir: Path) -> None:
    with running(data_dir, "serve", options=["--no-worker"], WHENCE_API_KEY=SECRET) as server, client(server) as one:
        id = submit(one, 20)
        threading.Event().wait(3)
        assert states(one, [id]) == ["queued"]
        assert one.delete(f"/jobs/{id}").json()["state"] == "cancelled"
