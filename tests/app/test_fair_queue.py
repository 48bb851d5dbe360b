"""Pieces that give way on real threads: who is let in, who begins again, what becomes of the paused at the end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.complete import Once
from app.device import ASKED_BY, Device, Priority, Steps, Stopped
from app.refusals import QueueFull, ShuttingDown
from explainers.decoding import Piece
from explainers.errors import OutOfMemory
from explainers.types import Checkpoint
from explainers.undivided import undivided

pytestmark = pytest.mark.anyio

QUANTUM = 0.02


@pytest.fixture
async def device(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Device]:
    for module in ("device", "schedule"):
        monkeypatch.setattr(f"app.{module}.QUANTUM", QUANTUM)
    device = Device(limit=300, places=2, nice_places=1)
    yield device
    assert await asyncio.to_thread(device.close, 60.0)
    assert (device.waiting, device.paused, device.running) == (0, 0, 0)


class Giant:
    """Work with a checkpoint every millisecond, until it is let go; counts its beginnings and its ends."""

    def __init__(self) -> None:
        self.begun = self.ended = self.passes = 0
        self.thread = ""
        self.started, self.enough = threading.Event(), threading.Event()

    def __call__(self, checkpoint: Checkpoint) -> str:
        self.begun += 1
        self.started.set()
        self.thread = threading.current_thread().name
        try:
            while not self.enough.is_set():
                time.sleep(0.001)
                checkpoint()
                self.passes += 1
                assert threading.current_thread().name == self.thread
        finally:
            self.ended += 1
        return "done"


def submit(device: Device, work: Any, *, nice: bool = False, cost: float | None = None) -> asyncio.Task[Any]:
    return asyncio.create_task(device.result(device.submit(work, Priority(nice=nice, cost=cost))))


async def started(giant: Giant) -> None:
    assert await asyncio.to_thread(giant.started.wait, 60.0)


async def until(condition: Any) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        await asyncio.sleep(0.005)


def under_way(device: Device) -> int:
    """Read while nobody passes the turn on."""
    with device._changed:
        return device.paused + device.running


async def test_small_pieces_go_before_a_giant_that_runs(device: Device) -> None:
    giant = Giant()
    task = submit(device, giant)
    await started(giant)
    assert await asyncio.gather(*(submit(device, lambda _, n=n: n) for n in range(50))) == list(range(50))  # type: ignore[misc]
    assert (under_way(device), giant.ended) == (1, 0)
    giant.enough.set()
    assert await task == "done" and (giant.begun, giant.ended) == (1, 1)


async def test_one_piece_runs_at_a_time(device: Device) -> None:
    """However many threads there are."""
    inside, most = [0], [0]

    def work(checkpoint: Checkpoint) -> None:
        for _ in range(60):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.0005)
            inside[0] -= 1
            checkpoint()

    await asyncio.gather(*(submit(device, work, nice=bool(n % 3 == 0)) for n in range(12)))
    assert most == [1] and device.passed_on > 0


async def test_no_more_are_under_way_than_there_are_places(device: Device) -> None:
    """The third giant gives its first turn back and begins again when one of the others has ended."""
    giants = [Giant() for _ in range(4)]
    tasks = [submit(device, giant) for giant in giants]
    await until(lambda: device.begun_again >= 2 and device.waiting == 2)
    assert under_way(device) == 2
    assert await submit(device, lambda _: "small") == "small"
    assert len([giant for giant in giants if giant.begun - giant.ended]) == 2
    for giant in giants:
        giant.enough.set()
    assert await asyncio.gather(*tasks) == ["done"] * 4
    assert [giant.begun - giant.ended for giant in giants] == [0] * 4
    assert device.begun_again == 2 and sum(giant.begun for giant in giants) == 6


async def test_a_giant_that_is_known_as_one_waits_for_a_place(device: Device) -> None:
    giants = [Giant() for _ in range(4)]
    tasks = [submit(device, giant, cost=100.0) for giant in giants]
    await until(lambda: all(giant.passes > 20 for giant in giants[:2]))
    assert [giant.begun for giant in giants] == [1, 1, 0, 0] and device.begun_again == 0
    for giant in giants:
        giant.enough.set()
    await asyncio.gather(*tasks)


async def test_nice_giants_take_no_place_from_others(device: Device) -> None:
    nice, normal = [Giant() for _ in range(3)], [Giant() for _ in range(2)]
    tasks = [submit(device, giant, nice=True) for giant in nice]
    await started(nice[0])
    tasks += [submit(device, giant) for giant in normal]
    await until(lambda: all(giant.passes > 20 for giant in normal))
    assert [giant.begun for giant in nice] == [1, 0, 0]
    for giant in [*nice, *normal]:
        giant.enough.set()
    assert await asyncio.gather(*tasks) == ["done"] * 5


async def test_a_nice_giant_goes_on_beside_normal_ones(device: Device) -> None:
    nice, normal = Giant(), Giant()
    tasks = [submit(device, nice, nice=True), submit(device, normal)]
    await until(lambda: normal.begun and nice.begun)
    before, others = nice.passes, normal.passes
    await until(lambda: nice.passes > before and normal.passes > others + 200)
    assert nice.passes - before < normal.passes - others
    for giant in (nice, normal):
        giant.enough.set()
    await asyncio.gather(*tasks)


async def test_nobody_is_let_in_where_a_model_is_changed(device: Device) -> None:
    log = list[str]()
    begun, waited_for = threading.Event(), threading.Event()

    def work(checkpoint: Checkpoint) -> None:
        with undivided():
            begun.set()
            assert waited_for.wait(60)
            for _ in range(50):
                time.sleep(0.001)
                checkpoint()
            log.append("changed back")
        checkpoint()
        log.append("end")

    task = submit(device, work)
    await asyncio.to_thread(begun.wait, 10)
    small = submit(device, lambda _: log.append("small"))
    waited_for.set()
    await asyncio.gather(small, task)
    assert log == ["changed back", "small", "end"]


async def test_a_paused_piece_whose_caller_goes_is_cleared_away(device: Device) -> None:
    first, second = Giant(), Giant()
    tasks = [submit(device, giant) for giant in (first, second)]
    await until(lambda: first.passes > 20 and second.passes > 20)
    for task in tasks:
        task.cancel()
    await until(lambda: (first.ended, second.ended) == (1, 1) and not device.running)
    assert await submit(device, lambda _: "next") == "next"
    assert all(task.cancelled() for task in await settled(tasks))


async def settled(tasks: list[asyncio.Task[Any]]) -> list[asyncio.Task[Any]]:
    await asyncio.wait(tasks)
    return tasks


async def test_close_stops_the_paused_too() -> None:
    device = Device(limit=10, places=4)
    giants = [Giant() for _ in range(3)]
    tasks = [submit(device, giant, cost=5.0) for giant in giants]
    tasks.append(submit(device, giants[0], nice=True))
    await until(lambda: all(giant.passes for giant in giants))
    assert await asyncio.to_thread(device.close, 60.0)
    await settled(tasks)
    assert all(giant.begun == giant.ended for giant in giants)
    assert all(task.cancelled() or isinstance(task.exception(), ShuttingDown) for task in tasks)
    assert not any(
        thread.name.startswith("device") and thread in threads_of(device) for thread in threading.enumerate()
    )


def threads_of(device: Device) -> list[threading.Thread]:
    return [worker.thread for worker in device._workers]


async def test_what_does_not_fit_beside_others_is_tried_alone(device: Device) -> None:
    giant, tries = Giant(), list[int]()

    def large(_: Checkpoint) -> str:
        tries.append(device.paused)
        if device.paused:
            raise OutOfMemory("too large beside others")
        return "fits"

    def hopeless(_: Checkpoint) -> None:
        raise OutOfMemory("too large")

    task = submit(device, giant)
    await until(lambda: giant.passes > 30)
    asked = submit(device, large)
    await until(lambda: tries == [1])
    later = submit(device, Giant(), cost=50.0)
    assert await submit(device, lambda _: "small") == "small"
    assert device.waiting == 2
    giant.enough.set()
    assert await asked == "fits" and await task == "done" and tries == [1, 0]
    later.cancel()
    with pytest.raises(OutOfMemory, match=r"^too large$"):
        await submit(device, hopeless)


async def test_keys_share_the_device(device: Device) -> None:
    """Fifty pieces of one key do not keep the one of another waiting."""
    order, held = list[str](), threading.Event()

    async def ask(key: str) -> None:
        ASKED_BY.set(("tenant", key))
        await device.result(device.submit(lambda _: (time.sleep(0.001), order.append(key)), Priority()))

    first = submit(device, lambda _: held.wait(10))
    tasks = [asyncio.create_task(ask("greedy")) for _ in range(50)]
    tasks.append(asyncio.create_task(ask("modest")))
    await until(lambda: device.waiting == 51)
    held.set()
    await asyncio.gather(first, *tasks)
    assert order.index("modest") <= 3


async def test_what_is_told_of_the_queue(device: Device) -> None:
    device.limit = 2
    giant, held = Giant(), threading.Event()
    assert (device.waiting, device.paused, device.running, device.oldest_waiting_seconds) == (0, 0, 0, 0.0)
    task = submit(device, giant)
    await until(lambda: giant.passes > 30)
    small = [submit(device, lambda _: held.wait(10))]
    await until(lambda: device.paused == 1 and device.waiting == 0)
    small += [submit(device, lambda _: None) for _ in range(2)]
    await asyncio.sleep(0.05)
    assert (device.paused, device.running) == (1, 1) and 0.04 < device.oldest_waiting_seconds < 60
    device.service_seconds = 6.0
    with pytest.raises(QueueFull) as full:
        device.submit(lambda _: None, Priority())
    assert full.value.retry_after == 16  # two first turns, in three quarters of the time
    held.set()
    giant.enough.set()
    await asyncio.gather(task, *small)


async def test_steps_are_counted_anew() -> None:
    steps = Steps()
    steps.total = 10
    for _ in range(2):
        count = steps.counting(lambda: None)
        for _ in range(3):
            count()
    assert steps.done == 3


async def test_a_listener_hears_nothing_twice() -> None:
    told = list[Any]()
    once = Once(told.append)
    pieces = [Piece(0, text, text) for text in "abcd"]
    for count in (2, 1, 4):
        hear = once.from_the_start()
        for piece in pieces[:count]:
            hear(piece)
    assert told == pieces


async def test_many_at_once_all_end(device: Device) -> None:
    """Small and large, nice and not, some of whose callers go away at any time."""
    ended = list[int]()

    def work(number: int) -> Any:
        def run(checkpoint: Checkpoint) -> int:
            try:
                for _ in range(number % 40):
                    time.sleep(0.0005)
                    checkpoint()
            except Stopped:
                raise
            else:
                ended.append(number)
            return number

        return run

    tasks = [submit(device, work(number), nice=number % 5 == 0) for number in range(200)]
    for number in range(0, 200, 9):
        await asyncio.sleep(0.003)
        tasks[number].cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    answered = [one for one in found if not isinstance(one, BaseException)]
    assert all(isinstance(one, int | asyncio.CancelledError) for one in found)
    assert set(answered) <= set(ended) and len(ended) == len(set(ended)) and len(answered) >= 177
    assert answered == [number for number, one in enumerate(found) if not isinstance(one, BaseException)]
