"""`GET /metrics`: what was counted (`meters`), and what is found at the moment somebody asks.

Context: one process serves all tenants, and a page of figures is kept for long by others. Decision: figures are of the
server as a whole; no label names a tenant, a key or a model. What the database has to say is looked up at most every
ten seconds, and left out while it is away. Jobs are told by the database, so that those of `whence worker` are in it.
Consequence: a worker process has no page of its own; passes that it runs are not in the counts of the server's.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.explain import Explainer
from app.jobs import PARTS as PARTS_OF_JOBS
from app.jobs import STALE_SECONDS
from app.readiness import PARTS, Readiness, Ready
from app.traffic import Traffic
from explainers.language_model import LanguageModel
from storage import figures
from storage.errors import DatabaseUnavailable
from storage.figures import JobFigure, LaneFigure
from storage.queue import LANES

FRESH_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Stored:
    """What the database says."""

    jobs: list[JobFigure]
    lanes: list[LaneFigure]
    workers: int


class Metrics(Collector):
    """The page of one application; `collect` reads live state and runs in the event loop, as `page` does."""

    def __init__(self, explainer: Explainer, readiness: Readiness, traffic: Traffic) -> None:
        self.explainer, self.readiness, self.traffic = explainer, readiness, traffic
        self._ready: Ready | None = None
        self._stored: Stored | None = None
        self._looked = -FRESH_SECONDS
        self._looking = asyncio.Lock()
        registry = explainer.meters.registry
        for add in (ProcessCollector, PlatformCollector, GCCollector):
            add(registry=registry)
        registry.register(self)

    @property
    def registry(self) -> CollectorRegistry:
        return self.explainer.meters.registry

    async def page(self) -> bytes:
        """In the text format of Prometheus."""
        async with self._looking:
            self._ready = await self.readiness.now()
            if time.monotonic() - self._looked >= FRESH_SECONDS:
                self._stored, self._looked = await stored(self.explainer), time.monotonic()
        return generate_latest(self.registry)

    def describe(self) -> Iterable[Metric]:
        """Without values: the names are taken."""
        return []

    def collect(self) -> Iterator[Metric]:
        yield from of_process(self._ready)
        yield gauge("whence_http_requests_in_progress", "Requests under way.", len(self.traffic))
        yield from of_device(self.explainer)
        yield from of_models(self.explainer)
        yield from of_connections(self.explainer)
        yield from of_disk(self.explainer)
        if self._stored is not None:
            yield from of_jobs(self._stored)


async def stored(explainer: Explainer) -> Stored | None:
    """None while the database is away."""
    database = explainer.database
    try:
        workers = await figures.workers(database, STALE_SECONDS)
        return Stored(await figures.jobs_by_kind(database), await figures.lanes(database), workers)
    except DatabaseUnavailable:
        return None


def gauge(name: str, about: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, about, value=value)


def gauges(name: str, about: str, labels: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    family = GaugeMetricFamily(name, about, labels=labels)
    for label, value in values:
        family.add_metric(label, value)
    return family


def of_process(ready: Ready | None) -> Iterator[Metric]:
    yield gauges("whence_build_info", "This release.", ("version",), [((version("whence"),), 1)])
    if ready is not None:
        parts = [(part, getattr(ready, part)) for part in PARTS]
        values = [((part,), float(state)) for part, state in parts if state is not None]
        yield gauges("whence_ready", "Whether a part of the server is ready (1).", ("part",), values)
        states = [((state,), float(count)) for state, count in ready.counts.items()]
        yield gauges("whence_models", "Registered models, by state.", ("state",), states)


def of_device(explainer: Explainer) -> Iterator[Metric]:
    device = explainer.runtime.device
    yield gauge("whence_device_waiting", "Pieces of work that wait for the device.", device.waiting)
    yield gauge("whence_device_waiting_limit", "Pieces of work that may wait.", device.limit)
    yield gauge(
        "whence_device_oldest_seconds",
        "How long the piece that waits longest has waited.",
        device.oldest_waiting_seconds,
    )
    yield gauge("whence_device_paused", "Pieces of work under way that wait for their next turn.", device.paused)
    yield gauge("whence_device_busy", "Whether a piece of work has the device's turn (1).", device.running)
    yield gauge("whence_flights", "Computations under way.", len(explainer.flights))
    yield gauge("whence_flight_waiters", "Requests and jobs that wait for them.", explainer.flights.waiters)


def of_models(explainer: Explainer) -> Iterator[Metric]:
    models = [
        model for model in explainer.runtime.loaded() if isinstance(model, LanguageModel) and model.elsewhere is None
    ]
    weights = sum(model.sizes.parameters * model.sizes.itemsize for model in models)
    yield gauge("whence_model_bytes", "Weights of the language models in memory, by their parameters.", weights)
    passes = explainer.runtime.passes()
    counts = {
        "whence_forwards": ("Passes through language models.", passes.forwards),
        "whence_tokens": ("Positions that these passes read, padding included.", passes.tokens),
        "whence_packed_rows": ("Rows of the passes that are filled with several parts.", passes.packed),
        "whence_packed_room": ("Rows that those passes had room for.", passes.room),
        "whence_out_of_memory_retries": ("Passes tried again in smaller ones, for want of memory.", passes.halvings),
    }
    for name, (about, value) in counts.items():
        yield CounterMetricFamily(name, about, value=value)


def of_connections(explainer: Explainer) -> Iterator[Metric]:
    database, pool = explainer.database, pool_of(explainer)
    values = [(("in_use",), float(pool.checkedout() - len(database.kept))), (("kept",), float(len(database.kept)))]
    values.append((("idle",), float(pool.checkedin())))
    yield gauges("whence_database_connections", "Connections to Postgres.", ("state",), values)
    yield gauge("whence_database_connections_limit", "Connections at most.", database.pool_size)


def pool_of(explainer: Explainer) -> Any:
    return explainer.database.engine.pool


def of_disk(explainer: Explainer) -> Iterator[Metric]:
    try:
        usage = shutil.disk_usage(explainer.shelf.folder)
    except OSError:
        return
    yield gauge("whence_disk_free_bytes", "Free where the data directory lies.", usage.free)
    yield gauge("whence_disk_bytes", "In all where the data directory lies.", usage.total)


def of_jobs(stored: Stored) -> Iterator[Metric]:
    """Jobs of all processes."""
    counts = [((job.kind, job.state), float(job.count)) for job in stored.jobs]
    yield gauges("whence_jobs", "Jobs that are kept.", ("kind", "state"), counts)
    asked_for = [job for job in stored.jobs if job.kind not in PARTS_OF_JOBS]  # parts wait for somebody without work
    for state in ("queued", "running"):
        oldest = max((job.oldest for job in asked_for if job.state == state), default=0.0)
        yield gauge(f"whence_oldest_{state}_job_seconds", f"Age of the oldest job that is {state}.", oldest)
    lanes = {lane.lane: lane for lane in stored.lanes}
    entries = [lanes.get(lane, LaneFigure(lane, 0, 0)) for lane in LANES]
    due = [((entry.lane,), float(entry.due)) for entry in entries]
    taken = [((entry.lane,), float(entry.taken)) for entry in entries]
    yield gauges("whence_queue_due", "Entries of the queue that are due and that nobody looks at.", ("lane",), due)
    yield gauges("whence_queue_taken", "Entries of the queue that a worker looks at.", ("lane",), taken)
    yield gauge("whence_workers", "Lanes of worker processes that were heard of lately.", stored.workers)
