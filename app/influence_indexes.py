"""Influence indexes: asked for, found for a question, and where their files lie.

Context: an index is of exactly one set of weights, takes minutes to days to build, and may have gigabytes. Decision:
the row says for which weights it was made and how far it is; the files lie below the folder of the server's data, under
the index's id, and appear there at once, by a rename, when all is done. A newer index of the same model takes over
whatever shards it has in common, also with a build that failed or was cancelled: of these one keeps its shards.
Consequence: a question is answered by a whole index or told why there is none.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from app import costs
from app.costs import Cost, Estimate
from app.explain import Explainer
from app.models import find_model, language_model, registration_of
from app.refusals import Conflict, IndexNotReady, NotFound
from app.runtime import Registration
from app.shelf import Shelf
from app.training_files import id_of
from explainers.errors import InvalidRequest, MissingCapability
from explainers.influence.examples import Mask
from explainers.influence.finishing import FORM
from explainers.language_model import LanguageModel
from explainers.loaders import FINE_TUNES
from storage import errors as storage_errors
from storage import influence, jobs, tenants, training_files
from storage.database import Database
from storage.jobs import Job
from storage.queue import INDEXES
from storage.training_tables import InfluenceIndex

KIND = "influence-index"
SHARDS = "influence-shards"
"""The kind of jobs that compute shards beside the one that builds."""

MOST_FILES = 100
MOST_PROMPTS = 1_000
STRAY_SECONDS = 3600.0
"""Folders without a row that are younger may still be asked."""


@dataclass(frozen=True, slots=True)
class NewIndex:
    """`training_files` as clients call them; `generic_prompts` calibrate the levels beside the built-in ones."""

    training_files: tuple[str, ...]
    mask: Mask = field(default_factory=Mask)
    generic_prompts: tuple[str, ...] = ()

    @property
    def config(self) -> dict[str, Any]:
        return {"mask": asdict(self.mask), "generic_prompts": list(self.generic_prompts)}


def mask_from(config: Mapping[str, Any]) -> Mask:
    return Mask(**config["mask"])


def folder_of(data_dir: Path, tenant: str, id: UUID) -> Path:
    """Where a finished index lies. The name of a tenant is a plain word: see the table's check."""
    return data_dir / "indexes" / tenant / str(id)


def building_folder_of(data_dir: Path, tenant: str, id: UUID) -> Path:
    return data_dir / "indexes" / tenant / f".building-{id}"


async def start_index(explainer: Explainer, tenant: str, name: str, new: NewIndex) -> Job:
    """Asks for an index of the model's weights as they are registered; the job that builds it.

    Raises `UnknownModel`, `NotFound` for a file, `Conflict` while another index of the model is being built,
    MissingCapability for a model that is not fine-tuned, or completes no prompts.
    """
    files = check(new)
    registration = registration_of(await find_model(explainer.database, tenant, name))
    if registration.kind not in FINE_TUNES:
        raise MissingCapability(f"training pairs are traced for models of kind {' or '.join(FINE_TUNES)}")
    model = language_model(await explainer.runtime.model(registration))
    base = await base_of(explainer, registration)
    await explainer.gate.check_job(lambda: indexing(explainer, registration, model, files))
    id, job_id = influence.new_id(), influence.new_id()
    async with explainer.database.transaction(tenant=tenant) as session:
        await make_room(session, name)
        await add_row(session, id, files, name, model.digest, None if base is None else base.digest, job_id, new)
        request = {"index": str(id)}
        await jobs.forget(session, kind=SHARDS, model=name, keep=0)
        job = await jobs.add(session, id=job_id, kind=KIND, model=name, request=request, lane=INDEXES)
    assert job is not None  # noqa: S101 - its id is new
    return job


async def indexing(
    explainer: Explainer, registration: Registration, model: LanguageModel, files: Collection[UUID]
) -> Estimate:
    """Of an index of these files, as if no shard of it was there yet."""

    async def cost() -> Cost:
        async with explainer.database.transaction(tenant=registration.tenant) as session:
            examples, size = await training_files.sizes(session, files)
        return costs.indexing(explainer.rates, registration, model, examples, size)

    return Estimate(cost)


async def add_row(
    session: Any, id: UUID, files: list[UUID], name: str, digest: str, base: str | None, job: UUID, new: NewIndex
) -> None:
    try:
        await influence.add(
            session,
            id=id,
            model=name,
            model_digest=digest,
            base_digest=base,
            job=job,
            config=new.config,
            files=files,
        )
    except storage_errors.NotFound:
        raise NotFound("one of the training files does not exist") from None


def check(new: NewIndex) -> list[UUID]:
    """The ids of the files; raises InvalidRequest."""
    files = [id_of(file) for file in new.training_files]
    if not 1 <= len(files) <= MOST_FILES or len(set(files)) < len(files):
        raise InvalidRequest(f"must name 1 to {MOST_FILES} files, each once", "/training_files")
    if len(new.generic_prompts) > MOST_PROMPTS:
        raise InvalidRequest(f"must have at most {MOST_PROMPTS} entries", "/generic_prompts")
    if any(not prompt.strip() or "\0" in prompt for prompt in new.generic_prompts):
        raise InvalidRequest("must not be blank, nor hold a NUL character", "/generic_prompts")
    return files


