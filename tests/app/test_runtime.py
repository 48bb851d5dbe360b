"""The device thread, its queue, and flights of identical requests."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from app.device import Broken, Device, Priority, Steps, Stopped
from app.flights import SingleFlight
from app.refusals import QueueFull, ShuttingDown, StillRunning
from explainers.types import Checkpoint
from explainers.undivided import undivided

pytestmark = pytest.mark.anyio


@pytest.fixture
async def device() -> AsyncIterator[Device]:
    device = Device(limit=3)
    yield device
    assert await asyncio.to_thread(device.close, 60.0)


class Gate:
    """Work that has started, and goes on once it is opened; notices when it is stopped, and lets nobody pass."""

    def __init__(self) -> None:
        self.started, self.opened, self.stopped = threading.Event(), threading.Event(), threading.Event()

    def __call__(self, checkpoint: Checkpoint) -> str:
        self.started.set()
        try:
            with undivided():
                while not self.opened.wait(0.002):
                    checkpoint()
        except Stopped:
            self.stopped.set()
            raise
        return "done"


async def happened(event: threading.Event) -> bool:
    return await asyncio.to_thread(event.wait, 60.0)


def submit(device: Device, work: Callable[[Checkpoint], Any], *, nice: bool = False) -> asyncio.Task[Any]:
    return asyncio.create_task(device.result(device.submit(work, Priority(nice=nice))))


async def test_outcome_and_error(device: Device) -> None:
    def failing(_: Checkpoint) -> None:
        raise KeyError("x")

    assert await submit(device, lambda _: threading.current_thread().name) == "device"
    with pytest.raises(KeyError):
        await submit(device, failing)
    assert await submit(device, lambda _: 2) == 2


async def test_nice_work_waits_behind_all_normal_work(device: Device) -> None:
    gate, order = Gate(), list[str]()
    first = submit(device, gate)
    await happened(gate.started)
    waiting = [
        submit(device, lambda _, name=name: order.append(name), nice=name.startswith("nice"))  # type: ignore[misc]
        for name in ("nice", "a", "b")
    ]
    await asyncio.sleep(0)
    gate.opened.set()
    await asyncio.gather(first, *waiting)
    assert order == ["a", "b", "nice"]


async def test_nice_work_may_become_normal(device: Device) -> None:
    gate, order = Gate(), list[str]()
    first = submit(device, gate)
    await happened(gate.started)
    priority = Priority(nice=True)
    promoted = device.submit(lambda _: order.append("promoted"), priority)
    normal = device.submit(lambda _: order.append("normal"), Priority())
    priority.nice = False
    gate.opened.set()
    await asyncio.gather(first, device.result(promoted), device.result(normal))
    assert order == ["promoted", "normal"]


async def test_full_queue_says_when_to_come_back(device: Device) -> None:
    gate = Gate()
    first = submit(device, gate)
    await happened(gate.started)
    waiting = [submit(device, lambda _: None) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull) as full:
        device.submit(lambda _: None, Priority())
    assert isinstance(full.value.retry_after, int) and full.value.retry_after >= 1
    unbounded = device.submit(lambda _: "loaded", Priority(), bounded=False)
    gate.opened.set()
    await asyncio.gather(first, *waiting)
    assert await device.result(unbounded) == "loaded"


async def test_cancelled_while_running_and_while_waiting(device: Device) -> None:
    gate, ran = Gate(), threading.Event()
    running, waiting = submit(device, gate), submit(device, lambda _: ran.set())
    await happened(gate.started)
    waiting.cancel()
    running.cancel()
    assert await happened(gate.stopped)
    assert await submit(device, lambda _: "next") == "next"
    assert not ran.is_set()
    for task in (running, waiting):
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_the_thread_outlives_a_panic(device: Device) -> None:
    """The Rust code of tokenizers raises past `Exception`; a dead thread would leave every caller waiting for ever."""

    class Panic(BaseException):
        pass

    def panicking(_: Checkpoint) -> None:
        raise Panic("with a prompt in its text")

    with pytest.raises(Broken, match=r"^Panic$"):
        await submit(device, panicking)
    assert await submit(device, lambda _: "next") == "next"


async def test_close_refuses_what_waits_and_stops_what_runs() -> None:
    device, gate = Device(limit=3), Gate()
    running, waiting = submit(device, gate), submit(device, lambda _: None)
    await happened(gate.started)
    assert await asyncio.to_thread(device.close, 60.0)
    with pytest.raises(ShuttingDown):
        await waiting
    with pytest.raises(asyncio.CancelledError):
        await running
    with pytest.raises(ShuttingDown):
        device.submit(lambda _: None, Priority())


class Counted:
    """A flight's work: counts its starts, ends when let go."""

    def __init__(self) -> None:
        self.starts = 0
        self.priority: Priority | None = None
        self.go, self.cancelled = asyncio.Event(), asyncio.Event()

    async def __call__(self, priority: Priority, steps: Steps) -> str:
        self.starts += 1
        self.priority, self.steps = priority, steps
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return "landed"


