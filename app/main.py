"""The application: everything wired together."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.routing import BaseRoute

from app import index_files, logs, training_files
from app.admission import limits_of
from app.audit import Audit
from app.auditing import AuditTrail
from app.dependencies import Server
from app.dialects import DIALECTS
from app.docs import add_docs
from app.errors import add_error_answers, problem_body
from app.explain import Explainer
from app.explorer.pages import prepare_pages
from app.explorer.routes import add_explorer
from app.flights import SingleFlight
from app.influence_indexes import sweep_indexes
from app.jobs import Jobs
from app.meters import Meters
from app.metrics import Metrics
from app.middleware import BodyLimit, Envelope
from app.models import keep_loaded
from app.readiness import Readiness
from app.runtime import Runtime
from app.settings import Settings
from app.shard_tasks import take_part
from app.shelf import open_shelf
from app.start import first_key, open_database
from app.tracing import Traces, traces_of
from app.traffic import Traffic
from app.training_files import sweep_files
from app.worker import end, working
from explainers.loaders import use_cores
from storage.database import Database, home
from storage.embedded import revive
from storage.errors import DatabaseUnavailable, StorageError
from storage.limits import sweep as sweep_limits

log = logging.getLogger(__name__)

DESCRIPTION = """Whence answers *whence this output?* for models that run on this machine, and keeps every answer.

Send an API key with every request: `Authorization: Bearer <key>`. Every error has the same body (`Problem`)."""

NO_TELEMETRY: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}
"""The framework's own would send paths, query strings and the texts of errors to wherever the environment says."""

TIDY_SECONDS = 3600.0
REFRESH_SECONDS = 5.0
"""Time between two looks at the registry: models added or removed by other processes."""


def create_app(settings: Settings | None = None, traces: Traces | None = None) -> FastAPI:
    """The server of these settings, or of those in the environment; spans go where the settings say, or to `traces`."""
    settings = settings or Settings()
    app = FastAPI(
        title="Whence",
        version="0.1.0",
        description=DESCRIPTION,
        lifespan=lambda app: running(app, settings),
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        telemetry=NO_TELEMETRY,
    )
    traffic, meters, traces = Traffic(), Meters(), traces or traces_of(wanted=settings.traces)
    app.state.traffic, app.state.meters, app.state.traces = traffic, meters, traces
    # The last one added is the outermost.
    app.add_middleware(BodyLimit, limit=settings.body_limit_bytes, uploads=settings.upload_limit_bytes)
    app.add_middleware(AuditTrail)
    app.add_middleware(Envelope, traffic=traffic, meters=meters, traces=traces)
    add_error_answers(app)
    app.router.routes.extend(api_routes())
    add_explorer(app)
    add_docs(app, open_docs=settings.open_docs)
    return app


@functools.cache
def api_routes() -> tuple[BaseRoute, ...]:
    """Those of all dialects, which keep nothing of an application: made once, as that takes a while.

    Flat: every router inside another is searched anew for each request.
    """
    return tuple(route for routes in DIALECTS.values() for route in routes())


@asynccontextmanager
async def running(app: FastAPI, settings: Settings) -> AsyncIterator[None]:
    """From the first connection to the database until the last piece of work has ended."""
    logs.configure(settings.log_level, settings.log_format)
    state = app.state
    async with open_server(settings, state.traffic, state.meters, state.traces) as server:
        secret = await first_key(server.explainer.database, settings)
        await tidy(server.explainer)
        await fill_store(server.explainer)
        await sweep_limits(server.explainer.database)
        if secret is not None:
            print(f"API key (shown once): {secret}", flush=True)  # noqa: T201 - a secret must not reach the log
        app.state.server = server
        await asyncio.to_thread(prepare_pages)
        async with AsyncExitStack() as stack:
            if settings.worker:
                await stack.enter_async_context(working(server.jobs))
            yield


