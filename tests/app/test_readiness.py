"""Which part is not ready, and how requests end with the server."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import namedtuple
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from app import readiness
from app.traffic import Traffic
from tests.app.conftest import Running, Start, until
from tests.app.test_limits import hold

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def served(start: Start, tiny_lm: Path) -> AsyncIterator[Running]:
    async with start() as running:
        await running.add(tiny_lm, "ready-lm")
        yield running
        await running.client.delete("/models/ready-lm")


@pytest.fixture
def ready(served: Running) -> Iterator[Running]:
    """A server that has not been told to end, or not for good."""
    yield served
    served.app.state.traffic.stopping = False


async def missing(running: Running) -> tuple[int, list[str]]:
    response = await running.client.get("/readyz", headers={"Authorization": ""})
    return response.status_code, response.json()["not_ready"]


async def test_each_part_is_named(ready: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    while (await missing(ready))[0] != 200:  # noqa: ASYNC110 - there is no event for it
        await asyncio.sleep(0.05)
    assert await missing(ready) == (200, [])
    ready.server.jobs.looking = False
    assert await missing(ready) == (503, ["worker"])
    ready.server.jobs.looking = True
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, readiness.LEAST_DISK_BYTES - 1))
    assert await missing(ready) == (503, ["disk"])


async def test_a_server_without_a_worker_is_ready(start: Start) -> None:
    async with start(worker=False) as running:
        parts = (await running.client.get("/readyz")).json()
        assert parts["worker"] is None and "worker" not in parts["not_ready"]


async def test_it_is_looked_up_twice_a_second_at_most(ready: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    looked, look = list[int](), readiness.look

    async def counting(explainer: Any) -> Any:
        looked.append(1)
        return await look(explainer)

    monkeypatch.setattr(readiness, "look", counting)
    started = time.monotonic()
    await asyncio.gather(*(missing(ready) for _ in range(50)))
    assert len(looked) <= 1 + (time.monotonic() - started) / readiness.FRESH_SECONDS


async def test_who_waits_too_long_is_refused_and_who_comes_later_too(ready: Running) -> None:
    opened = await hold(ready)
    waiting = [asyncio.create_task(ready.explain(model="ready-lm", control_factor=n / 9)) for n in range(3)]
    await until(lambda: len(ready.app.state.traffic) == 3)
    assert await ready.app.state.traffic.end(0.1) == 3
    for response in await asyncio.gather(*waiting):
        assert (response.status_code, response.json()["code"]) == (503, "SHUTTING_DOWN")
        assert response.headers["retry-after"] and response.headers["connection"] == "close"
        assert response.headers["x-request-id"]
    assert ready.server.explainer.runtime.device.waiting == 0  # their work went with them
    late = await ready.explain(model="ready-lm")
    assert (late.status_code, late.json()["code"]) == (503, "SHUTTING_DOWN")
    assert await missing(ready) == (503, ["accepting"])
    assert [(await ready.client.get(path)).status_code for path in ("/healthz", "/metrics")] == [200, 200]
    opened.set()


async def test_who_is_answered_in_time_is_not_refused(ready: Running) -> None:
    opened = await hold(ready)
    waiting = asyncio.create_task(ready.explain(model="ready-lm", control_factor=0.35))
    await until(lambda: len(ready.app.state.traffic) == 1)
    ending = asyncio.create_task(ready.app.state.traffic.end(30))
    await asyncio.sleep(0.05)
    opened.set()
    assert (await waiting).status_code == 200 and await ending == 0


async def test_hurried() -> None:
    traffic = Traffic()

    async def stubborn() -> None:
        with traffic.under_way():
            await asyncio.sleep(30)

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    started = time.monotonic()
    assert await traffic.end(30, hurried=lambda: True) == 1
    assert time.monotonic() - started < 5
    with pytest.raises(asyncio.CancelledError):
        await task
