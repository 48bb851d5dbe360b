"""`whence models add --training-data`: a fine-tune with its influence index, built while a bar shows how far it is.

The build is a job like any other: this process works on it, and so does a server that runs beside.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from app.errors import problem_body
from app.explain import Explainer
from app.influence_indexes import NewIndex, start_index
from app.jobs import Jobs, follow
from app.models import NewModel
from app.predictors import add_predictor
from app.refusals import Refusal
from app.training_files import NewFile, add_files, checked, wire_id
from app.worker import working
from storage.jobs import Job

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
    rows = await add_files(explainer.database, explainer.data_dir, tenant, files)
    job = await start_index(explainer, tenant, new.name, NewIndex(tuple(wire_id(row.id) for row in rows)))
    jobs = Jobs(explainer, problem_body)
    try:
        async with working(jobs):
            ended = await shown(explainer, job)
    finally:
        await jobs.close()
    if ended.state != "succeeded":
        why = ended.error["message"] if ended.error else f"it was {ended.state}"
        raise Refusal(f"{new.name} is registered, but its influence index could not be built: {why}")


async def shown(explainer: Explainer, job: Job) -> Job:
    """The job once it has ended; a bar counts its tokens."""
    with typer.progressbar(length=1, label="influence index", file=sys.stderr) as bar:
        async for state in follow(explainer.database, job, 0, lambda: False):
            if state is not None:
                job, bar.length = state, max(1, state.total)
                bar.update(state.done - bar.pos)
    return job
