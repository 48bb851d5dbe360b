"""The runtime whose language models run in the replicas of a Ray cluster; see the package."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch

from app.cluster.applications import Applications, told_plainly
from app.cluster.errand import Errand
from app.cluster.node_tasks import NodeTasks, TakePart, helped
from app.device import Outcome, Priority, Work
from app.meters import Meters
from app.refusals import Unreachable
from app.runtime import Registration, Runtime, SharedJob, Spent, Weights
from app.scaling import Scaling
from app.tracing import Traces
from explainers.errors import ExplainerError
from explainers.language_model import LanguageModel
from explainers.loaders import Model
from explainers.outlines import OUTLINES, digest_of_weights, outline
from explainers.types import Elsewhere


class ClusterRuntime(Runtime):
    """Models that complete prompts are outlines here; predictors, and work that names no outline, run here as ever."""

    def __init__(
        self,
        applications: Applications,
        take_part: TakePart,
        *,
        queue_limit: int,
        device: str | None = None,
        meters: Meters | None = None,
        traces: Traces | None = None,
    ) -> None:
        super().__init__(queue_limit=queue_limit, device=device, meters=meters, traces=traces)
        self.applications = applications
        self.take_part = take_part
        self._handles: dict[str, Any] = {}  # by name of the application
        self._needed: set[str] = set()  # applications of what was registered when that was last looked at
        self._held: dict[Weights, Model] = {}
        self._holding = asyncio.Lock()

    async def run(
        self,
        work: Work[Outcome],
        priority: Priority | None = None,
        *,
        on: LanguageModel | None = None,
        spent: Spent | None = None,
    ) -> Outcome:
        if on is None or on.elsewhere is None:
            return await super().run(work, priority, spent=spent)
        handle = self._handles.get(on.elsewhere.place)
        if handle is None:
            raise Unreachable("the model's replicas have just been ended: repeat the call")
        errand = Errand(handle, on, priority or Priority(), spent or Spent(), self.meters, self.traces)
        return await errand.run(work)

    @asynccontextmanager
    async def helped(self, shared: SharedJob, free: Callable[[], Awaitable[int]]) -> AsyncIterator[None]:
        """By the nodes of the cluster."""
        tasks = NodeTasks(self.take_part, shared, self.applications.home, torch.get_num_threads(), self.meters)
        async with helped(tasks, free):
            yield

    async def held(self, registration: Registration) -> Model:
        """Loaded on this process's own device when it is first asked for."""
        if registration.kind not in OUTLINES:
            return await self.model(registration)
        await self.model(registration)  # raises why it is refused
        async with self._holding:
            if registration.weights not in self._held:
                self._held[registration.weights] = await super().read(registration.weights)
            return self._held[registration.weights]

    async def read(self, weights: Weights, scaling: Scaling | None = None) -> Model:
        """Loads and tests the model in the cluster, where it then stays."""
        if weights.kind not in OUTLINES:
            return await super().read(weights)
        digest = await asyncio.to_thread(digest_of_weights, [Path(place) for place in weights.places])
        return await self._outlined(weights._replace(digest=digest), scaling)

    async def keep(self, registrations: Sequence[Registration], among: frozenset[tuple[str, str]]) -> None:
        """Begins to load what is not loaded yet, all at once; ends the replicas of what is registered no more."""
        self.keep_only(registrations, among)
        for registration in registrations:
            if self.state(registration)[0] == "registered":
                self._load_once(registration)
        weights = {registration.weights for registration in registrations}
        self._held = {name: model for name, model in self._held.items() if name in weights}
        needed = {self._application(registration) for registration in registrations}
        gone, self._needed = self._needed - needed, needed
        there = await self.applications.sweep(needed, gone)
        for name in [name for name in self._handles if name in gone or name in needed - there]:
            del self._handles[name]
        for known in list(self._loaded_models()):
            if known.registration.kind in OUTLINES and self._application(known.registration) in needed - there:
                self.forget(*known.registration.key)  # somebody has ended it: it is made again the next time

    async def _read_registered(self, registration: Registration) -> Model:
        if registration.kind not in OUTLINES or registration.digest is None:
            return await super()._read_registered(registration)
        return await self._outlined(registration.weights, registration.scaling)

    def _twin(self, registration: Registration) -> Model | None:
        """Weights that are scaled otherwise run in replicas of their own."""
        same = (known for known in self._loaded_models() if known.registration.weights == registration.weights)
        return next((known.model for known in same if known.registration.scaling == registration.scaling), None)

    async def _outlined(self, weights: Weights, scaling: Scaling | None) -> Model:
        kind, path, base, *_ = weights
        name, handle = self.applications.name_of(weights, scaling), await self.applications.ensure(weights, scaling)
        with told_plainly():
            told = await handle.describe.remote()
        if isinstance(told, ExplainerError):
            await self.applications.delete([name])
            raise told
        about, device = told
        where = Elsewhere(weights, name, device)
        below = None if base is None else Path(base)
        model = await asyncio.to_thread(outline, Path(path), below, kind, about, where)
        self._handles[name] = handle
        return model

    def _application(self, registration: Registration) -> str:
        return self.applications.name_of(registration.weights, registration.scaling)
