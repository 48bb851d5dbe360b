"""Explanations of inferences: switched on, asked for one at a time, and tried on rows that never were."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, BinaryIO
from uuid import UUID

from fastapi import Body, Path, Query, Request
from pydantic import ValidationError
from pydantic_core import from_json
from starlette.responses import Response
from starlette.routing import BaseRoute

from app.dependencies import (
    Asker,
    Ingester,
    JsonRequest,
    JsonResponse,
    ReaderOrIngester,
    ServerState,
    keyed_router,
    media_type_of,
    read_json,
    while_connected,
)
from app.dialects.arthur.explanation_schemas import (
    NAMES,
    OFF,
    CostAnswer,
    Enrichment,
    EnrichmentChange,
    Enrichments,
    ExplanationAnswer,
    Listing,
    WhatIfAnswer,
    WhatIfBody,
    cost_answer,
    enrichment_answer,
    explanation_answer,
    what_if_answer,
)
from app.dialects.arthur.model_routes import MODELS, ModelId
from app.drawn import DRAWN, FORMS, Accept, picture_response
from app.errors import problems
from app.explainability import configure, disable, find_state
from app.media_types import JSON, preferred
from app.multipart import MULTIPART, Form
from app.on_demand import explain_inference, forecast_inference, forecast_what_if, what_if
from app.pictures import explanation_plot
from app.query import inference as stored_inference
from app.refusals import MalformedBody, NotFound
from app.scores import Explanation
from explainers.errors import InvalidRequest, MissingCapability

EXPLAINABILITY = "explainability"
READ_BYTES = 2**20
TAG = "Explanations of inferences (Arthur's wire)"
TRIED = {"model_pipeline_input": [{"attribute_name": "income", "attribute_value": 1500}]}
SWITCHED = {"enabled": True, "config": {"explanation_algo": "shap"}}

KnownId = Annotated[UUID, Path(description="Id of the model.", examples=["0197c1c6-5f0a-7cc0-8a86-5f5ce4c0a1b2"])]
InferenceId = Annotated[str, Path(description="Its partner_inference_id; may contain `/`.", examples=["u-1"])]
Name = Annotated[str, Path(description=f"One of {', '.join(NAMES)}.", examples=["explainability"], max_length=64)]
Algorithm = Annotated[
    str, Query(description="lime, shap; tree_shap for tables, integrated_gradients for texts.", examples=["shap"])
]
Samples = Annotated[int | None, Query(description="Instead of the configured number.", examples=[2000])]
Sort = Annotated[
    str | None,
    Query(description="`value`, `word`, `location` or `attribute_name`, after + or -.", examples=["-value"]),
]
Page = Annotated[int, Query(ge=1, description="Of the scores in each entry.", examples=[1])]
PageSize = Annotated[int, Query(ge=1, le=10_000, description="Scores of a page.", examples=[500])]
PlotKind = Annotated[
    str | None,
    Query(description="Of a picture: `waterfall` (not lime), `bars` or `tokens` (texts).", examples=["waterfall"]),
]
Output = Annotated[
    str | None, Query(description="Of a picture: which output it explains; the first.", examples=["churn_yes"])
]
Uncertainty = Annotated[bool, Query(description="Adds the standard error of each score.", examples=[True])]
DryRun = Annotated[bool, Query(description="Nothing is computed: the answer is `predictions`.", examples=[True])]


def explanation_routes() -> list[BaseRoute]:
    keyed = keyed_router(TAG)
    one = MODELS + "/{model_id}"
    by_id = MODELS + "/{model_id:uuid}"  # a name with slashes, as in GET /models/{name}, is none
    known, written = problems(401, 403, 404), problems(400, 401, 403, 404, 413, 415, 429)
    asked: Any = {"responses": DRAWN | problems(400, 401, 403, 404, 413, 415, 429, 503)}
    keyed.get(
        by_id + "/inferences/{inference:path}/explanation", summary="Explain an inference",
        response_model=ExplanationAnswer | CostAnswer, **asked,
    )(explanation)  # fmt: skip
    keyed.post(
        one + "/what_if", summary="Explain a row that never was", response_model=WhatIfAnswer | CostAnswer, **asked
    )(try_row)
    keyed.get(by_id + "/enrichments", summary="List enrichments", response_model=Enrichments, responses=known)(
        enrichments
    )
    keyed.get(by_id + "/enrichments/{name}", summary="Get an enrichment", response_model=Enrichment, responses=known)(
        enrichment
    )
    accepted: Any = {"status_code": 202, "response_model": str, "responses": written}
    keyed.patch(
        one + "/enrichments", summary="Change enrichments", openapi_extra=described({"explainability": SWITCHED}),
        **accepted,
    )(change_all)  # fmt: skip
    keyed.patch(
        one + "/enrichments/{name}", summary="Change an enrichment", openapi_extra=described(SWITCHED), **accepted
    )(change_one)
    keyed.delete(
        one + "/explainability", summary="Stop explaining a model", status_code=204, responses=known
    )(stop)  # fmt: skip
    return keyed.routes


def described(example: dict[str, Any]) -> dict[str, Any]:
    """Of a body that is JSON, or the same JSON as the part `config` of a multipart body with files."""
    words = "JSON; or multipart, with the same as the text part `config`, and files that are hashed and never opened."
    whole = {"schema": {"type": "object", "description": words}, "examples": {"enable": {"value": example}}}
    return {"requestBody": {"required": True, "content": {"application/json": whole}}}


async def explanation(
    request: Request,
    server: ServerState,
    caller: Asker,
    model_id: KnownId,
    inference: InferenceId,
    algorithm: Algorithm = "lime",
    n_samples: Samples = None,
    sort: Sort = None,
    page: Page = 1,
    page_size: PageSize = 500,
    uncertainty: Uncertainty = False,
    dry_run: DryRun = False,
    plot: PlotKind = None,
    predicted_attribute_name: Output = None,
    accept: Accept = JSON,
) -> Response:
    """The scores of an inference: those stored, or else computed now and stored, the same numbers either way.

    With `dry_run` nothing is computed: the answer says what it would take. With `Accept: image/svg+xml` the scores of
    one output as a picture: a waterfall where they add up to it, the tokens of a text, or bars.
    """
    if dry_run:
        count = forecast_inference(server.explainer, caller.tenant, str(model_id), inference, algorithm, n_samples)
        return JsonResponse(cost_answer(await while_connected(request, count)))
    work = explain_inference(
        server.explainer_for(caller), caller.tenant, str(model_id), inference, algorithm, n_samples
    )
    found = await while_connected(request, work)
    if preferred(accept, FORMS) == JSON:
        answer = explanation_answer(found, Listing(sort, page, page_size, uncertainty))
        return JsonResponse(answer, headers={"Vary": "Accept"})
    row = await stored_inference(server.explainer.database, caller.tenant, str(model_id), inference)
    return await picture_answer(found, inference, row, predicted_attribute_name, plot)


async def try_row(
    request: Request,
    server: ServerState,
    caller: Asker,
    model_id: ModelId,
    body: Annotated[WhatIfBody, Body(openapi_examples={"other income": {"value": TRIED}})],
    plot: PlotKind = None,
    predicted_attribute_name: Output = None,
    accept: Accept = JSON,
) -> Response:
    """The prediction for a row of inputs, and its scores. Nothing is stored.

    A model of texts is asked with `compare_to`, an inference that the prediction is compared with. With `dry_run`
    nothing is computed: the answer says what it would take. With `Accept: image/svg+xml` the scores as a picture.
    """
    asked: Any = {"algorithm": body.algorithm, "original": body.compare_to}
    if body.dry_run:
        count = forecast_what_if(server.explainer, caller.tenant, model_id, body.given(), **asked)
        return JsonResponse(cost_answer(await while_connected(request, count)))
    work = what_if(server.explainer_for(caller), caller.tenant, model_id, body.given(), **asked)
    found = await while_connected(request, work)
    if preferred(accept, FORMS) == JSON:
        return JsonResponse(what_if_answer(found), headers={"Vary": "Accept"})
    given = dict(body.given())
    return await picture_answer(found.explanation, "this row", given, predicted_attribute_name, plot)


async def picture_answer(
    explanation: Explanation, subject: str, given: Mapping[str, Any], output: str | None, kind: str | None
) -> Response:
    """One output's scores as an SVG file."""
    drawing = await asyncio.to_thread(explanation_plot, explanation, subject, given, output=output, kind=kind)
    return picture_response(drawing)


