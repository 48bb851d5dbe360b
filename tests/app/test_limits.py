"""A real server on a real port: size limits, clients that go away, deadlines, shared computations."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from app.device import Priority
from app.main import create_app
from app.settings import Settings
from explainers.undivided import undivided
from tests import tiny_models
from tests.app.conftest import ADMIN_KEY, PROMPT, TARGET, Running, Start, ready, until

pytestmark = pytest.mark.anyio

BODY = {"model": "limits-lm", "prompt": PROMPT, "target": TARGET}
HEADERS = {"Authorization": f"Bearer {ADMIN_KEY}", "Content-Type": "application/json"}


@contextmanager
def served(settings: Settings) -> Iterator[tuple[str, uvicorn.Server]]:
    """The application in a thread of its own, on a free port."""
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", server
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def url(data_dir: Path, models_dir: Path) -> Iterator[str]:
    tiny_models.save(models_dir / "limits-lm")
    settings = Settings(data_dir=data_dir, api_key=ADMIN_KEY, models_dir=models_dir, device="cpu")
    with served(settings) as (address, _):
        httpx.post(f"{address}/models", json={"name": "limits-lm", "path": "limits-lm"}, headers=HEADERS, timeout=60)
        yield address
        httpx.delete(f"{address}/models/limits-lm", headers=HEADERS, timeout=60)


@pytest.fixture
async def client(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, headers=HEADERS, timeout=60) as client:
        yield client


def assert_too_large(response: httpx.Response) -> None:
    assert (response.status_code, response.json()["code"]) == (413, "PAYLOAD_TOO_LARGE")
    assert "retry-after" not in response.headers
    assert response.headers["content-type"] == "application/problem+json"


async def test_announced_too_large(client: httpx.AsyncClient) -> None:
    body = json.dumps({**BODY, "prompt": "x" * 10_000_000}).encode()
    assert_too_large(await client.post("/explain", content=body))
    assert (await client.get("/healthz")).status_code == 200


async def test_streamed_too_large(client: httpx.AsyncClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(160):
            yield b"x" * 65_536

    assert_too_large(await client.post("/explain", content=pieces()))
    assert (await client.post("/explain", json=BODY)).status_code == 200


async def test_largest_body_that_is_read(client: httpx.AsyncClient) -> None:
    body = json.dumps({**BODY, "unknown": "x" * 8_000_000}).encode()
    assert (await client.post("/explain", content=body)).status_code == 200


async def hold(running: Running) -> threading.Event:
    """Keeps the device busy until the event is set; models that are still being loaded come first."""
    await ready(running)
    opened, started = threading.Event(), threading.Event()

    def work(checkpoint: Any) -> None:
        started.set()
        with undivided():
            while not opened.wait(0.005):
                checkpoint()

    task = asyncio.create_task(running.server.explainer.runtime.run(work))
    running.app.state.held = task
    assert await asyncio.to_thread(started.wait, 60)
    return opened


async def test_past_the_deadline_the_answer_is_stored(start: Start, tiny_lm: Path) -> None:
    async with start(deadline_seconds=0.2) as running:
        await running.add(tiny_lm, "slow-lm")
        opened = await hold(running)
        late = await running.explain(model="slow-lm")
        assert (late.status_code, late.json()["code"]) == (409, "STILL_RUNNING")
        again = await running.explain(model="slow-lm")
        assert again.json()["job"] == late.json()["job"]
        assert (await running.client.get(f"/explanations/{late.json()['job']}")).status_code == 404
        opened.set()
        stored = f"/explanations/{late.json()['job']}"
        async with asyncio.timeout(60):
            while (await running.client.get(stored)).status_code != 200:  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0.02)
        assert (await running.explain(model="slow-lm")).json()["id"] == late.json()["job"]
        await running.client.delete("/models/slow-lm")


async def test_identical_requests_are_computed_once(start: Start, tiny_lm: Path) -> None:
    async with start() as running:
        await running.add(tiny_lm, "shared-lm")
        opened = await hold(running)
        asked = [asyncio.create_task(running.explain(model="shared-lm")) for _ in range(8)]
        await until(lambda: running.server.explainer.flights.waiters == 8)
        assert (len(running.server.explainer.flights), running.server.explainer.runtime.device.waiting) == (1, 1)
        opened.set()
        answers = await asyncio.gather(*asked)
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.json()["id"] for answer in answers}) == 1
        await running.client.delete("/models/shared-lm")


async def test_full_queue(start: Start, tiny_lm: Path) -> None:
    async with start(queue_limit=2) as running:
        await running.add(tiny_lm, "busy-lm")
        opened = await hold(running)
        factors = [0.01, 0.02]
        waiting = [asyncio.create_task(running.explain(model="busy-lm", control_factor=f)) for f in factors]
        await until(lambda: running.server.explainer.runtime.device.waiting == 2)
        full = await running.explain(model="busy-lm", control_factor=0.03)
        assert (full.status_code, full.json()["code"]) == (503, "QUEUE_FULL")
        assert full.headers["retry-after"].isdecimal() and int(full.headers["retry-after"]) >= 1
        opened.set()
        assert [(await task).status_code for task in waiting] == [200, 200]
        await running.client.delete("/models/busy-lm")


async def test_work_ends_with_its_last_client(data_dir: Path, models_dir: Path, url: str) -> None:
    """The connection is closed while the request waits for the device: its work never starts."""
    settings = Settings(data_dir=data_dir, api_key=ADMIN_KEY, models_dir=models_dir, device="cpu")
    with served(settings) as (address, server):
        explainer = server.config.app.state.server.explainer
        opened, started = threading.Event(), threading.Event()

        def busy(_: Any) -> None:
            started.set()
            opened.wait(120)

        async with httpx.AsyncClient(base_url=address, headers=HEADERS, timeout=60) as client:
            assert (await client.post("/explain", json=BODY)).status_code == 200
            device = explainer.runtime.device
            await until(lambda: httpx.get(f"{address}/readyz", timeout=60).status_code == 200)
            ticket = device.submit(busy, Priority())
            assert await asyncio.to_thread(started.wait, 60)
            with pytest.raises(httpx.ReadTimeout):
                timeout = httpx.Timeout(60, read=0.5)
                await client.post("/explain", json={**BODY, "control_factor": 0.77}, timeout=timeout)
        await until(lambda: device.waiting == 0 and len(explainer.flights) == 0)
        opened.set()
        await device.result(ticket)
