"""One piece of work on its way through the cluster: sent, followed, and sent again where a replica ends with it."""

from __future__ import annotations

import asyncio
import logging
import pickle
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from ray.exceptions import ActorDiedError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException

from app.cluster.parcels import Ended, News, Order, Shared, pack, unpack
from app.device import ASKED_BY, Broken, Outcome, Priority, Work
from app.meters import Meters
from app.refusals import QueueFull, Unreachable
from app.runtime import Spent
from app.tracing import Traces
from explainers.language_model import LanguageModel

log = logging.getLogger(__name__)

MOST_DEATHS = 4
"""Replicas that one piece of work may have ended with: it may be what ends them."""
MOST_TRIES = 12
MOST_FULL = 3
SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
LOOK_SECONDS = 0.25
"""Between two looks at whether somebody waits now for nice work."""


class Lost(Exception):
    """The replica has ended, or cannot be reached; `died`: with the work."""

    def __init__(self, error: str, *, died: bool) -> None:
        super().__init__(error)
        self.died = died


@dataclass(frozen=True)
class Errand:
    """Work on the model `on`, whose replicas `handle` reaches."""

    handle: Any
    on: LanguageModel
    priority: Priority
    spent: Spent
    meters: Meters
    traces: Traces
    shared: Shared = field(default_factory=Shared)

    async def run(self, work: Work[Outcome]) -> Outcome:
        """What the work returns or raises; being cancelled here stops it. Raises `QueueFull`, `Unreachable`.

        Answers are deterministic, and what was told of the work is told once: it can be done again by another replica.
        """
        parcel, tries, deaths, full = pack(work, self.shared.name_of), 0, 0, 0
        while True:
            try:
                outcome: Outcome = await self._tried(parcel)
                return outcome
            except QueueFull:
                full += 1
                if full >= MOST_FULL:
                    raise
            except Lost as lost:
                tries, deaths = tries + 1, deaths + lost.died
                log.warning("work is sent to another replica after %s", lost)
                if tries >= MOST_TRIES or deaths >= MOST_DEATHS:
                    raise Unreachable("the replicas of this model end or cannot be reached: try again later") from None
                await asyncio.sleep(min(LONGEST_PAUSE, SHORTEST_PAUSE * 2**tries))

    async def _tried(self, parcel: bytes) -> Any:
        id, before, asked = uuid4().hex, self.spent.seconds, time.time_ns()
        response = self.handle.options(stream=True, method_name="work").remote(id, self._order(), parcel)
        try:
            async with self._hurried(id):
                async for data in response:
                    told: News | Ended = pickle.loads(data)  # noqa: S301 - of our own replica
                    self.spent.seconds = before + told.seconds
                    if isinstance(told, Ended):
                        return self._outcome(told, asked)
                    self.shared.hear(told)
        except asyncio.CancelledError:
            response.cancel()
            raise
        except BackPressureError:
            raise QueueFull(1) from None
        except RayTaskError as error:  # of the replica's own code, which raises nothing: a defect
            raise Broken(type(error.cause).__name__) from None
        except (RayError, RayServeException) as error:
            self.spent.seconds = before
            raise Lost(type(error).__name__, died=isinstance(error, ActorDiedError)) from None
        raise Lost("a stream without an end", died=False)

    def _order(self) -> Order:
        shared, priority = self.shared, self.priority
        heard = tuple(listener.wanted for listener in shared.listeners)
        names = (tuple(shared.models), tuple(shared.indexes))
        return Order(*names, ASKED_BY.get(), priority.nice, priority.cost, len(shared.steps), heard)

    def _outcome(self, ended: Ended, asked: int) -> Any:
        self._note(ended, asked)
        match ended.how:
            case "done":
                return unpack(ended.value, self.shared.thing_of)
            case "failed":
                raise ended.value
            case "full":
                raise QueueFull(ended.value)
            case "closing":
                raise Lost("the end of a replica", died=False)
            case "broken":
                raise Broken(ended.value)

    def _note(self, ended: Ended, asked: int) -> None:
        self.meters.device_wait.observe(ended.waited)
        self.meters.device_work.observe(ended.seconds)
        with self.traces.work(asked, time.time_ns() - int(ended.seconds * 1e9)):
            pass
        for name in ("forwards", "tokens", "packed", "room", "halvings"):
            setattr(self.on.passes, name, getattr(self.on.passes, name) + getattr(ended.passes, name))

    @asynccontextmanager
    async def _hurried(self, id: str) -> AsyncIterator[None]:
        """Inside, nice work becomes normal there as soon as it does here."""
        if not self.priority.nice:
            yield
            return
        watching = asyncio.create_task(self._watch(id))
        try:
            yield
        finally:
            watching.cancel()

    async def _watch(self, id: str) -> None:
        while self.priority.nice:  # noqa: ASYNC110 - written by others, without a word
            await asyncio.sleep(LOOK_SECONDS)
        await self.handle.broadcast("hurry", id).results_async(return_exceptions=True)
