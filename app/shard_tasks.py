"""What a node of a Ray cluster does for a job that another process leads: it leases shards of it, as workers do.

Context: a job may need more machines than there are workers, and a node may be lost, or see another database or other
folders than whoever leads. Decision: a task is told nothing but ids, of the job, of its attempt and of the database;
address, password and folders are those of the node's own environment. It works as long as the attempt goes on, and says
why where the node cannot help. Consequence: no secret travels with a task, a lost node's leases run out and are
another's, and what a node would compute otherwise it does not compute.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal, NamedTuple, TypeAlias

from pydantic import ValidationError

from app import explainability, influence_indexes, logs
from app.backfill import Outdated, Share
from app.device import Steps
from app.explain import Explainer
from app.explainability import scorer_of, state_of
from app.flights import SingleFlight
from app.influence_build import Build
from app.influence_ground import ground_of
from app.influence_indexes import building_folder_of
from app.monitored import find_active
from app.refusals import Refusal, StoreAway
from app.runtime import Runtime, SharedJob, versions
from app.settings import Settings
from app.shelf import open_shelf
from app.start import external_url
from explainers.errors import ExplainerError
from explainers.loaders import use_cores
from storage import errors as storage_errors
from storage import influence, jobs
from storage.database import Database, home
from storage.errors import StorageError
from storage.jobs import Job

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Between two looks for shards that others have lost."""
WATCH_SECONDS = 2.0
"""Between two looks at whether the attempt goes on."""

How: TypeAlias = Literal["done", "refused", "failed"]


class Ended(NamedTuple):
    """How a task has ended, and why, in words that name no place and quote nothing."""

    how: How
    why: str = ""


def take_part(shared: SharedJob, home: str, cores: int) -> Ended:
    """Computes shards of the job in this process, on so many cores, as long as its attempt goes on; blocks.

    `home` is the name of the database of whoever leads the job. A node that cannot help says why.
    """
    try:
        settings = Settings()
        logs.configure(settings.log_level, "json")
        use_cores(cores)
        asyncio.run(helping(settings, shared, home))
    except ValidationError:
        return Ended("refused", "its settings are wrong: `whence serve` says there what is")
    except StoreAway as away:
        return Ended("failed", str(away))
    except Refusal as refusal:
        return Ended("refused", str(refusal))
    except ExplainerError as error:
        return Ended("refused", f"models or training data cannot be used there ({type(error).__name__})")
    except Exception as error:  # noqa: BLE001 - Ray would send its text, which may hold data
        log.error("shards were left: %s", type(error).__name__)
        return Ended("failed", type(error).__name__)
    return Ended("done")


async def helping(settings: Settings, shared: SharedJob, home: str) -> None:
    """Raises a refusal where this node must not help."""
    if shared.versions != versions():
        raise Refusal(f"it has the versions {versions()}, and whoever leads the job {shared.versions}")
    async with open_explainer(settings, home, None if shared.device != "cpu" else "cpu") as explainer:
        if (job := await led(explainer.database, shared)) is not None:
            await while_led(explainer.database, shared, PARTS[shared.kind](explainer, job, shared))


@asynccontextmanager
async def open_explainer(settings: Settings, place: str, device: str | None) -> AsyncIterator[Explainer]:
    """On the database of that name, which must be the one of this node's settings; it is migrated already."""
    if settings.database_url is None:
        raise Refusal("WHENCE_DATABASE_URL is not set there")
    database = Database.connect(external_url(settings.database_url, settings.database_password))
    runtime, flights = Runtime(queue_limit=settings.queue_limit, device=device), SingleFlight[Any]()
    try:
        if await home(database) != place:
            raise Refusal("its WHENCE_DATABASE_URL is that of another database")
        shelf = await open_shelf(settings, database)
        runtime.locate = shelf.model_path
        yield Explainer(database, runtime, flights, None, shelf)
    finally:
        await runtime.close()
        await database.close()


async def led(database: Database, shared: SharedJob) -> Job | None:
    """The job, if its attempt goes on."""
    with suppress(storage_errors.NotFound):
        async with database.transaction(tenant=shared.tenant) as session:
            job = await jobs.get(session, shared.job)
        if (job.state, job.attempts) == ("running", shared.attempt):
            return job
    return None


async def while_led(database: Database, shared: SharedJob, work: Awaitable[None]) -> None:
    """Ends the work with the attempt. A database that is away ends nothing: the leases do."""
    working = asyncio.ensure_future(work)
    try:
        while not working.done():
            await asyncio.wait({working}, timeout=WATCH_SECONDS)
            with suppress(StorageError):
                if await led(database, shared) is None:
                    break
    finally:
        working.cancel()
        await asyncio.wait({working})
    if not working.cancelled():
        working.result()


async def sketch_pairs(explainer: Explainer, job: Job, shared: SharedJob) -> None:
    """Shards of an influence index, until all are there."""
    if explainer.shelf.name != shared.store:
        raise Refusal("its WHENCE_STORE_URL is not that of whoever leads the job")
    folder = building_folder_of(explainer.shelf.folder, shared.tenant, shared.about)
    if explainer.shelf.store is None and not await asyncio.to_thread(folder.is_dir):
        raise Refusal(
            "the folder of the index is not in its WHENCE_DATA_DIR, which must be the same everywhere, or have a store "
            "behind it (WHENCE_STORE_URL)"
        )
    build = Build(explainer, job, Steps(), await ground_of(explainer, job, shared.about))
    await build.make_folder()
    build.called = True  # workers are called by whoever leads
    async with build.transaction() as session:
        planned = await influence.keys(session, shared.about)
    if planned != {piece.number: piece.key for piece in build.ground.material.pieces}:
        raise Refusal("its shards would be others: is its device another one?")
    while (await build.look()).missing:
        await build.compute_all()
        await asyncio.sleep(LOOK_SECONDS)


async def explain_rows(explainer: Explainer, job: Job, shared: SharedJob) -> None:
    """Shards of inferences, until they are to be explained otherwise."""
    async with explainer.database.transaction(tenant=shared.tenant) as session:
        model = await find_active(session, str(shared.about))
        state = await state_of(session, model)
    if not state.works:
        return
    scorer = await scorer_of(explainer, shared.tenant, model, state)
    if scorer.device != shared.device:
        raise Refusal(f"its model would run on another device ({scorer.device})")
    share = Share(explainer, shared.tenant, job.id, model, scorer, state.acting)
    with suppress(Outdated):
        while True:
            await share.compute_all(always)
            await asyncio.sleep(LOOK_SECONDS)


async def always(_: Any) -> bool:
    return True


PARTS: Mapping[str, Callable[[Explainer, Job, SharedJob], Awaitable[None]]] = {
    explainability.KIND: explain_rows,
    influence_indexes.KIND: sketch_pairs,
}
"""What a task does for each kind of job that is shared."""
