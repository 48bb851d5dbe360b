"""What a build of an influence index stands on: weights, training data and a mask, the same for every worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

from app.explain import Explainer
from app.influence_indexes import base_of, mask_from
from app.models import find_model, language_model, registration_of
from app.refusals import IndexNotReady
from app.runtime import Registration
from app.training_files import read_file, wire_id
from app.training_material import Material, material_of
from explainers.errors import UnreadableModel
from explainers.influence.examples import Mask
from explainers.influence.gradients import Projection
from explainers.influence.shards import CONTENT
from explainers.influence.sketching import FineTune
from storage import influence
from storage.jobs import Job
from storage.training_tables import InfluenceIndex, TrainingFile

BATCH_TOKENS = 4_096
SEED = 0
SIZE, SMALL_SIZE = 8, 4
MANY_PAIRS, MANY_LAYERS = 100_000, 100
"""Beyond, rows are sketched in the smaller size."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What a build stands on: the same for every worker."""

    row: InfluenceIndex
    tune: FineTune
    mask: Mask
    material: Material
    projection: Projection
    files: tuple[str, ...]
    path: str
    made_with: Sequence[Any]
    seconds: float  # that reading the training data has taken


async def ground_of(explainer: Explainer, job: Job, id: UUID) -> Ground:
    """Raises what makes the build impossible."""
    tenant = job.tenant_id
    async with explainer.database.transaction(tenant=tenant) as session:
        row = await influence.get(session, id)
        files = await influence.files_of(session, id)
    if not files:
        raise IndexNotReady("this build was given up", str(job.id))
    registration = registration_of(await find_model(explainer.database, tenant, row.model))
    tune, made_with = await tune_of(explainer, registration, row)
    mask, started = mask_from(row.config), time.monotonic()
    try:
        contents = [await read_file(explainer.database, explainer.shelf, tenant, wire_id(file.id)) for file in files]
    except OSError:
        raise UnreadableModel("a training file cannot be read, or has changed on the disk: send it again") from None
    lines = sum(file.lines for file in files)
    size = size_of(tune, lines)
    told = [CONTENT, *made_with, asdict(mask), size, SEED, BATCH_TOKENS]
    material = await asyncio.to_thread(material_of, tune.model, named(contents), lines, mask, told)
    projection = Projection(tune.model.network, size, SEED)
    seconds, ids = time.monotonic() - started, tuple(wire_id(file.id) for file in files)
    return Ground(row, tune, mask, material, projection, ids, registration.path, told, seconds)


def named(contents: list[tuple[TrainingFile, bytes]]) -> Iterator[tuple[bytes, str]]:
    """Contents with their names, each of which is let go once it was asked for."""
    while contents:
        file, content = contents.pop(0)
        yield content, file.filename


async def tune_of(explainer: Explainer, registration: Registration, row: InfluenceIndex) -> tuple[FineTune, list[Any]]:
    """The loaded model and its base, and what of them decides the content of a shard."""
    model = language_model(await explainer.runtime.held(registration))
    below = await base_of(explainer, registration)
    base = None if below is None else language_model(await explainer.runtime.held(below))
    if (model.digest, None if base is None else base.digest) != (row.model_digest, row.base_digest):
        raise IndexNotReady(f"the index was asked for of the weights {row.model_digest}, which are registered no more")
    kinds = [[str(each.network.dtype), each.device.type] for each in (model, base) if each is not None]
    return FineTune(model, base), [row.model_digest, row.base_digest, kinds]


def size_of(tune: FineTune, pairs: int) -> int:
    layers = len(Projection(tune.model.network, SIZE).layers)
    return SMALL_SIZE if pairs > MANY_PAIRS or layers > MANY_LAYERS else SIZE
