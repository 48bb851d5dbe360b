"""A real server process under many clients, and killed in the middle of its work."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import tiny_models
from tests.clients.server import Server, objects, running, whence
from tests.postgres import reachable_folder

SECRET = "a-secret-under-load"
CLIENTS, REQUESTS, DIFFERENT = 20, 500, 40
NAMES = ("Anna", "Ben", "Clara", "David", "Emma")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Data of a server that has one tiny random model."""
    model = tiny_models.save(tmp_path_factory.mktemp("model") / "tiny")
    with reachable_folder() as folder:
        objects(whence(folder, "models", "add", "tiny-lm", str(model), "--kind", "causal-lm", "--json"))
        yield folder


def body(number: int) -> dict[str, Any]:
    name = NAMES[number % len(NAMES)]
    return {
        "model": "tiny-lm",
        "prompt": f"{name} lives in Oslo. Ben lives in Rome. The key is in box {number}. {name} lives in",
        "target": " Oslo",
        "prompt_granularity": {"type": "word" if number % 2 else "sentence"},
        "target_granularity": "token" if number % 3 else "complete",
    }


def client(server: Server) -> httpx.Client:
    return httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {SECRET}"}, timeout=60)


def scores(answer: dict[str, Any]) -> list[float]:
    return [
        score["score"]
        for explained in answer["explanations"]
        for item in explained["items"]
        for score in item["scores"]
    ]


def test_twenty_clients_get_the_numbers_of_one(data_dir: Path) -> None:
    with running(data_dir, WHENCE_API_KEY=SECRET) as server, client(server) as one:
        alone = [one.post("/explain", json=body(n) | {"fresh": True}).raise_for_status() for n in range(DIFFERENT)]
        expected = [scores(response.json()) for response in alone]

        def ask(number: int) -> None:
            response = one.post("/explain", json=body(number % DIFFERENT) | {"fresh": number % 4 != 0})
            assert response.status_code == 200, response.text
            assert scores(response.json()) == pytest.approx(expected[number % DIFFERENT], abs=1e-6)

        with ThreadPoolExecutor(CLIENTS) as pool:
            assert len(list(pool.map(ask, range(REQUESTS)))) == REQUESTS
        mapped = Path(f"/proc/{server.process.pid}/maps").read_text()
        assert "libtorch" in mapped and "_raylet" not in mapped  # Ray is for those who configure a cluster


def test_nothing_answered_is_lost_when_the_server_is_killed(data_dir: Path) -> None:
    answered: list[str] = []
    with running(data_dir, returncode=-signal.SIGKILL, WHENCE_API_KEY=SECRET) as server:
        enough = threading.Event()
        with client(server) as shared, ThreadPoolExecutor(CLIENTS) as pool:
            asked = [pool.submit(ask_until_gone, shared, count(1000 * n), answered, enough) for n in range(CLIENTS)]
            assert enough.wait(60)
            server.process.kill()
            for future in asked:
                future.result()
    wait_until_gone(data_dir)
    assert len(answered) >= 50
    with running(data_dir, WHENCE_API_KEY=SECRET) as server, client(server) as again:
        found = [again.get(f"/explanations/{name}").status_code for name in answered]
    assert found == [200] * len(answered)


def ask_until_gone(shared: httpx.Client, numbers: Iterator[int], answered: list[str], enough: threading.Event) -> None:
    """Asks for one explanation after the other until the server no longer answers."""
    with suppress(httpx.TransportError):
        for number in numbers:
            answered.append(shared.post("/explain", json=body(number)).raise_for_status().json()["id"])
            if len(answered) >= 50:
                enough.set()


def wait_until_gone(data_dir: Path) -> None:
    """Postgres ends with its server, by itself and soon."""
    pause = threading.Event()
    for _ in range(600):
        if not list(database_processes(data_dir)):
            return
        pause.wait(0.1)
    raise AssertionError(f"still running: {list(database_processes(data_dir))}")


def database_processes(data_dir: Path) -> Iterator[str]:
    cluster = str((data_dir / "postgres").resolve())
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if cluster in (process / "cmdline").read_text() or str((process / "cwd").resolve()) == cluster:
                yield process.name