async def enrichments(server: ServerState, caller: ReaderOrIngester, model_id: KnownId) -> Response:
    """What is computed for the inferences of this model beside what was sent."""
    _, state = await find_state(server.explainer, caller.tenant, str(model_id))
    return JsonResponse(dict.fromkeys(NAMES, OFF) | {EXPLAINABILITY: enrichment_answer(state)})


async def enrichment(server: ServerState, caller: ReaderOrIngester, model_id: KnownId, name: Name) -> Response:
    """One enrichment: whether it is on, how far it is, and its configuration."""
    _, state = await find_state(server.explainer, caller.tenant, str(model_id))
    check_name(name)
    return JsonResponse(enrichment_answer(state) if name == EXPLAINABILITY else OFF)


async def change_all(request: Request, server: ServerState, caller: Ingester, model_id: ModelId) -> Response:
    """Switches enrichments on or off and configures them; what is not said stays.

    Explanations are prepared before this answers, and computed by a job afterwards, also of the inferences stored so
    far.
    """
    await find_state(server.explainer, caller.tenant, model_id)
    given, uploads = await said(request)
    changes = {check_name(name): change_of(each, f"/{name}") for name, each in given.items()}
    for name, change in changes.items():
        check_offered(name, change)
    if EXPLAINABILITY in changes:
        await apply(server, caller, model_id, changes[EXPLAINABILITY], uploads)
    return JsonResponse("ok", 202)


