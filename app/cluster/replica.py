"""What a replica of a model's application runs: the model, a device of its own, and who tells how far work is."""

from __future__ import annotations

import asyncio
import logging
import pickle
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from app import logs
from app.cluster.parcels import Ended, How, Name, News, Order, pack, unpack
from app.device import ASKED_BY, Priority, Steps
from app.listeners import Once
from app.logs import frames
from app.open_indexes import OpenIndexes
from app.refusals import QueueFull, ShuttingDown
from app.runtime import Runtime, Spent, Weights, loader_of
from explainers import clock
from explainers.decoding import Completion, Listener, Piece, nobody
from explainers.errors import ExplainerError, MissingCapability
from explainers.language_model import LanguageModel, Passes
from explainers.loaders import Model, use_cores
from explainers.outlines import Told, settings_digest
from explainers.types import Checkpoint

log = logging.getLogger(__name__)

TELL_SECONDS = 0.2
"""Between two looks at how far work is. What listeners are to hear is told at once."""

PASSES = ("forwards", "tokens", "packed", "room", "halvings")


class Replica:
    """One model in a process of its own. Ray Serve makes it, calls it, and ends it.

    A model that is refused leaves a replica that says so to everybody: Serve would try again, and log the reason.
    """

    def __init__(self, weights: Weights, device: str | None, queue_limit: int, cores: int, log_level: str) -> None:
        logs.configure(log_level, "json")
        use_cores(cores)
        self.weights = weights
        self.runtime = Runtime(queue_limit=queue_limit, device=device)
        self.models: dict[Weights, LanguageModel] = {}
        self.indexes, self.loading = OpenIndexes(), asyncio.Lock()
        self.urgency: dict[str, Priority] = {}
        self.reported = Passes()
        self.refused: ExplainerError | None = None
        try:
            self.models[weights] = read(weights, device)
        except ExplainerError as error:
            self.refused = error

    async def describe(self) -> tuple[Told, str] | ExplainerError:
        """What an outline needs, and the device; or why the model is refused."""
        if self.refused is not None:
            return self.refused
        model, folders = self.models[self.weights], [Path(place) for place in self.weights.places]
        settings = await asyncio.to_thread(settings_digest, folders)
        return Told(model.digest, settings, model.facts), str(model.device)

    async def hurry(self, id: str) -> None:
        """Somebody waits now for work that was nice, if it is here."""
        if id in self.urgency:
            self.urgency[id].nice = False

    async def work(self, id: str, order: Order, parcel: bytes) -> AsyncIterator[bytes]:
        """News of the work as long as there is any, and how it ended; to stop listening stops the work."""
        telling = Telling(order)
        self.urgency[id] = Priority(nice=order.nice, cost=order.cost)
        task = asyncio.create_task(self._ended(order, parcel, telling, self.urgency[id]))
        task.add_done_callback(lambda _: telling.changed.set())
        try:
            ended = False
            while not ended:
                await telling.next()
                ended = task.done()  # looked at before the news, which then are the last
                if (news := telling.news()) is not None:
                    yield pickle.dumps(news)
            yield pickle.dumps(task.result())
        finally:
            del self.urgency[id]
            task.cancel()
            await asyncio.wait({task})

    async def _ended(self, order: Order, parcel: bytes, telling: Telling, priority: Priority) -> Ended:
        ASKED_BY.set(order.owner)
        spent, asked = Spent(), time.monotonic()

        def ended(how: How, value: Any = None) -> Ended:
            waited = max(0.0, (telling.began or time.monotonic()) - asked)
            return Ended(how, value, waited, spent.seconds, self._passes())

        try:
            work = await self._unpacked(order, parcel, telling)
            outcome = await self.runtime.run(lambda checkpoint: work(telling.timed(checkpoint)), priority, spent=spent)
            return ended("done", pack(outcome, self._name_of))
        except ShuttingDown:
            return ended("closing")
        except QueueFull as error:
            return ended("full", error.retry_after)
        except (ExplainerError, MemoryError) as error:
            return ended("failed", without_places(error, order))
        except Exception as error:  # noqa: BLE001 - Serve would log its text, which may hold a prompt
            log.error(
                "work failed: %s%s", type(error).__name__, "".join(f"\n  {at}" for at in frames(error.__traceback__))
            )
            return ended("broken", type(error).__name__)

    def _passes(self) -> Passes:
        """Those since the last time, so that sums over all ends are those of the replica."""
        now = Passes(*(sum(getattr(model.passes, name) for model in self.models.values()) for name in PASSES))
        since = Passes(*(getattr(now, name) - getattr(self.reported, name) for name in PASSES))
        self.reported = now
        return since

    async def _unpacked(self, order: Order, parcel: bytes, telling: Telling) -> Any:
        """The work, with the models and indexes that it names."""
        if self.refused is not None:
            raise type(self.refused)(*self.refused.args)
        async with self.loading:
            for weights in order.models:
                if weights not in self.models:  # the base of a fine-tune, when its index is asked
                    self.models[weights] = checked(await self.runtime.read(weights), weights)
            opened = {key: await self.indexes.get(Path(key[0]), self.models[key[1]]) for key in order.indexes}
        places: dict[str, Any] = {"model": self.models, "index": opened}
        places |= {"steps": telling.steps, "listener": telling.listeners}
        return unpack(parcel, lambda name: places[name[0]][name[1]])

    def _name_of(self, thing: Any) -> Name | None:
        if isinstance(thing, LanguageModel):
            return "model", next(weights for weights, model in self.models.items() if model is thing)
        return None


