"""Registered name -> loaded model, and the device, on which alone models are touched.

A model is loaded when it is first asked for and stays loaded until its registration goes away. A model that cannot be
loaded is remembered as refused, with its reason, until its registration or its files change: a bad folder is not read
again for every request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple, Self, TypeAlias
from uuid import UUID

from app.device import Device, Outcome, Priority, Work
from app.meters import Meters
from app.scaling import Scaling
from app.tracing import Traces
from explainers import clock
from explainers.errors import ExplainerError, MissingCapability
from explainers.language_model import LanguageModel, Passes
from explainers.loaders import FINE_TUNES, LOADERS, Model
from explainers.types import Checkpoint
from storage.jobs import Job

log = logging.getLogger(__name__)

CLOSE_SECONDS = 10.0

State: TypeAlias = Literal["registered", "loading", "loaded", "refused"]


class Weights(NamedTuple):
    """What decides a loaded model: `path` is where its files lie, `base` where those of the base of a fine-tune do.

    A `digest` of None is not known yet.
    """

    kind: str
    path: str
    base: str | None = None
    digest: str | None = None
    dtype: str | None = None
    device: str | None = None

    @property
    def places(self) -> tuple[str, ...]:
        return (self.path,) if self.base is None else (self.path, self.base)


@dataclass(frozen=True, slots=True)
class Registration:
    """What the registry says of a model: the part that decides whether the loaded object is still the right one."""

    tenant: str
    name: str
    kind: str
    path: str
    digest: str | None
    dtype: str | None
    device: str | None
    created_at: datetime
    base: str | None = None
    base_path: str | None = None
    scaling: Scaling | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.tenant, self.name

    @property
    def weights(self) -> Weights:
        """Registrations that agree in this share one loaded object."""
        return Weights(self.kind, self.path, self.base_path, self.digest, self.dtype, self.device)

    @property
    def places(self) -> tuple[str, ...]:
        """Where its files lie, and those of its base."""
        return self.weights.places


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a model could not be loaded, and the state of its files at that time."""

    registration: Registration
    error: ExplainerError
    files: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class Loaded:
    registration: Registration
    model: Model


def versions() -> tuple[str, ...]:
    """Of what numbers depend on: ours and PyTorch's."""
    return version("whence"), version("torch")


@dataclass(frozen=True, slots=True)
class SharedJob:
    """An attempt at a job whose shards anybody may lease.

    It is `about` an index or a monitored model, and computes on a `device` of that type (cpu, cuda).
    """

    kind: str
    tenant: str
    job: UUID
    attempt: int
    about: UUID
    device: str
    store: str = ""  # see `Shelf.name`
    versions: tuple[str, ...] = field(default_factory=versions)

    @classmethod
    def of(cls, job: Job, about: UUID, device: str, store: str = "") -> Self:
        return cls(job.kind, job.tenant_id, job.id, job.attempts, about, device, store)


class Spent:
    """Seconds that work has kept the device for, without its pauses."""

    seconds = 0.0


Locate: TypeAlias = Callable[[str], Awaitable[str]]
"""Where the files of a model lie on this machine that were registered as lying there."""


async def as_it_is(path: str) -> str:
    return path


