"""`whence check`: what shows on the user's own model that its explanations can be believed."""

from __future__ import annotations

from typing import Any

from app.backgrounds import background_from
from app.bindings import Reading, bound, reading_of
from app.explain import Explainer
from app.explainability import background_of, state_of
from app.models import find_model, registration_of
from app.monitored import Monitored, find_named
from app.refusals import NotFound
from explainers import agreement
from explainers.errors import InvalidRequest
from explainers.loaders import PREDICTORS, Model, facts_of
from explainers.predictors.binding import BoundTexts
from storage import inferences
from storage.cells import Cells

ROWS = 4
"""Inferences that are explained in both ways."""

Lines = tuple[dict[str, Any], ...]


async def check_model(explainer: Explainer, tenant: str, name: str) -> tuple[dict[str, Any], Lines]:
    """What is known of a model, and what was compared; raises `UnknownModel`, and `NotFound` without any rows."""
    row = await find_model(explainer.database, tenant, name)
    model = await explainer.runtime.model(registration_of(row))
    facts = dict(facts_of(model))
    if row.kind not in PREDICTORS:
        return facts, tuple(facts["self_test"])
    monitored = await find_named(explainer.database, tenant, name)
    if monitored is None:
        raise NotFound(f"nothing says what the columns of {name} are: register it with --schema, or over HTTP")
    return facts, await compared(explainer, tenant, model, monitored)


async def compared(explainer: Explainer, tenant: str, model: Model, monitored: Monitored) -> Lines:
    """Each algorithm against the reference packages, on a few stored rows."""
    reading = reading_of(monitored.layout)
    predictor = await explainer.runtime.run(lambda _: bound(model, reading))
    cells = await some_cells(explainer, tenant, monitored, reading)
    if isinstance(predictor, BoundTexts):
        texts = reading.texts(cells)
        return await explainer.runtime.run(lambda _: agreement.run_texts(predictor, texts, reading.delimiter))
    async with explainer.database.transaction(tenant=tenant) as session:
        state = await state_of(session, monitored)
    record = await background_of(explainer, tenant, monitored, reading, state)
    if record is None:
        raise InvalidRequest("there is nothing to compare with: send reference data, or inferences, first")
    background, rows = background_from(record), reading.table(cells, predictor.columns)
    return await explainer.runtime.run(lambda _: agreement.run_table(predictor, background, rows))


async def some_cells(explainer: Explainer, tenant: str, monitored: Monitored, reading: Reading) -> Cells:
    async with explainer.database.transaction(tenant=tenant) as session:
        rows = await inferences.read(session, monitored.id, limit=ROWS)
    if not rows:
        raise NotFound("there are no inferences to explain: send some first (POST /api/v3/models/ID/inferences)")
    return reading.cells(rows)
