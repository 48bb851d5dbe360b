"""Identical requests that are in flight at the same time are computed once.

A flight goes on as long as somebody waits for it. When all waiters have gone away it is cancelled; when a waiter ran
into its deadline it is detached: it goes on to its end, for its result will be asked for later. Who waits without a
deadline (a job) looks after the flight, and takes it along when leaving.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from app.device import Priority, Steps
from app.refusals import ShuttingDown, StillRunning

Landed = TypeVar("Landed")
Start = Callable[[Priority, Steps], Coroutine[Any, Any, Landed]]
Watch = Callable[[Steps], None]
"""Is told where to read how far a flight is."""

log = logging.getLogger(__name__)


class Flight(Generic[Landed]):
    def __init__(self, job: str, priority: Priority, steps: Steps, task: asyncio.Task[Landed]) -> None:
        self.job = job
        self.priority = priority
        self.steps = steps
        self.task = task
        self.waiters = 0
        self.detached = False


class SingleFlight(Generic[Landed]):
    """Flights by key. A key must name the tenant: nobody joins a stranger's flight."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, Flight[Landed]] = {}

    def __len__(self) -> int:
        """Flights under way."""
        return len(self._flights)

    @property
    def waiters(self) -> int:
        """Requests that wait for a flight to land."""
        return sum(flight.waiters for flight in self._flights.values())

    async def join(
        self,
        key: Hashable,
        job: str,
        start: Start[Landed],
        *,
        deadline: float | None,
        nice: bool = False,
        watch: Watch | None = None,
    ) -> Landed:
        """The outcome of the flight named `key`, begun with `start` unless it is on its way already.

        Raises `StillRunning`, naming the flight's job, when it has not landed after `deadline` seconds. A flight that
        began nice becomes a normal one as soon as somebody joins who is not.
        """
        flight = self._flights.get(key) or self._begin(key, job, start, Priority(nice=nice))
        flight.priority.nice = flight.priority.nice and nice
        flight.waiters += 1
        if watch is not None:
            watch(flight.steps)
        try:
            await asyncio.wait({flight.task}, timeout=deadline)
            if not flight.task.done():
                flight.detached = True
                raise StillRunning(flight.job)
        finally:
            flight.waiters -= 1
            flight.detached = flight.detached and deadline is not None
            self._abandon(key, flight)
        if flight.task.cancelled():  # only the end of the server cancels a flight that has waiters
            raise ShuttingDown
        return flight.task.result()

    async def close(self) -> None:
        """Cancels every flight and waits until all have ended."""
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, key: Hashable, job: str, start: Start[Landed], priority: Priority) -> Flight[Landed]:
        steps = Steps()
        flight = Flight(job, priority, steps, asyncio.create_task(start(priority, steps)))
        self._flights[key] = flight
        flight.task.add_done_callback(lambda _: self._land(key, flight))
        return flight

    def _abandon(self, key: Hashable, flight: Flight[Landed]) -> None:
        if flight.waiters == 0 and not flight.detached and not flight.task.done():
            self._forget(key, flight)
            flight.task.cancel()

    def _land(self, key: Hashable, flight: Flight[Landed]) -> None:
        self._forget(key, flight)
        if flight.task.cancelled():
            return
        error = flight.task.exception()  # also tells asyncio that the error has been seen
        if error is not None and flight.detached:
            log.warning("job %s failed: %s", flight.job, type(error).__name__)

    def _forget(self, key: Hashable, flight: Flight[Landed]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