class Runtime:
    """The loaded models of all tenants, and the device they share."""

    def __init__(
        self, *, queue_limit: int, device: str | None = None, meters: Meters | None = None, traces: Traces | None = None
    ) -> None:
        self.device = Device(queue_limit)
        self.meters, self.traces = meters or Meters(), traces or Traces()
        self._passes: dict[int, Passes] = {}
        self._default_device = device
        self.locate: Locate = as_it_is
        self._known: dict[tuple[str, str], Loaded | Refused] = {}
        self._loading: dict[Registration, asyncio.Task[Model]] = {}

    async def run(
        self,
        work: Work[Outcome],
        priority: Priority | None = None,
        *,
        on: LanguageModel | None = None,
        spent: Spent | None = None,
    ) -> Outcome:
        """Runs blocking work in a thread of the device; cancelling this stops it at its next checkpoint.

        `on` is the model that it runs, for a runtime that has its models elsewhere (`app.cluster`). What it keeps the
        device for is added to `spent`. Raises `QueueFull` at once when too much work waits already.
        """
        ticket = self.device.submit(self.observed(work, spent or Spent()), priority or Priority())
        outcome: Outcome = await self.device.result(ticket)
        return outcome

    def observed(self, work: Work[Outcome], spent: Spent) -> Work[Outcome]:
        """The same work, whose waiting and doing is timed; its log lines and spans belong to who submits it now."""
        context, asked = copy_context(), time.time_ns()

        def observe(checkpoint: Checkpoint) -> Outcome:
            began, started = time.time_ns(), clock.working()
            self.meters.device_wait.observe((began - asked) / 1e9)
            try:
                with self.traces.work(asked, began):
                    return work(checkpoint)
            finally:
                seconds = clock.working() - started
                spent.seconds += seconds
                self.meters.device_work.observe(seconds)

        return lambda checkpoint: context.run(observe, checkpoint)

    async def model(self, registration: Registration) -> Model:
        """The loaded model, loading it first when needed; raises the reason when it is refused."""
        known = self._known.get(registration.key)
        if known is not None and known.registration == registration:
            if isinstance(known, Loaded):
                return known.model
            if known.files == await asyncio.to_thread(files_of, *registration.places):
                # A fresh exception each time: a raised one collects the frames of every request.
                raise type(known.error)(*known.error.args)
        # Callers wait for one load together, and one of them going away does not stop it.
        return await asyncio.shield(self._load_once(registration))

    async def held(self, registration: Registration) -> Model:
        """As `model`, with its weights in this process in any case."""
        return await self.model(registration)

    @asynccontextmanager
    async def helped(self, shared: SharedJob, free: Callable[[], Awaitable[int]]) -> AsyncIterator[None]:
        """Inside, shards of the job that nobody has leased, of which `free` says how many there are, may be computed
        elsewhere, too; here nobody does, beside workers that find the job in the queue.
        """
        yield

    async def read(self, weights: Weights, scaling: Scaling | None = None) -> Model:
        """Loads files on the device thread without registering anything; `scaling` is for models elsewhere."""
        load = loader_of(weights)
        work = self.observed(lambda _: load(self._default_device), Spent())
        ticket = self.device.submit(work, Priority(), bounded=False)
        model: Model = await self.device.result(ticket)
        return model

    def adopt(self, registration: Registration, model: Model) -> None:
        """Serves a model that has just been read for this registration."""
        self._known[registration.key] = Loaded(registration, model)
        if isinstance(model, LanguageModel):
            self._passes[id(model.passes)] = model.passes  # kept for good: totals never fall

    def passes(self) -> Passes:
        """What the passes of all models came to, of those too that are loaded no more."""
        every = list(self._passes.values())
        names = ("forwards", "tokens", "packed", "room", "halvings")
        return Passes(*(sum(getattr(passes, name) for passes in every) for name in names))

    def loaded(self) -> list[Model]:
        """The models in memory, each once."""
        return list({id(known.model): known.model for known in self._loaded_models()}.values())

    def state(self, registration: Registration) -> tuple[State, str | None]:
        """How far the model is, and why it is refused if it is."""
        if registration in self._loading:
            return "loading", None
        known = self._known.get(registration.key)
        if known is None or known.registration != registration:
            return "registered", None
        return ("loaded", None) if isinstance(known, Loaded) else ("refused", str(known.error))

    def forget(self, tenant: str, name: str) -> None:
        """Unloads a model as soon as the work that uses it has ended."""
        self._known.pop((tenant, name), None)

    def known(self) -> frozenset[tuple[str, str]]:
        """The keys of all registrations whose models are loaded or have been refused."""
        return frozenset(self._known)

    def keep_only(self, registrations: Iterable[Registration], among: frozenset[tuple[str, str]]) -> None:
        """Unloads every model `among` these whose registration is gone."""
        for key in among - {registration.key for registration in registrations}:
            self._known.pop(key, None)

    async def keep(self, registrations: Sequence[Registration], among: frozenset[tuple[str, str]]) -> None:
        """As `keep_only`; then loads, one after the other, what is registered and not loaded yet."""
        self.keep_only(registrations, among)
        for registration in registrations:
            if self.state(registration)[0] == "registered":
                with suppress(ExplainerError):  # remembered and reported; here it only means: on to the next model
                    await self.model(registration)

    async def close(self) -> None:
        for task in self._loading.values():
            task.cancel()
        await asyncio.gather(*self._loading.values(), return_exceptions=True)
        if not await asyncio.to_thread(self.device.close, CLOSE_SECONDS):
            log.warning("the device did not stop within %s seconds", CLOSE_SECONDS)
        self._known.clear()

    def _load_once(self, registration: Registration) -> asyncio.Task[Model]:
        if registration not in self._loading:
            task = asyncio.create_task(self._load(registration))
            self._loading[registration] = task
            task.add_done_callback(lambda done: self._loaded(registration, done))
        return self._loading[registration]

    def _loaded(self, registration: Registration, task: asyncio.Task[Model]) -> None:
        self._loading.pop(registration, None)
        if not task.cancelled():
            task.exception()  # tells asyncio that it has been seen, also when every caller has gone

    async def _load(self, registration: Registration) -> Model:
        """Loads the new model before the old one of the same name is let go."""
        files = await asyncio.to_thread(files_of, *registration.places)
        try:
            model = self._twin(registration) or await self._read_registered(registration)
        except ExplainerError as error:
            log.warning("model %s is refused: %s", registration.name, type(error).__name__)
            # Callers know the model by its name; where its files lie is the operator's business.
            told = type(error)(without_places(str(error), registration))
            self._known[registration.key] = Refused(registration, told, files)
            raise told from None
        self.adopt(registration, model)
        return model

    async def _read_registered(self, registration: Registration) -> Model:
        place = await self.locate(registration.path)
        try:
            model = await self.read(registration.weights._replace(path=place), registration.scaling)
        except ExplainerError as error:
            if place == registration.path:
                raise
            raise type(error)(str(error).replace(place, registration.path)) from None
        if registration.digest not in (None, model.digest):
            whose = "this model" if registration.base is None else f"this model, or of its base '{registration.base}',"
            raise MissingCapability(
                f"the files of {whose} have changed since it was registered as {registration.digest}: register it "
                "again, and build its influence index again where it had one"
            )
        return model

    def _twin(self, registration: Registration) -> Model | None:
        """The same weights, loaded already under another name or for another tenant."""
        for known in self._loaded_models():
            if known.registration.weights == registration.weights:
                return known.model
        return None

    def _loaded_models(self) -> Iterator[Loaded]:
        return (known for known in self._known.values() if isinstance(known, Loaded))


def without_places(message: str, registration: Registration) -> str:
    for place, name in zip(registration.places, (registration.name, registration.base), strict=False):
        message = message.replace(place, f"model '{name}'")
    return message


def loader_of(weights: Weights) -> Callable[[str | None], Model]:
    """What reads them, to the device that it is given where they name none; raises MissingCapability for their kind."""
    kind, path, base, _, dtype, device = weights
    if base is None and kind in LOADERS:
        load = LOADERS[kind]
        return lambda default: load(Path(path), dtype, device or default)
    if base is not None and kind in FINE_TUNES:
        tuned = FINE_TUNES[kind]
        return lambda default: tuned(Path(path), Path(base), dtype, device or default)
    raise MissingCapability(f"{'fine-tunes' if base else 'models'} of kind '{kind}' cannot be explained yet")


def files_of(*paths: str) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of change of each file of a model; empty when there is no such file or folder."""
    try:
        places = [Path(path) for path in paths]
        entries = [entry for place in places for entry in (sorted(place.iterdir()) if place.is_dir() else [place])]
        stats = [(entry.name, entry.stat()) for entry in entries]
    except OSError:
        return ()
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
