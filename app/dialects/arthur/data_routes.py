"""Rows of models: inferences, ground truth, reference sets; as JSON records or as files."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

from fastapi import Body, Path, Request
from pydantic_core import from_json
from starlette.responses import Response
from starlette.routing import BaseRoute

from app.dependencies import Ingester, JsonResponse, Server, ServerState, keyed_router, must_be_json
from app.dialects.arthur.data_schemas import (
    Accepted,
    BatchEnd,
    Counted,
    CountedFile,
    ReferenceEnd,
    counted,
    counted_file,
    inference_example,
    truth_example,
)
from app.dialects.arthur.model_routes import MODELS, TAG, ModelId
from app.errors import problems
from app.ingest import Result, add_inferences, close_reference, set_truths, without_nan
from app.monitored import find_in_use
from app.multipart import MULTIPART, Form
from app.refusals import MalformedBody
from app.uploads import Report, add_inference_file, add_reference_file, set_truth_file
from explainers.errors import InvalidRequest
from storage.database import Database

MOST_RECORDS = 100_000
Take = Callable[[Database, str, str, Sequence[Any]], Awaitable[list[Result]]]
SUCCESS = {"message": "success"}
BatchId = Annotated[str, Path(description="The batch, as its rows name it.", examples=["2026-03-01"])]


def body_of(kind: str, schema: dict[str, Any], example: Any) -> dict[str, Any]:
    """The description of a body that its route reads itself."""
    content = {"schema": schema, "examples": {"example": {"value": example}}}
    return {"requestBody": {"required": True, "content": {kind: content}}}


RECORDS = {
    "type": "array",
    "items": {"description": "A record: an object. What is none is told as a bad one, in its place."},
    "maxItems": MOST_RECORDS,
}
FILE = {"type": "string", "format": "binary", "description": "Parquet, or a JSON array of rows."}
REFERENCE_FILE = {"type": "object", "properties": {"reference_data": FILE}, "required": ["reference_data"]}
INFERENCE_FILE = {
    "type": "object",
    "properties": {
        "inference_data": FILE,
        "ground_truth_data": FILE,
        "batch_id": {"type": "string", "description": "The batch of all rows; empty: none."},
    },
}


def data_routes() -> list[BaseRoute]:
    keyed = keyed_router(TAG, counted=True)
    one = MODELS + "/{model_id}"
    taken = problems(400, 401, 403, 404, 413, 415, 429)
    keyed.post(
        f"{one}/inferences", summary="Send inferences", status_code=207, response_model=Counted, responses=taken,
        openapi_extra=body_of("application/json", RECORDS, inference_example),
    )(send)  # fmt: skip
    for path in ("inferences", "ground_truth"):
        keyed.patch(
            f"{one}/{path}", summary="Send ground truth", status_code=207, response_model=Counted, responses=taken,
            openapi_extra=body_of("application/json", RECORDS, truth_example),
            include_in_schema=path == "inferences",
        )(send_truth)  # fmt: skip
    keyed.post(
        f"{one}/inferences/file", summary="Send a file of rows", status_code=207, response_model=CountedFile,
        responses=taken, openapi_extra=body_of(MULTIPART, INFERENCE_FILE, {"inference_data": "@rows.parquet"}),
    )(send_file)  # fmt: skip
    keyed.post(
        f"{one}/reference_data", summary="Send a file of the reference set", status_code=207,
        response_model=CountedFile, responses=taken | problems(409),
        openapi_extra=body_of(MULTIPART, REFERENCE_FILE, {"reference_data": "@rows.parquet"}),
    )(send_reference)  # fmt: skip
    ended: Any = {"response_model": Accepted, "responses": taken}
    keyed.patch(f"{one}/reference_data", summary="End the reference set", **ended)(end_reference)
    keyed.patch(f"{one}/batches/{{batch_id:path}}", summary="End a batch", **ended)(end_batch)
    return keyed.routes


async def send(request: Request, server: ServerState, caller: Ingester, model_id: ModelId) -> Response:
    """Inferences with their inputs and outputs, and with their ground truth where it is known already.

    Every record has its result, in order; a bad one does not stop the others. They can be queried when this answers.
    """
    return await _take(request, server, caller.tenant, model_id, add_inferences, "inferences")


async def send_truth(request: Request, server: ServerState, caller: Ingester, model_id: ModelId) -> Response:
    """Ground truth of inferences that were sent before, in place of any they had."""
    return await _take(request, server, caller.tenant, model_id, set_truths, "truths")


async def _take(request: Request, server: Server, tenant: str, model_id: str, take: Take, kind: str) -> Response:
    results = await take(server.explainer.database, tenant, model_id, await records_of(request))
    bad = sum(result.status >= 300 for result in results)
    server.explainer.meters.ingested(kind, len(results) - bad, bad)
    return JsonResponse(counted(results), status_code=207)


async def send_file(request: Request, server: ServerState, caller: Ingester, model_id: ModelId) -> Response:
    """Rows as one file, in the part `inference_data` or `ground_truth_data`: Parquet or JSON, flat or nested.

    All good rows are stored, or none when the file cannot be read to its end.
    """
    database = server.explainer.database
    async with Form(request) as form:
        batch = form.text("batch_id")
        inferences, truths = form.file("inference_data"), form.file("ground_truth_data")
        if (inferences is None) == (truths is None):
            raise InvalidRequest("needs one of the parts inference_data and ground_truth_data")
        if inferences is not None:
            report = await add_inference_file(database, caller.tenant, model_id, inferences, batch)
        elif truths is not None:
            report = await set_truth_file(database, caller.tenant, model_id, truths)
    kind = "truths" if inferences is None else "inferences"
    server.explainer.meters.ingested(kind, report.success, report.failure)
    return JsonResponse(counted_file(report), status_code=207)


async def send_reference(request: Request, server: ServerState, caller: Ingester, model_id: ModelId) -> Response:
    """Rows that inferences are compared with and explained against; several files are put one behind the other."""
    async with Form(request) as form:
        file = form.file("reference_data")
        if file is None:
            raise InvalidRequest("needs the part reference_data")
        report: Report = await add_reference_file(server.explainer.database, caller.tenant, model_id, file)
    server.explainer.meters.ingested("reference", report.success, report.failure)
    return JsonResponse(counted_file(report), status_code=207)


async def end_reference(
    server: ServerState,
    caller: Ingester,
    model_id: ModelId,
    body: Annotated[
        ReferenceEnd, Body(openapi_examples={"end": {"value": {"status": "uploaded", "total_record_count": 30}}})
    ],
) -> Response:
    """No more rows will come, and there are so many of them."""
    await close_reference(server.explainer, caller.tenant, model_id, body.total_record_count)
    return JsonResponse(SUCCESS)


async def end_batch(
    server: ServerState,
    caller: Ingester,
    model_id: ModelId,
    batch_id: BatchId,
    body: Annotated[
        BatchEnd, Body(openapi_examples={"end": {"value": {"status": "uploaded", "total_record_count": 30}}})
    ],
) -> Response:
    """Nothing is left to be done: the rows of a batch can be queried as soon as they are stored, and more may come."""
    await find_in_use(server.explainer.database, caller.tenant, model_id)
    return JsonResponse(SUCCESS)


async def records_of(request: Request) -> list[Any]:
    """The records of a body; NaN and Infinity, which the vendor's client writes, are null."""
    must_be_json(request)
    try:
        records = without_nan(from_json(await request.body(), allow_inf_nan=True, cache_strings="keys"))
    except ValueError as error:
        raise MalformedBody(f"the body is not JSON: {error}") from None
    if not isinstance(records, list) or len(records) > MOST_RECORDS:
        raise InvalidRequest(f"the body must be an array of at most {MOST_RECORDS} records")
    return records
