"""The models whose inferences are kept."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Body, Path, Query
from starlette.responses import Response
from starlette.routing import BaseRoute

from app.dependencies import Caller, Ingester, JsonResponse, Reader, ReaderOrIngester, Server, ServerState, keyed_router
from app.dialects.arthur.explanation_schemas import enrichment_answer
from app.dialects.arthur.model_schemas import (
    ModelChange,
    MonitoredModelResponse,
    model_answer,
)
from app.errors import problems
from app.explainability import State, archive, renew, state_of
from app.model_body import ModelBody
from app.monitored import Monitored, change, find, list_active
from app.predictors import register_monitored

MODELS = "/api/v3/models"
TAG = "Models and inferences (Arthur's wire)"
CHURN = {
    "partner_model_id": "churn-7",
    "input_type": "TABULAR",
    "output_type": "MULTICLASS",
    "attributes": [
        {"name": "income", "value_type": "FLOAT", "stage": "PIPELINE_INPUT", "position": 0},
        {"name": "tenure", "value_type": "INTEGER", "stage": "PIPELINE_INPUT", "position": 1},
        {"name": "churn_yes", "value_type": "FLOAT", "stage": "PREDICTED_VALUE", "position": 0, "gt_class_link": "1"},
        {"name": "churn_no", "value_type": "FLOAT", "stage": "PREDICTED_VALUE", "position": 1, "gt_class_link": "0"},
        {"name": "churned", "value_type": "INTEGER", "stage": "GROUND_TRUTH_CLASS", "position": 0},
    ],
}

NewBody = Annotated[ModelBody, Body(openapi_examples={"two classes": {"value": CHURN}})]
ChangeBody = Annotated[ModelChange, Body(openapi_examples={"a name": {"value": {"display_name": "Churn"}}})]
ModelId = Annotated[str, Path(description="Id of the model.", examples=["0197c1c6-5f0a-7cc0-8a86-5f5ce4c0a1b2"])]
IdType = Annotated[
    str, Query(description="What the path names: `id`, or `partner_model_id`.", examples=["id"], max_length=32)
]


def model_routes() -> list[BaseRoute]:
    keyed = keyed_router(TAG)
    seen, known = problems(401, 403), problems(401, 403, 404)
    written = problems(400, 401, 403, 404, 409, 413, 415)
    one: Any = {"response_model": MonitoredModelResponse}
    keyed.post(MODELS, summary="Register a model", status_code=201, responses=written, **one)(create)
    keyed.get(MODELS, summary="List models in use", response_model=list[MonitoredModelResponse], responses=seen)(models)
    keyed.post(MODELS + "/{model_id}/retry", summary="Register again", responses=known, **one)(retry)
    keyed.put(MODELS + "/{model_id}", summary="Change a model", responses=written, **one)(update)
    keyed.delete(MODELS + "/{model_id}", summary="Archive a model", status_code=204, responses=known)(remove)
    keyed.get(MODELS + "/{model_id:path}", summary="Get a model", responses=known, **one)(model)
    return keyed.routes


async def create(server: ServerState, caller: Ingester, body: NewBody) -> Response:
    """A model whose inferences will be sent. It is ready at once; its attributes are fixed from then on.

    Attributes that follow from the declared ones are added: the other of two classes, and a 0/1 ground truth per class.
    """
    created = await register_monitored(server.explainer, caller.tenant, body.to_domain())
    return JsonResponse(await answer(server, caller, created), status_code=201)


async def models(server: ServerState, caller: Reader) -> Response:
    """In the order they were registered, without the archived ones."""
    active = await list_active(server.explainer.database, caller.tenant)
    return JsonResponse([await answer(server, caller, each) for each in active])


async def model(server: ServerState, caller: ReaderOrIngester, model_id: ModelId, id_type: IdType = "id") -> Response:
    """A model, also an archived one."""
    by_partner_id = id_type == "partner_model_id"
    found = await find(server.explainer.database, caller.tenant, model_id, by_partner_id=by_partner_id)
    return JsonResponse(await answer(server, caller, found))


async def retry(server: ServerState, caller: Ingester, model_id: ModelId) -> Response:
    """Nothing is left to be done: a model is ready as soon as it is registered."""
    found = await find(server.explainer.database, caller.tenant, model_id)
    return JsonResponse(await answer(server, caller, found))


async def update(server: ServerState, caller: Ingester, model_id: ModelId, body: ChangeBody) -> Response:
    """Other labels, ranges, categories and positions; the set of attributes, their stages and types stay."""
    changed = await change(server.explainer.database, caller.tenant, model_id, body.details(), body.changed())
    await renew(server.explainer, caller.tenant, changed)
    return JsonResponse(await answer(server, caller, changed))


async def remove(server: ServerState, caller: Ingester, model_id: ModelId) -> Response:
    """The model takes no more inferences, and its partner_model_id is free again; its rows stay."""
    await archive(server.explainer, caller.tenant, model_id)
    return Response(status_code=204)


async def answer(server: Server, caller: Caller, model: Monitored) -> dict[str, Any]:
    async with server.explainer.database.transaction(tenant=caller.tenant) as session:
        state = await state_of(session, model)
    explainability = enrichment_answer(state)["config"] | {"enabled": state.enabled} if state != State() else None
    return model_answer(
        model.id, model.definition, status=model.status, archived=model.archived, explainability=explainability
    )
