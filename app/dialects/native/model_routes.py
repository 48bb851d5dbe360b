"""The registry of models."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path as Path_
from pathlib import PurePath
from typing import Annotated, Any, BinaryIO, TypeVar
from urllib.parse import quote

from fastapi import Path, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.responses import Response
from starlette.routing import BaseRoute

from app.dependencies import (
    Admin,
    JsonRequest,
    JsonResponse,
    Reader,
    ServerState,
    keyed_router,
    media_type_of,
    read_json,
    while_connected,
)
from app.dialects.native.schemas import ModelList, ModelResponse, NewModelRequest, model_answer
from app.errors import problems
from app.model_body import ModelBody
from app.models import Entry, check_links, describe_model, list_models
from app.multipart import MULTIPART, Form
from app.predictors import add_predictor, remove_registered
from app.shelf import MODELS
from explainers.errors import InvalidRequest
from explainers.predictors.formats import FORMATS
from storage.content import write_whole

Read = TypeVar("Read", bound=BaseModel)
Name = Annotated[str, Path(description="Name of a registered model; may contain `/`.", examples=["demo-lm"])]
SENT = {"name": "churn-7", "kind": "tabular", "file": "@churn.onnx"}
FOLDER = {"name": "my-lm", "kind": "causal-lm", "path": "my-lm"}
UPLOAD: dict[str, Any] = {
    "type": "object",
    "required": ["name", "kind", "file"],
    "properties": {
        "name": {"type": "string", "description": "Name to serve it under.", "example": "churn-7"},
        "kind": {"type": "string", "description": "`tabular` or `text-classifier`.", "example": "tabular"},
        "file": {"type": "string", "format": "binary", "description": f"A model in {', '.join(FORMATS)}."},
        "schema": {"type": "string", "description": "JSON, as the body of POST /api/v3/models."},
        "description": {"type": "string", "description": "For people."},
    },
}


def new_model_body() -> dict[str, Any]:
    """The description of a body that its route reads itself: JSON, or a file with what JSON would say."""
    schema = NewModelRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    del schema["$defs"]  # the parts of `schema` are those of POST /api/v3/models
    whole = {"schema": schema, "examples": {"a folder": {"value": FOLDER}}}
    sent = {"schema": UPLOAD, "examples": {"a file": {"value": SENT}}}
    return {"requestBody": {"required": True, "content": {"application/json": whole, MULTIPART: sent}}}


def model_routes() -> list[BaseRoute]:
    keyed = keyed_router("Models")
    written = problems(400, 401, 403, 409, 413, 415, 503)
    keyed.get("/models", summary="List models", response_model=ModelList, responses=problems(401, 403))(models)
    keyed.post(
        "/models",
        summary="Register a model",
        response_model=ModelResponse,
        status_code=201,
        responses=written,
        openapi_extra=new_model_body(),
    )(register)
    keyed.get(
        "/models/{name:path}", summary="Get a model", response_model=ModelResponse, responses=problems(401, 403, 404)
    )(model)
    keyed.delete(
        "/models/{name:path}", summary="Remove a model", status_code=204, responses=problems(401, 403, 404, 409)
    )(unregister)
    return keyed.routes


async def models(server: ServerState, caller: Reader) -> Response:
    """The registered models, and how far this server is with each."""
    entries = await list_models(server.explainer.database, server.explainer.runtime, caller.tenant)
    return JsonResponse({"models": [model_answer(entry) for entry in entries]})


async def model(server: ServerState, caller: Reader, name: Name) -> Response:
    """One registered model."""
    entry = await describe_model(server.explainer.database, server.explainer.runtime, caller.tenant, name)
    return JsonResponse(model_answer(entry))


async def register(request: Request, server: ServerState, caller: Admin) -> Response:
    """Registers a model that lies on the server's disk, or the file of a predictor that is sent along.

    It is loaded and tested first: a model that cannot be explained is refused with the reason. `schema`, the body with
    which `POST /api/v3/models` registers a model, makes the rows of a predictor known; without it they are those of the
    model with that `partner_model_id`, registered before or after. What differs between the two is told.
    """
    if media_type_of(request) == MULTIPART:
        work = add_uploaded(request, server, caller)
    else:
        body = await new_model(request)
        await asyncio.to_thread(check_links, server.settings.models_dir, body.path)
        work = add_predictor(
            server.explainer, server.settings.models_dir, caller.tenant, body.to_domain(), body.definition
        )
    entry = await while_connected(request, work)
    return JsonResponse(model_answer(entry), 201, {"Location": f"/models/{quote(entry.registration.name)}"})


async def new_model(request: Request) -> NewModelRequest:
    body = JsonRequest(request.scope, request.receive)
    await read_json(body)
    return read_as(NewModelRequest, await body.json())


async def add_uploaded(request: Request, server: ServerState, caller: Admin) -> Entry:
    """The file is kept under its digest, so that sending it twice keeps it once."""
    async with Form(request) as form:
        file, schema = form.file("file"), form.text("schema")
        if file is None:
            raise InvalidRequest("needs the part file", "/file")
        said = {name: form.text(name) for name in ("name", "kind", "description")}
        definition = None if schema is None else read_as(ModelBody, parsed(schema), "schema").to_domain()
        suffix = PurePath(form.file_name("file")).suffix.lower()
        if suffix not in FORMATS:
            raise InvalidRequest(f"its name must end in one of {', '.join(FORMATS)}", "/file")
        path = await asyncio.to_thread(kept, file, server.settings.data_dir / MODELS, suffix)
        await server.explainer.shelf.put(path, f"{MODELS}/{path.name}")
    body = read_as(NewModelRequest, {**said, "path": path.name})
    return await add_predictor(server.explainer, path.parent, caller.tenant, body.to_domain(), definition)


def parsed(text: str) -> Any:
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest(f"is not JSON: {error}", "/schema") from None


def read_as(kind: type[Read], value: Any, *at: str) -> Read:
    """Raises what a declared body raises."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise RequestValidationError(
            [{**problem, "loc": ("body", *at, *problem["loc"])} for problem in error.errors(include_url=False)]
        ) from None


def kept(file: BinaryIO, folder: Path_, suffix: str) -> Path_:
    """Where the content of an upload lies, for this server alone."""
    content = file.read()
    path = folder / f"{hashlib.sha256(content).hexdigest()}{suffix}"
    if not path.exists():
        write_whole(path, content)
    return path


async def unregister(server: ServerState, caller: Admin, name: Name) -> Response:
    """Stops serving a model. Its files and the stored explanations stay."""
    await remove_registered(server.explainer, caller.tenant, name)
    return Response(status_code=204)
