"""Queries over stored inferences."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any
from uuid import UUID

from fastapi import Body, Path, Query
from pydantic import BaseModel, Field
from starlette.responses import Response
from starlette.routing import BaseRoute

from app.dependencies import JsonResponse, Reader, ServerState, keyed_router
from app.dialects.arthur.model_routes import MODELS, ModelId
from app.drawn import DRAWN, FORMS, Accept, picture_response
from app.errors import problems
from app.media_types import JSON, preferred
from app.pictures import query_plot
from app.query import drift, drift_table, inference, query
from explainers.errors import InvalidRequest

DAY = {"property": "inference_timestamp", "time_interval": "day"}
DAYS = {
    "model_id": "churn-7",
    "select": [
        {"function": "roundTimestamp", "alias": "day", "parameters": DAY},
        {"function": "count"},
        {"function": "avg", "alias": "income", "parameters": {"property": "income"}},
    ],
    "filter": [{"property": "churn_yes", "comparator": "gte", "value": 0.5}],
    "group_by": [{"alias": "day"}],
    "order_by": [{"alias": "day", "direction": "asc"}],
}
ROWS = {"select": [{"property": "*"}], "order_by": [{"property": "churn_yes", "direction": "desc"}], "limit": 10}
WORDS = "A query: `select`, `from`, `subquery`, `filter`, `group_by`, `order_by`, `limit`, `offset`."

SIDES = {
    "base": {"source": "reference"},
    "target": {
        "source": "inference",
        "filter": [{"property": "inference_timestamp", "comparator": "gte", "value": "2026-03-01T00:00:00Z"}],
    },
}
DRIFT = {"properties": ["income", "tenure"], "metric": "PSI", "num_bins": 20, "rollup": "day", **SIDES}
TABLE = {"property": "income", "num_bins": 10, **SIDES}
DRIFT_WORDS = (
    "`properties` (1 to 100), `predicted_classes` or `ground_truth_classes` (a list, or `*`); `metric`: `PSI`, "
    "`KLDivergence`, `JSDivergence`, `HellingerDistance`, `HypothesisTest` (-log10 of the p-value) or `Thresholds` (no "
    "target); `base` and `target`: `source` (`inference`, `reference`, `ground_truth`) and `filter`; `num_bins` (20), "
    "`group_by`, `rollup` (`minute` to `year`, or `batch_id`)."
)
TABLE_WORDS = "As of a drift query, with one `property` and without `metric`."

QueryBody = Annotated[
    dict[str, Any],
    Body(description=WORDS, openapi_examples={"by day": {"value": DAYS}}),
]
OneBody = Annotated[dict[str, Any], Body(description=WORDS, openapi_examples={"rows": {"value": ROWS}})]
DriftBody = Annotated[dict[str, Any], Body(description=DRIFT_WORDS, openapi_examples={"by day": {"value": DRIFT}})]
TableBody = Annotated[dict[str, Any], Body(description=TABLE_WORDS, openapi_examples={"income": {"value": TABLE}})]
Named = Annotated[
    str | None, Query(description="Id or partner_model_id; without it the only model in use.", examples=["churn-7"])
]
ModelUuid = Annotated[UUID, Path(description="Id of the model.", examples=["0197c1c6-5f0a-7cc0-8a86-5f5ce4c0a1b2"])]
PartnerId = Annotated[str, Path(description="Your id of the inference.", examples=["u-1"])]
Page = Annotated[int | None, Query(ge=1, description="From 1; without it all rows.", examples=[1])]
PageSize = Annotated[int | None, Query(ge=1, le=100_000, description="Rows of a page; 100.", examples=[100])]


class QueryResponse(BaseModel):
    query_result: list[dict[str, Any]] = Field(
        description="Rows; their members are those of `select`, in order.", examples=[[{"count": 12}]]
    )


def query_routes() -> list[BaseRoute]:
    keyed, counted = keyed_router("Query (Arthur's wire)"), keyed_router("Query (Arthur's wire)", counted=True)
    refused: Any = {"response_model": QueryResponse, "responses": problems(400, 401, 403, 404, 413, 415, 429)}
    drawn = refused | {"responses": DRAWN | refused["responses"]}
    counted.post("/query", summary="Query stored inferences", **drawn)(ask)
    of_model = MODELS + "/{model_id}/inferences/query"
    counted.post(of_model, summary="Query a model's inferences", **drawn)(ask_model)
    counted.post(of_model + "/data_drift", summary="Drift between two sets of rows", **refused)(ask_drift)
    table = of_model + "/data_drift_psi_bucket_calculation_table"
    counted.post(table, summary="The bins of a stability index", **refused)(ask_drift_table)
    keyed.get(
        MODELS + "/{model_id:uuid}/inferences/query/{partner_inference_id:path}",
        summary="Get an inference", response_model=QueryResponse, responses=problems(400, 401, 403, 404),
    )(one_inference)  # fmt: skip
    return [*counted.routes, *keyed.routes]


async def ask(
    server: ServerState,
    caller: Reader,
    body: QueryBody,
    model_id: Named = None,
    page: Page = None,
    page_size: PageSize = None,
    accept: Accept = JSON,
) -> Response:
    """Properties, functions and aggregates of the inferences of a model, which `model_id` names in the body or the URL.

    A mistake is answered with its place in the query and the nearest valid name. With `Accept: image/svg+xml` rows of
    scores are answered as a picture: a beeswarm (`explainer_attribute` with `explainer_score`, and the inputs' own
    values for its colours), bars (`avgAbs` or `avg` of `explainer_score`, or `regionalFeatureImportances`; those of
    `avg`, whose means have a sign, go to both sides of zero), lines over time (either mean, with `roundTimestamp`), or
    the heat map of a text (`nlp_explanation`).
    """
    named, rest = body.get("model_id"), {name: value for name, value in body.items() if name != "model_id"}
    if named is not None and not isinstance(named, str):
        raise InvalidRequest("must be a string", "/model_id")
    if named is not None and model_id is not None and named != model_id:
        raise InvalidRequest("is another one in the URL", "/model_id")
    database = server.explainer.database
    rows = await query(database, caller.tenant, named or model_id, rest, page=page, page_size=page_size)
    return await rows_answer(rest, rows, accept)


async def one_inference(
    server: ServerState, caller: Reader, model_id: ModelUuid, partner_inference_id: PartnerId
) -> Response:
    """An inference as `select *` gives it: all its attributes, ids and times."""
    row = await inference(server.explainer.database, caller.tenant, str(model_id), partner_inference_id)
    return JsonResponse({"query_result": [row]})


async def ask_model(
    server: ServerState,
    caller: Reader,
    model_id: ModelId,
    body: OneBody,
    page: Page = None,
    page_size: PageSize = None,
    accept: Accept = JSON,
) -> Response:
    """Properties, functions and aggregates of the inferences of this model; also as a picture, as of `POST /query`."""
    rows = await query(server.explainer.database, caller.tenant, model_id, body, page=page, page_size=page_size)
    return await rows_answer(body, rows, accept)


async def rows_answer(body: dict[str, Any], rows: list[dict[str, Any]], accept: str) -> Response:
    if preferred(accept, FORMS) == JSON:
        return JsonResponse({"query_result": rows}, headers={"Vary": "Accept"})
    return picture_response(await asyncio.to_thread(query_plot, body, rows))


async def ask_drift(server: ServerState, caller: Reader, model_id: ModelId, body: DriftBody) -> Response:
    """How far the values of the target are from those of the base: a figure for each property and class.

    Numbers are counted in bins between quantiles of the base, categories as they are; nulls are in no bin. A row for
    each group and time of the target; null where a side has no values. `Thresholds` are what chance alone exceeds in
    one of twenty cases: the 95 % quantile between random halves of the base.
    """
    return JsonResponse({"query_result": await drift(server.explainer.database, caller.tenant, model_id, body)})


async def ask_drift_table(server: ServerState, caller: Reader, model_id: ModelId, body: TableBody) -> Response:
    """The bins of both sides, their counts and shares, and what each adds to the stability index.

    The outermost bins are open; they are shown to the smallest and largest value of the base.
    """
    return JsonResponse({"query_result": await drift_table(server.explainer.database, caller.tenant, model_id, body)})