async def make_room(session: Any, name: str) -> None:
    """Gives up builds that nobody works on any more; raises `Conflict` for one that goes on."""
    await influence.lock_model(session, name)
    for row in await influence.list_of(session, name):
        if row.state == "building":
            job = await job_of(session, row)
            if job is not None and not job.finished:
                raise Conflict(f"an index of this model is being built, by job {job.id}: wait for it, or cancel it")
            await influence.fail(session, row.id)


async def job_of(session: Any, row: InfluenceIndex) -> Job | None:
    with suppress(storage_errors.NotFound):
        return await jobs.get(session, row.job)
    return None


async def base_of(explainer: Explainer, registration: Registration) -> Registration | None:
    """The registration of the model that this one was trained from."""
    if registration.base is None:
        return None
    return registration_of(await find_model(explainer.database, registration.tenant, registration.base))


async def index_for(explainer: Explainer, registration: Registration) -> InfluenceIndex:
    """The index that answers for these weights. Raises `IndexNotReady`, MissingCapability where there never was one."""
    async with explainer.database.transaction(tenant=registration.tenant) as session:
        rows = await influence.list_of(session, registration.name)
        of_these = [row for row in rows if row.state == "ready" and row.model_digest == registration.digest]
        ready = next((row for row in of_these if (row.facts or {}).get("form") == FORM), None)
        if ready is not None:
            return ready
        if rows:
            raise not_ready(registration, rows[0], await job_of(session, rows[0]))
    raise MissingCapability(never_built(registration), "/model_id")


async def list_indexes(explainer: Explainer, tenant: str, name: str) -> list[InfluenceIndex]:
    """Those of a model, newest first; raises `UnknownModel`."""
    await find_model(explainer.database, tenant, name)
    async with explainer.database.transaction(tenant=tenant) as session:
        return await influence.list_of(session, name)


def never_built(registration: Registration) -> str:
    if registration.base is None:
        return (
            f"model '{registration.name}' is not known to be fine-tuned: register a fine-tune with its base, and build "
            "its influence index"
        )
    return (
        f"model '{registration.name}' is registered without training data: send its training file to POST /files, and "
        f"its id to POST /models/{registration.name}/influence-index"
    )


def not_ready(registration: Registration, row: InfluenceIndex, job: Job | None) -> IndexNotReady:
    """Why the newest index does not answer, and what to do."""
    name, again = registration.name, f"build it again with POST /models/{registration.name}/influence-index"
    if row.state == "ready" and row.model_digest == registration.digest:
        return IndexNotReady(f"the influence index of model '{name}' was made by another version: {again}")
    if row.state == "ready":
        return IndexNotReady(
            f"the influence index of model '{name}' was made for the weights {row.model_digest}, and those registered "
            f"are {registration.digest}: {again}"
        )
    if job is None or job.finished:
        how = "ended" if job is None else job.state
        return IndexNotReady(
            f"the influence index of model '{name}' is not there: its build {how} (job {row.job}); {again}",
            str(row.job),
        )
    share = f"{100 * job.done // max(1, job.total)} %" if job.done else "0 %"
    return IndexNotReady(
        f"the influence index of model '{name}' is being built, {share} done (job {row.job}): repeat the call later",
        str(row.job),
    )


def stored_as(tenant: str, id: UUID) -> str:
    """The folder of an index in the store, also while it is built."""
    return f"indexes/{tenant}/{id}"


async def sweep_indexes(database: Database, shelf: Shelf) -> None:
    """Removes the files of indexes, of all tenants, that no row knows."""
    for tenant in await tenants.names(database):
        async with database.transaction(tenant=tenant) as session:
            known, building = await influence.list_ids(session), await influence.list_ids(session, "building")
        await sweep(shelf, tenant, known, None if shelf.store is None else building)


async def sweep(shelf: Shelf, tenant: str, known: Collection[UUID], building: Collection[UUID] | None = None) -> None:
    """Here and in the store; also shards of builds that others have finished, where it is told what is `building`."""
    await asyncio.to_thread(sweep_folder, shelf.folder, tenant, known, known if building is None else building)
    await shelf.sweep(f"indexes/{tenant}", known, folders=True)


def sweep_folder(data_dir: Path, tenant: str, known: Collection[UUID], building: Collection[UUID]) -> None:
    """Removes the folders of indexes that no row knows, once nobody can be reading them any more."""
    place = data_dir / "indexes" / tenant
    names = {str(id) for id in known} | {f".building-{id}" for id in building}
    for folder in list(place.iterdir()) if place.is_dir() else []:
        with suppress(FileNotFoundError):  # another worker sweeps too
            if folder.name not in names and time.time() - folder.stat().st_mtime > STRAY_SECONDS:
                shutil.rmtree(folder)
