"""One thread that owns the device, and the bounded queue in front of it.

Work runs one piece at a time, normal pieces before nice ones and each kind in order of arrival. A piece whose caller
has gone is dropped from the queue, or stopped at its next checkpoint when it already runs.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from app.refusals import QueueFull, ShuttingDown
from explainers.types import Checkpoint

Outcome = TypeVar("Outcome")
Work = Callable[[Checkpoint], Outcome]

FIRST_GUESS_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 60


class Stopped(BaseException):
    """Raised out of a checkpoint: nobody waits for this work. No `Exception`, so that no method swallows it."""


class Broken(Exception):
    """What a library raised past `Exception`, such as a panic of its Rust code: the caller sees a plain defect."""


class Priority:
    """Whether a piece of work waits behind all normal ones; may become normal while it waits."""

    def __init__(self, *, nice: bool = False) -> None:
        self.nice = nice


class Steps:
    """How far a piece of work is: `done` of `total` passes through a model, written by whoever does it."""

    def __init__(self) -> None:
        self.done, self.total = 0, 1

    def counting(self, checkpoint: Checkpoint) -> Checkpoint:
        """The same checkpoint, which counts; the last step is made by the end of the work alone."""

        def count() -> None:
            checkpoint()
            self.done = min(self.done + 1, self.total - 1)

        return count


class Ticket:
    """One piece of work in the queue and the future its caller awaits."""

    def __init__(self, work: Work[Any], priority: Priority, loop: asyncio.AbstractEventLoop) -> None:
        self.work = work
        self.priority = priority
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()
        self.stopped = threading.Event()
        self.arrived = time.monotonic()

    def checkpoint(self) -> None:
        if self.stopped.is_set():
            raise Stopped

    def settle(self, outcome: Any, error: BaseException | None) -> None:
        """Hands the outcome to the caller's event loop, if the loop still runs."""
        try:
            self.loop.call_soon_threadsafe(self._resolve, outcome, error)
        except RuntimeError:  # the loop is closed: nobody waits
            return

    def _resolve(self, outcome: Any, error: BaseException | None) -> None:
        if self.future.done():
            return
        if isinstance(error, Stopped):
            self.future.cancel()
        elif error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(outcome)


class Device:
    """The thread and its queue. `limit` bounds the pieces that wait, not the one that runs."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.service_seconds = FIRST_GUESS_SECONDS
        self._queue: list[Ticket] = []
        self._running: Ticket | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._serve, name="device", daemon=True)
        self._thread.start()

    def submit(self, work: Work[Outcome], priority: Priority, *, bounded: bool = True) -> Ticket:
        """Puts work into the queue; raises `QueueFull` when too many pieces wait and `bounded` is set."""
        ticket = Ticket(work, priority, asyncio.get_running_loop())
        with self._changed:
            if self._closed:
                raise ShuttingDown
            if bounded and len(self._queue) >= self.limit:
                raise QueueFull(self.retry_after())
            self._queue.append(ticket)
            self._changed.notify()
        return ticket

    async def result(self, ticket: Ticket) -> Any:
        """What the work returns or raises; being cancelled here stops the work."""
        try:
            return await ticket.future
        except asyncio.CancelledError:
            self.drop(ticket)
            raise

    @property
    def waiting(self) -> int:
        """Pieces of work in the queue."""
        return len(self._queue)

    @property
    def busy(self) -> bool:
        """Whether a piece of work holds the device."""
        return self._running is not None

    @property
    def oldest(self) -> float:
        """Seconds that the piece of work has waited that waits longest."""
        with self._changed:
            arrived = [ticket.arrived for ticket in self._queue]
        return time.monotonic() - min(arrived) if arrived else 0.0

    def retry_after(self) -> int:
        """Whole seconds until a place in the queue is likely to be free."""
        return min(LONGEST_RETRY_SECONDS, max(1, math.ceil(self.service_seconds)))

    def drop(self, ticket: Ticket) -> None:
        """Takes work that waits out of the queue, and tells work that runs to stop at its next checkpoint."""
        ticket.stopped.set()
        with self._changed:
            if ticket in self._queue:
                self._queue.remove(ticket)

    def close(self, seconds: float) -> bool:
        """Takes no new work, refuses what waits, stops what runs; True when the thread has ended in time."""
        with self._changed:
            self._closed = True
            waiting, self._queue = self._queue, []
            if self._running is not None:
                self._running.stopped.set()
            self._changed.notify()
        for ticket in waiting:
            ticket.settle(None, ShuttingDown())
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _serve(self) -> None:
        while (ticket := self._next()) is not None:
            started = time.perf_counter()
            outcome, error = attempt(ticket)
            self.service_seconds += 0.2 * (time.perf_counter() - started - self.service_seconds)
            ticket.settle(outcome, error)
            # Nothing of a finished piece may stay referenced while the thread waits for the next one.
            del ticket, outcome, error

    def _next(self) -> Ticket | None:
        with self._changed:
            self._running = None
            self._changed.wait_for(lambda: self._closed or self._queue)
            if self._closed:
                return None
            # The first normal piece, or the first of all when only nice ones wait (False sorts before True).
            self._running = min(self._queue, key=lambda ticket: ticket.priority.nice)
            self._queue.remove(self._running)
            return self._running


def attempt(ticket: Ticket) -> tuple[Any, BaseException | None]:
    """Runs one piece of work; whatever it raises belongs to its caller, never to the thread."""
    try:
        ticket.checkpoint()
        return ticket.work(ticket.checkpoint), None
    except Stopped as error:
        return None, error
    except BaseException as error:  # noqa: BLE001 - the thread outlives every piece of work, also one that panics
        return None, error if isinstance(error, Exception) else Broken(type(error).__name__)
