"""Predictors and the monitored models of their names: each is checked against the other, whichever comes second."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from app.bindings import bound, reading_of
from app.definitions import Definition
from app.explain import Explainer
from app.explainability import renew_named
from app.models import Entry, NewModel, enter_model, inside, read_model, registration_of, remove_model
from app.monitored import Monitored, find_named, register, same_columns
from app.refusals import Conflict
from app.rows import Layout
from explainers.errors import ExplainerError, InvalidRequest, PredictorFailed, UnreadableModel
from explainers.loaders import PREDICTORS, Model
from storage import models


async def add_predictor(
    explainer: Explainer, models_dir: Path | None, tenant: str, new: NewModel, definition: Definition | None = None
) -> Entry:
    """Registers any model; one that predicts is checked against the monitored model of its name, and serves it.

    A `definition` that comes along becomes a monitored model. Raises InvalidRequest for what differs between the two,
    and `Conflict` for a definition that differs from the one in use.
    """
    path = inside(models_dir, new.path)
    if definition is not None:
        definition = offered(definition, new)
    model = await read_model(explainer.database, explainer.runtime, tenant, new, path)
    monitored = await find_named(explainer.database, tenant, new.name) if new.kind in PREDICTORS else None
    if definition is not None and monitored is not None and not same_columns(monitored.definition, definition):
        raise Conflict("the model of this name is in use with other attributes than the schema: archive it first")
    known = definition if monitored is None else monitored.definition
    if known is not None:
        await check(explainer, model, known)
    entry = await enter_model(explainer.database, explainer.runtime, tenant, new, path, model)
    if definition is not None and monitored is None:
        await register(explainer.database, tenant, definition)
    if new.kind in PREDICTORS:
        await renew_named(explainer, tenant, new.name)
    return entry


async def remove_registered(explainer: Explainer, tenant: str, name: str) -> None:
    """Stops serving a model; what a predictor was to explain is told to lack it. Raises `UnknownModel`."""
    await remove_model(explainer.database, explainer.runtime, tenant, name)
    await renew_named(explainer, tenant, name)


def offered(definition: Definition, new: NewModel) -> Definition:
    if new.kind not in PREDICTORS:
        raise InvalidRequest(f"is for models of kind {' or '.join(PREDICTORS)}", "/schema")
    if definition.partner_model_id != new.name:
        raise InvalidRequest("must be the name of the model", "/schema/partner_model_id")
    return replace(definition, offered=True)


async def check(explainer: Explainer, model: Model, definition: Definition) -> None:
    """Raises what keeps the two from each other; UnreadableModel for a file that fails on a plain row."""
    reading = reading_of(Layout(definition))
    try:
        await explainer.runtime.run(lambda _: bound(model, reading))
    except PredictorFailed as error:
        raise UnreadableModel(str(error)) from None


async def register_monitored(explainer: Explainer, tenant: str, definition: Definition) -> Monitored:
    """A new monitored model; raises `Conflict` for a name in use, InvalidRequest where its predictor differs."""
    row = await models.find(explainer.database, tenant, definition.partner_model_id)
    if row is not None and row.kind in PREDICTORS:
        try:
            model = await explainer.runtime.model(registration_of(row))
        except ExplainerError:  # told when explanations are enabled; inferences can be kept meanwhile
            return await register(explainer.database, tenant, definition)
        await check(explainer, model, definition)
    return await register(explainer.database, tenant, definition)