async def test_identical_requests_share_a_flight() -> None:
    flights, work = SingleFlight[str](), Counted()
    waiters = [asyncio.create_task(flights.join("key", "job", work, deadline=60)) for _ in range(5)]
    other = asyncio.create_task(flights.join("other", "job", work, deadline=60))
    await asyncio.sleep(0.01)
    work.go.set()
    assert await asyncio.gather(*waiters, other) == ["landed"] * 6
    assert work.starts == 2


async def test_all_who_join_see_the_same_steps() -> None:
    flights, work, seen = SingleFlight[str](), Counted(), list[Steps]()
    waiters = [asyncio.create_task(flights.join("k", "job", work, deadline=60, watch=seen.append)) for _ in range(2)]
    await asyncio.sleep(0.01)
    assert seen == [work.steps, work.steps]
    work.go.set()
    await asyncio.gather(*waiters)


def test_steps_are_counted_and_the_last_is_left_to_the_end() -> None:
    passed, steps = list[int](), Steps()
    steps.total = 3
    count = steps.counting(lambda: passed.append(1))
    for _ in range(5):
        count()
    assert (steps.done, len(passed)) == (2, 5)


async def test_cancelled_only_when_all_have_left() -> None:
    flights, work = SingleFlight[str](), Counted()
    first, second = [asyncio.create_task(flights.join("key", "job", work, deadline=60)) for _ in range(2)]
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.sleep(0.01)
    assert not work.cancelled.is_set()
    second.cancel()
    await asyncio.wait_for(work.cancelled.wait(), 60)


async def test_past_the_deadline_it_goes_on() -> None:
    flights, work = SingleFlight[str](), Counted()
    with pytest.raises(StillRunning) as still:
        await flights.join("key", "the-job", work, deadline=0.01)
    assert still.value.job == "the-job"
    again = asyncio.create_task(flights.join("key", "other-job", work, deadline=60))
    await asyncio.sleep(0.01)
    work.go.set()
    assert await again == "landed"
    assert work.starts == 1 and not work.cancelled.is_set()


async def test_one_who_is_not_nice_hurries_the_flight() -> None:
    flights, work = SingleFlight[str](), Counted()
    nice = asyncio.create_task(flights.join("key", "job", work, deadline=60, nice=True))
    await asyncio.sleep(0.01)
    assert work.priority is not None and work.priority.nice
    normal = asyncio.create_task(flights.join("key", "job", work, deadline=60))
    await asyncio.sleep(0.01)
    assert not work.priority.nice
    work.go.set()
    await asyncio.gather(nice, normal)


async def test_closing_tells_those_who_wait() -> None:
    flights, work = SingleFlight[str](), Counted()
    waiter = asyncio.create_task(flights.join("key", "job", work, deadline=60))
    await asyncio.sleep(0.01)
    await flights.close()
    with pytest.raises(ShuttingDown):
        await waiter


async def test_service_time_is_learnt(device: Device) -> None:
    for _ in range(30):
        await submit(device, lambda _: None)
    assert device.service_seconds < 0.1
    await submit(device, lambda _: time.sleep(0.05))
    assert device.service_seconds > 0.005