async def change_one(
    request: Request, server: ServerState, caller: Ingester, model_id: ModelId, name: Name
) -> Response:
    """Switches one enrichment on or off and configures it; what is not said stays."""
    await find_state(server.explainer, caller.tenant, model_id)
    check_name(name)
    given, uploads = await said(request)
    change = change_of(given, "")
    check_offered(name, change)
    if name == EXPLAINABILITY:
        await apply(server, caller, model_id, change, uploads)
    return JsonResponse("ok", 202)


async def stop(server: ServerState, caller: Ingester, model_id: ModelId) -> Response:
    """No inference is explained any more; what was computed can still be queried."""
    await disable(server.explainer, caller.tenant, model_id)
    return Response(status_code=204)


async def apply(
    server: ServerState, caller: Ingester, model_id: str, change: EnrichmentChange, uploads: Mapping[str, Any]
) -> None:
    await configure(
        server.explainer_for(caller),
        caller.tenant,
        model_id,
        enabled=change.enabled,
        config=change.config,
        uploads=uploads,
    )


async def said(request: Request) -> tuple[dict[str, Any], dict[str, Any]]:
    """The JSON of a body and the digests of the files that came with it."""
    if media_type_of(request) != MULTIPART:
        body = JsonRequest(request.scope, request.receive)
        await read_json(body)
        return an_object(await body.json()), {}
    async with Form(request) as form:
        files = form.files()
        config = form.text("config") or (files.pop("config").read().decode() if "config" in files else None)
        if config is None:
            raise InvalidRequest("needs the part config")
        uploads = {name: await asyncio.to_thread(digest_of, file) for name, file in files.items()}
    try:
        return an_object(from_json(config, allow_inf_nan=False)), uploads
    except ValueError as error:
        raise MalformedBody(f"the part config is not JSON: {error}") from None


def digest_of(file: BinaryIO) -> dict[str, Any]:
    """What is kept of an upload."""
    digest, size = hashlib.sha256(), 0
    while block := file.read(READ_BYTES):
        digest.update(block)
        size += len(block)
    return {"sha256": digest.hexdigest(), "bytes": size}


def an_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest("must be a JSON object")
    return value


def change_of(given: Any, pointer: str) -> EnrichmentChange:
    try:
        return EnrichmentChange.model_validate(an_object(given))
    except ValidationError as error:
        place = "/".join(str(part) for part in error.errors()[0]["loc"])
        raise InvalidRequest("is not of the right type", f"{pointer}/{place}") from None


def check_name(name: str) -> str:
    if name not in NAMES:
        raise NotFound(f"there is no such enrichment: {', '.join(NAMES)}")
    return name


def check_offered(name: str, change: EnrichmentChange) -> None:
    if name != EXPLAINABILITY and change.enabled:
        raise MissingCapability(f"{name} is not offered yet")
