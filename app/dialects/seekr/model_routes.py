"""Models and their deployments."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

from fastapi import Body, Path, Query
from pydantic import BaseModel, Field
from starlette.responses import Response
from starlette.routing import BaseRoute

from app.dependencies import Admin, JsonResponse, Reader, ServerState
from app.deployments import (
    Deployed,
    NewDeployment,
    create_deployment,
    describe_deployment,
    list_deployments,
    model_named,
    switch_deployment,
)
from app.dialects.seekr.router import flow_router
from app.errors import problems
from app.models import Entry, list_models
from app.runtime import Runtime, State
from app.wire import Whole, Wire
from explainers.language_model import LanguageModel
from explainers.loaders import PREDICTORS

DEPLOYMENTS = "/v1/flow/deployments"
ModelType = Literal["Fine-tuned Run", "Base Model"]
Status = Literal["Inactive", "Pending", "Active", "Failed", "Started", "Success"]
STATUSES: dict[State, Status] = {
    "registered": "Pending",
    "loading": "Pending",
    "loaded": "Active",
    "refused": "Failed",
}

Id = Annotated[
    str, Path(description="Id of a deployment.", examples=["deployment-0b6f2f5e-3f52-5d0c-8a39-6f0d0f6d7a11"])
]
Skip = Annotated[int, Query(ge=0, le=2**31, description="Deployments to skip.", examples=[0])]
Limit = Annotated[int, Query(ge=1, le=10_000, description="Most deployments to list.", examples=[100])]


class ListedModel(BaseModel):
    """A model that completes prompts."""

    id: str = Field(description="Its name: what `model` and `model_id` take.", examples=["demo-qa"])
    name: str = Field(description="The same.", examples=["demo-qa"])
    size: int | None = Field(description="Bytes of its files; null where they are gone.", examples=[412000])
    model_type: Literal["chat", "language"] | None = Field(
        description="`chat`: it came with a chat template. Null until it is loaded.", examples=["chat"]
    )


class ListedModels(BaseModel):
    object: Literal["list"] = Field(description="`list`.", examples=["list"])
    data: list[ListedModel] = Field(description="The models by name.")


class DeploymentObject(BaseModel):
    """A model as it is served, under an id that stands for it wherever a model is named."""

    id: str = Field(description="Id of the deployment.", examples=["deployment-0b6f2f5e-3f52-5d0c-8a39-6f0d0f6d7a11"])
    model_type: ModelType = Field(description="Whether the model is a fine-tune of another.", examples=["Base Model"])
    model_id: str = Field(description="Name of the model.", examples=["demo-qa"])
    name: str = Field(description="As it was said; else the model's name.", examples=["mill facts"])
    description: str = Field(description="As it was said; else the model's.", examples=["Who keeps the mill"])
    status: Status = Field(
        description="`Active`: it answers. `Pending`: its model is being loaded. `Failed`: its model is refused. "
        "`Inactive`: switched off. The other values are the vendor's.",
        examples=["Active"],
    )
    hardware_type: Literal["Dedicated"] = Field(description="Always this machine.", examples=["Dedicated"])
    total_input_tokens: int = Field(description="Tokens that it has read for the routes below.", examples=[1100])
    total_output_tokens: int = Field(description="Tokens that it has written there.", examples=[600])
    created_at: datetime = Field(description="When its model was registered.", examples=["2026-03-01T08:00:00Z"])
    updated_at: datetime = Field(description="When it was last named or switched.", examples=["2026-03-01T08:00:00Z"])
    n_instances: int = Field(description="Always 1.", examples=[1])
    user_id: int = Field(description="Always 0: keys have no numbers here.", examples=[0])


class DeploymentList(BaseModel):
    data: list[DeploymentObject] = Field(description="In the order in which their models were registered.")


class DeploymentRequest(Wire):
    """Name the deployment of a model."""

    name: str = Field(min_length=1, max_length=100, description="For people.", examples=["mill facts"])
    description: str = Field(max_length=1000, description="For people.", examples=["Who keeps the mill"])
    model_type: ModelType = Field(description="What the model is.", examples=["Base Model"])
    model_id: str = Field(description="Name of a registered model.", examples=["demo-qa"])
    n_instances: Whole = Field(
        1, ge=1, le=50, description="Only 1 is served.", examples=[1], json_schema_extra={"maximum": 1}
    )


EXAMPLE = {
    "name": "mill facts",
    "description": "Who keeps the mill",
    "model_type": "Fine-tuned Run",
    "model_id": "demo-qa",
    "n_instances": 1,
}
DeploymentBody = Annotated[
    DeploymentRequest, Body(openapi_examples={"a fine-tune": {"summary": "A fine-tune", "value": EXAMPLE}})
]


def model_routes() -> list[BaseRoute]:
    flow = flow_router()
    one, kind = problems(401, 403, 404), DeploymentObject
    flow.get("/v1/flow/models", summary="List models", response_model=ListedModels, responses=problems(401, 403))(
        models
    )
    flow.get(DEPLOYMENTS, summary="List deployments", response_model=DeploymentList, responses=problems(400, 401, 403))(
        deployments
    )
    flow.post(
        DEPLOYMENTS,
        summary="Name a deployment",
        response_model=kind,
        responses=problems(400, 401, 403, 404, 409, 413, 415),
    )(create)
    flow.get(DEPLOYMENTS + "/{id}", summary="Get a deployment", response_model=kind, responses=one)(deployment)
    flow.put(DEPLOYMENTS + "/{id}/promote", summary="Switch a deployment on", response_model=kind, responses=one)(
        promote
    )
    flow.put(DEPLOYMENTS + "/{id}/demote", summary="Switch a deployment off", response_model=kind, responses=one)(
        demote
    )
    return flow.routes


async def models(server: ServerState, caller: Reader) -> Response:
    """The registered models that complete prompts."""
    runtime = server.explainer.runtime
    entries = await list_models(server.explainer.database, runtime, caller.tenant)
    listed = [await listed_model(entry, runtime) for entry in entries if entry.registration.kind not in PREDICTORS]
    return JsonResponse({"object": "list", "data": listed})


async def listed_model(entry: Entry, runtime: Runtime) -> dict[str, Any]:
    name, size = entry.registration.name, await asyncio.to_thread(bytes_of, FilePath(entry.registration.path))
    return {"id": name, "name": name, "size": size, "model_type": await model_type(entry, runtime)}


async def model_type(entry: Entry, runtime: Runtime) -> str | None:
    if entry.state != "loaded":
        return None
    model = await runtime.model(entry.registration)
    return "chat" if isinstance(model, LanguageModel) and model.chat is not None else "language"


def bytes_of(path: FilePath) -> int | None:
    """Of a file, or of all files in a folder."""
    try:
        return sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    except OSError:
        return None


async def deployments(server: ServerState, caller: Reader, skip: Skip = 0, limit: Limit = 100) -> Response:
    """One for each registered model that completes prompts, whether it was named or not."""
    found = await list_deployments(server.explainer.database, server.explainer.runtime, caller.tenant, skip, limit)
    return JsonResponse({"data": [deployment_answer(each) for each in found]})


async def create(server: ServerState, caller: Admin, body: DeploymentBody) -> Response:
    """Names the deployment of a registered model, once; it has had its id from the start, and is switched on."""
    database = server.explainer.database
    new = NewDeployment(
        model=await model_named(database, caller.tenant, body.model_id),
        name=body.name,
        description=body.description,
        fine_tuned=body.model_type == "Fine-tuned Run",
        instances=body.n_instances,
    )
    made = await create_deployment(database, server.explainer.runtime, caller.tenant, new)
    return JsonResponse(deployment_answer(made))


async def deployment(server: ServerState, caller: Reader, id: Id) -> Response:
    """One deployment and the state of its model."""
    found = await describe_deployment(server.explainer.database, server.explainer.runtime, caller.tenant, id)
    return JsonResponse(deployment_answer(found))


async def promote(server: ServerState, caller: Admin, id: Id) -> Response:
    """Lets the deployment's id answer again."""
    return await switched(server, caller, id, active=True)


async def demote(server: ServerState, caller: Admin, id: Id) -> Response:
    """Lets the deployment's id answer no more; its model stays loaded and answers to its own name."""
    return await switched(server, caller, id, active=False)


async def switched(server: ServerState, caller: Admin, id: str, *, active: bool) -> Response:
    database, runtime = server.explainer.database, server.explainer.runtime
    return JsonResponse(deployment_answer(await switch_deployment(database, runtime, caller.tenant, id, active=active)))


def deployment_answer(found: Deployed) -> dict[str, Any]:
    said, row = found.deployment, found.deployment.row
    return {
        "id": found.id,
        "model_type": "Base Model" if row.base is None else "Fine-tuned Run",
        "model_id": row.name,
        "name": row.name if said.name is None else said.name,
        "description": row.description if said.description is None else said.description,
        "status": STATUSES[found.state] if said.active else "Inactive",
        "hardware_type": "Dedicated",
        "total_input_tokens": said.input_tokens,
        "total_output_tokens": said.output_tokens,
        "created_at": row.created_at,
        "updated_at": said.changed_at or row.created_at,
        "n_instances": 1,
        "user_id": 0,
    }
