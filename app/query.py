"""The second question, asked of what is stored: rows, aggregates and scores of a model's inferences."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.explainability import State, state_of
from app.monitored import Monitored, find_active, list_in_use
from app.refusals import NotFound, UnknownModel
from explainers.errors import InvalidRequest
from storage.database import Database
from storage.query.answers import run
from storage.query.compiler import compile_query
from storage.query.drift import bucket_table
from storage.query.drift import drift as drift_rows
from storage.query.drift_request import parse_bucket_table, parse_drift
from storage.query.grammar import parse
from storage.query.schema import Attribute, Explainability, QueryModel
from storage.values import UNSTORABLE


async def query(
    database: Database,
    tenant: str,
    model: str | None,
    body: Mapping[str, Any],
    *,
    page: int | None = None,
    page_size: int | None = None,
) -> list[dict[str, Any]]:
    """The rows that answer a query to a model: named by its id or its owner's name, or the only one in use.

    Raises `UnknownModel`, InvalidRequest without a name, and InvalidQuery for a query with a mistake.
    """
    asked = parse(body)
    async with database.transaction(tenant=tenant) as session:
        return await run(session, compile_query(asked, await known(session, model)), page=page, page_size=page_size)


async def inference(database: Database, tenant: str, model: str, partner_inference_id: str) -> dict[str, Any]:
    """One inference as `select *` gives it; raises `UnknownModel`, and `NotFound` for an id that none has."""
    named = {"property": "partner_inference_id", "comparator": "eq", "value": partner_inference_id}
    body = {"select": [{"property": "*"}], "filter": [named]}
    found = [] if UNSTORABLE.search(partner_inference_id) else await query(database, tenant, model, body)
    if not found:
        raise NotFound("there is no inference with this partner_inference_id")
    return found[0]


async def drift(database: Database, tenant: str, model: str, body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How far the rows of a target are from those of a base, a figure for each property. Raises as `query`."""
    asked = parse_drift(body)
    async with database.transaction(tenant=tenant) as session:
        return await drift_rows(session, await known(session, model), asked)


async def drift_table(database: Database, tenant: str, model: str, body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The bins that the stability index of a property sums up. Raises as `query`."""
    asked = parse_bucket_table(body)
    async with database.transaction(tenant=tenant) as session:
        return await bucket_table(session, await known(session, model), asked)


async def known(session: AsyncSession, name: str | None) -> QueryModel:
    """The model that is asked, as queries see it; raises as `choose`."""
    model = await choose(session, name)
    return query_model(model, await state_of(session, model))


async def choose(session: AsyncSession, name: str | None) -> Monitored:
    if name is not None:
        with suppress(UnknownModel):
            return await find_active(session, name)
    models = await list_in_use(session)
    if name is None and len(models) != 1:
        raise InvalidRequest(f"model_id is needed: {len(models)} models are in use", "/model_id")
    for model in models:
        if name is None or model.definition.partner_model_id == name:
            return model
    raise UnknownModel(str(name))


def query_model(model: Monitored, state: State) -> QueryModel:
    """A model as queries see it."""
    places = model.layout.places.values()
    details = model.definition.details
    return QueryModel(
        id=model.id,
        attributes=tuple(
            Attribute(
                name=place.attribute.name,
                stage=place.attribute.stage,
                value_type=place.attribute.value_type,
                position=place.attribute.position,
                slot_kind="number" if place.attribute.is_number else "text",
                slot=place.slot + 1,
                implicit=place.attribute.implicit,
                attribute_link=place.attribute.link,
                gt_class_link=place.attribute.gt_class_link,
                is_positive_predicted_attribute=place.attribute.positive,
                definition=place.attribute.details,
            )
            for place in places
        ),
        explainability=explainability_of(state),
        classifier_threshold=float(details.get("classifier_threshold", 0.5)),
        text_delimiter=details.get("text_delimiter"),
    )


def explainability_of(state: State) -> Explainability | None:
    """None as long as nothing was ever prepared."""
    if state.fingerprint is None:
        return None
    return Explainability(state.enabled, state.acting.algorithm, state.fingerprint)
