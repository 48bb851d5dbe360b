"""Long work shares the device: it takes turns with whatever else waits, one short stretch of its passes at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Generic, TypeAlias, TypeVar

from app.device import Priority
from app.runtime import Runtime
from explainers.types import Checkpoint, never_stop

Outcome = TypeVar("Outcome")

Start: TypeAlias = Callable[[Checkpoint], Generator[None, None, Outcome]]
"""Begins work that pauses after each of its passes, and calls the checkpoint before each."""

TURN_SECONDS = 0.25


async def take_turns(runtime: Runtime, start: Start[Outcome], priority: Priority) -> Outcome:
    """The outcome of the work; cancelling this stops it at its next checkpoint.

    Raises `QueueFull` at once when too much work waits already, but not once the work has begun.
    """
    turns = Turns(start)
    while not turns.finished:
        ticket = runtime.device.submit(runtime.observed(turns.take), priority, bounded=not turns.begun)
        await runtime.device.result(ticket)
    return turns.outcome


class Turns(Generic[Outcome]):
    """Work in progress; lives on the device thread while it is taking a turn."""

    outcome: Outcome

    def __init__(self, start: Start[Outcome]) -> None:
        self.begun = self.finished = False
        self._checkpoint: Checkpoint = never_stop
        self._steps = start(self.checkpoint)

    def checkpoint(self) -> None:
        """That of the present turn."""
        self._checkpoint()

    def take(self, checkpoint: Checkpoint) -> None:
        """Goes on for one turn, or to the end."""
        self.begun, self._checkpoint = True, checkpoint
        end = time.monotonic() + TURN_SECONDS
        try:
            while time.monotonic() < end:
                next(self._steps)
        except StopIteration as stop:
            self.finished, self.outcome = True, stop.value


class Spent:
    """Seconds that work has kept the device, without its pauses."""

    seconds = 0.0


def timed(start: Start[Outcome], spent: Spent) -> Start[Outcome]:
    """The same work, which tells its seconds while it goes on."""

    def begin(checkpoint: Checkpoint) -> Generator[None, None, Outcome]:
        steps = start(checkpoint)
        while True:
            began = time.perf_counter()
            try:
                next(steps)
            except StopIteration as stop:
                outcome: Outcome = stop.value
                return outcome
            finally:
                spent.seconds += time.perf_counter() - began
            yield

    return begin