@asynccontextmanager
async def open_server(settings: Settings, traffic: Traffic, meters: Meters, traces: Traces) -> AsyncIterator[Server]:
    """Everything that answers, with the models kept loaded."""
    async with (
        sending(traces),
        open_database(settings) as database,
        open_runtime(settings, database, meters, traces) as runtime,
        open_flights() as flights,
    ):
        traces.watch(database.engine.sync_engine)
        shelf = await open_shelf(settings, database)
        runtime.locate = shelf.model_path
        explainer = Explainer(database, runtime, flights, settings.deadline_seconds, shelf)
        jobs = Jobs(explainer, problem_body)
        readiness = Readiness(explainer, jobs, traffic, working=settings.worker)
        keeping = [asyncio.create_task(refresh(settings, explainer))]
        if shelf.store is not None:
            keeping.append(asyncio.create_task(keep_tidy(explainer)))
        audit, metrics = Audit(database, settings.audit, meters), Metrics(explainer, readiness, traffic)
        try:
            yield Server(settings, explainer, jobs, audit, limits_of(settings), readiness, metrics)
        finally:
            for task in keeping:
                await end(task)
            await jobs.close()
            await audit.close()


@asynccontextmanager
async def sending(traces: Traces) -> AsyncIterator[None]:
    """Spans that have not been sent at the end are sent then."""
    try:
        yield
    finally:
        await asyncio.to_thread(traces.close)


@asynccontextmanager
async def open_runtime(
    settings: Settings, database: Database, meters: Meters, traces: Traces
) -> AsyncIterator[Runtime]:
    """In this process; or on a cluster, where the settings name one."""
    use_cores(settings.threads)
    if settings.ray_address is not None:
        from app.cluster.opening import open_cluster  # noqa: PLC0415 - brings Ray

        async with open_cluster(settings, await home(database), meters, traces, take_part) as runtime:
            yield runtime
        return
    runtime = Runtime(queue_limit=settings.queue_limit, device=settings.device, meters=meters, traces=traces)
    try:
        yield runtime
    finally:
        await runtime.close()


@asynccontextmanager
async def open_flights() -> AsyncIterator[SingleFlight[Any]]:
    flights: SingleFlight[Any] = SingleFlight()
    try:
        yield flights
    finally:
        await flights.close()


async def refresh(settings: Settings, explainer: Explainer) -> None:
    """Loads registered models ahead of their first request, and lets go of those that are registered no more.

    For as long as the server lives, whatever happens: nobody else would begin it again.
    """
    while True:
        try:
            await refresh_once(settings, explainer)
        except Exception as error:  # noqa: BLE001 - a loop like that of jobs
            log.warning("the registry of models could not be read: %s", type(error).__name__)
        await asyncio.sleep(REFRESH_SECONDS)


async def refresh_once(settings: Settings, explainer: Explainer) -> None:
    """A database that is away comes back, an embedded one with our help; requests say so meanwhile."""
    try:
        await keep_loaded(explainer.database, explainer.runtime)
        explainer.indexes.keep_only(explainer.runtime.loaded())
    except DatabaseUnavailable:
        if settings.database_url is None:
            with suppress(StorageError):
                await asyncio.to_thread(revive, settings.data_dir)


async def tidy(explainer: Explainer) -> None:
    """Removes files that no row knows."""
    await sweep_files(explainer.database, explainer.shelf)
    await sweep_indexes(explainer.database, explainer.shelf)


async def fill_store(explainer: Explainer) -> None:
    """Shares what this machine alone has of what rows know."""
    await training_files.fill_store(explainer.database, explainer.shelf)
    await index_files.fill_store(explainer.database, explainer.shelf)


async def keep_tidy(explainer: Explainer) -> None:
    """This machine's own copies of what others remove, too."""
    while True:
        await asyncio.sleep(TIDY_SECONDS)
        try:
            await tidy(explainer)
        except Exception as error:  # noqa: BLE001 - a loop like that of jobs
            log.warning("files could not be swept: %s", type(error).__name__)
