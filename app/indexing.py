"""Influence indexes that a command waits for, built while a bar shows how far they are.

`whence models add --training-data` registers a fine-tune with its index; `whence demo` has one before it answers.

The build is a job like any other: this process works on it, and so does a server that runs beside.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import typer

from app.errors import problem_body
from app.explain import Explainer
from app.influence_indexes import NewIndex, index_for, job_of, list_indexes, start_index
from app.jobs import Jobs, follow
from app.models import NewModel, find_model, registration_of
from app.predictors import add_predictor
from app.refusals import IndexNotReady, Refusal
from app.training_files import NewFile, add_files, checked, list_files, wire_id
from app.worker import working
from explainers.errors import MissingCapability
from storage.jobs import Job
from storage.training_files import MAX_PAGE
from storage.training_tables import TrainingFile

PURPOSE = "fine-tune"


def training_files_in(paths: Sequence[Path]) -> list[NewFile]:
    """The contents of training files; raises a refusal for one that is not there, BadLines for bad lines."""
    for path in paths:
        if not path.is_file():
            raise Refusal(f"there is no file {path}: --training-data names a file of training examples")
    files = [NewFile(path.name, PURPOSE, path.read_bytes()) for path in paths]
    for file in files:
        checked(file)
    return files


async def add_and_index(
    explainer: Explainer, tenant: str, new: NewModel, folder: Path, files: Sequence[NewFile]
) -> None:
    """Registers the model, keeps its training files, and waits until its index answers.

    Raises a refusal where the build fails; the model stays registered, and the build can be asked for again.
    """
    await add_predictor(explainer, folder, tenant, new)
    rows = await add_files(explainer.database, explainer.shelf, tenant, files)
    await build_and_wait(explainer, tenant, new.name, NewIndex(tuple(wire_id(row.id) for row in rows)))


async def ensure_index(explainer: Explainer, tenant: str, name: str, path: Path) -> None:
    """Waits until an index answers for the model's weights: one that is there, or under way, or a new one of the file.

    Raises a refusal where the build fails.
    """
    registration = registration_of(await find_model(explainer.database, tenant, name))
    job = await job_under_way(explainer, tenant, name)
    if job is not None:
        await worked_on(explainer, job)
    with suppress(IndexNotReady, MissingCapability):
        await index_for(explainer, registration)
        return
    file = await kept_file(explainer, tenant, path)
    await build_and_wait(explainer, tenant, name, NewIndex((wire_id(file.id),)))


async def job_under_way(explainer: Explainer, tenant: str, name: str) -> Job | None:
    """The job that builds an index of the model, left behind or worked on elsewhere."""
    building = [row for row in await list_indexes(explainer, tenant, name) if row.state == "building"]
    async with explainer.database.transaction(tenant=tenant) as session:
        jobs = [await job_of(session, row) for row in building]
    return next((job for job in jobs if job is not None and not job.finished), None)


async def kept_file(explainer: Explainer, tenant: str, path: Path) -> TrainingFile:
    """The training file with this very content, stored now unless it is."""
    (new,) = training_files_in([path])
    digest = hashlib.sha256(new.content).digest()
    known = await list_files(
        explainer.database, tenant, purpose=None, sort="created_at", descending=True, offset=0, limit=MAX_PAGE
    )
    same = next((row for row in known if row.digest == digest), None)
    if same is not None:
        return same
    (row,) = await add_files(explainer.database, explainer.shelf, tenant, [new])
    return row


async def build_and_wait(explainer: Explainer, tenant: str, name: str, new: NewIndex) -> None:
    """Raises a refusal where the build fails."""
    ended = await worked_on(explainer, await start_index(explainer, tenant, name, new))
    if ended.state != "succeeded":
        why = ended.error["message"] if ended.error else f"it was {ended.state}"
        raise Refusal(f"{name} is registered, but its influence index could not be built: {why}")


async def worked_on(explainer: Explainer, job: Job) -> Job:
    """The job once it has ended, by this process or another."""
    jobs = Jobs(explainer, problem_body)
    try:
        async with working(jobs):
            return await shown(explainer, job)
    finally:
        await jobs.close()


async def shown(explainer: Explainer, job: Job) -> Job:
    """The job once it has ended; a bar counts its tokens."""
    with typer.progressbar(length=1, label=f"influence index of {job.model}", file=sys.stderr) as bar:
        async for state in follow(explainer.database, job, 0, lambda: False):
            if state is not None:
                job, bar.length = state, max(1, state.total)
                bar.update(state.done - bar.pos)
    return job