def read(weights: Weights, default_device: str | None) -> LanguageModel:
    """The model of these weights, loaded and tested; raises why it is refused."""
    return checked(loader_of(weights)(default_device), weights)


def checked(model: Model, weights: Weights) -> LanguageModel:
    if not isinstance(model, LanguageModel):
        raise MissingCapability(f"models of kind '{weights.kind}' run in the server itself")
    if model.digest != weights.digest:
        raise MissingCapability(f"its files are not those that were registered as {weights.digest}")
    return model


def without_places(error: Exception, order: Order) -> Exception:
    """The same error, which does not say where models lie."""
    for place in (place for weights in order.models for place in weights.places):
        error.args = tuple(said.replace(place, "the model") if isinstance(said, str) else said for said in error.args)
    return error


class Telling:
    """What has happened to a piece of work, written by its thread, and read by the event loop that it was made in."""

    def __init__(self, order: Order) -> None:
        self.steps = [Steps() for _ in range(order.steps)]
        self.listeners = [
            Once(self._listener(place) if heard else nobody) for place, heard in enumerate(order.listeners)
        ]
        self.changed = asyncio.Event()
        self.began = self.seconds = 0.0
        self._loop = asyncio.get_running_loop()
        self._heard: list[tuple[int, int, Piece | Completion]] = []
        self._numbers = [0] * len(order.listeners)
        self._told: tuple[Any, ...] = (0.0, self._done())

    def timed(self, checkpoint: Checkpoint) -> Checkpoint:
        """The same checkpoint, at which the seconds of work that has just begun are counted."""
        self.began = self.began or time.monotonic()
        before, started = self.seconds, clock.working()

        def time_it() -> None:
            checkpoint()
            self.seconds = before + clock.working() - started

        return time_it

    async def next(self) -> None:
        """Waits until there is something to tell, or it is time to look."""
        try:
            await asyncio.wait_for(self.changed.wait(), TELL_SECONDS)
        except TimeoutError:
            return
        self.changed.clear()

    def news(self) -> News | None:
        heard, self._heard = tuple(self._heard), []
        now = (self.seconds, self._done())
        if not heard and now == self._told:
            return None
        self._told = now
        return News(*now, heard)

    def _done(self) -> tuple[tuple[int, int], ...]:
        return tuple((steps.done, steps.total) for steps in self.steps)

    def _listener(self, place: int) -> Listener:
        def hear(event: Piece | Completion) -> None:
            self._loop.call_soon_threadsafe(self._hear, place, event)

        return hear

    def _hear(self, place: int, event: Piece | Completion) -> None:
        self._numbers[place] += 1
        self._heard.append((place, self._numbers[place], event))
        self.changed.set()
