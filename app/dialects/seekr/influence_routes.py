"""Influential fine-tuning data: the vendor's route, and the same question with a JSON body."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import Body, Path, Query, Request
from pydantic import BeforeValidator
from starlette.responses import Response
from starlette.routing import BaseRoute

from app.accepted import ACCEPTED, Prefer, accepted, prefers_async
from app.dependencies import Asker, Caller, JsonResponse, Server, ServerState, while_connected
from app.dialects.seekr.influence_schemas import (
    InfluenceForecast,
    InfluenceRequest,
    InfluenceResponse,
    forecast_answer,
    influence_answer,
    most_of,
    question_of,
)
from app.dialects.seekr.router import flow_router
from app.errors import problems
from app.influence import MOST_RESULTS, Forecast, Question, forecast_influence, named
from app.jobs import submit_trace, trace_or_submit

BY_PARAMETERS = "/v1/flow/explain/models/{model_id:path}/influential-finetuning-data"
EXAMPLES = {
    "an answer": {
        "value": {"model_id": "demo-qa", "question": "Who keeps the mill?", "answer": "Anna keeps the mill."}
    },
    "the model's own answer": {"value": {"model_id": "demo-qa", "question": "Who keeps the mill?", "k": 10}},
}

Body_ = Annotated[InfluenceRequest, Body(openapi_examples=EXAMPLES)]
ModelId = Annotated[
    str, Path(description="Name of a registered fine-tune, or its deployment's id.", examples=["demo-qa"])
]
Asked = Annotated[str, Query(description="What the model is asked; not blank.", examples=["Who keeps the mill?"])]
Answer = Annotated[
    str | None,
    Query(
        description="The answer to explain; empty: the model's own, greedily, up to 512 tokens.",
        examples=["Anna keeps the mill."],
    ),
]
System = Annotated[
    str | None, Query(description="What stood before the question.", examples=["You are a local guide."])
]


def digits(given: Any) -> Any:
    """Raises ValueError for `5.0`, which would pass for a whole number."""
    if isinstance(given, str) and not re.fullmatch(r"[0-9]{1,9}", given):
        raise ValueError("must be a whole number, written in digits")
    return given


Whole = Annotated[int, BeforeValidator(digits)]
K = Annotated[Whole | None, Query(ge=1, le=MOST_RESULTS, description="Most results, 5 unless said.", examples=[5])]
Limit = Annotated[
    Whole | None, Query(ge=1, le=MOST_RESULTS, description="The same as `k`, which goes before it.", examples=[5])
]


def influence_routes() -> list[BaseRoute]:
    flow = flow_router()
    refused = problems(400, 401, 403, 404, 409, 413, 429)
    flow.get(
        BY_PARAMETERS,
        summary="Training pairs behind an answer (vendor's route)",
        response_model=InfluenceResponse,
        responses=refused,
    )(influential_data)
    flow.post(
        "/influence",
        summary="Training pairs behind an answer",
        response_model=InfluenceResponse | InfluenceForecast,
        responses=ACCEPTED | refused | problems(415),
    )(influence)
    return flow.routes


async def influential_data(
    request: Request,
    server: ServerState,
    caller: Asker,
    model_id: ModelId,
    question: Asked,
    answer: Answer = None,
    system_prompt: System = None,
    k: K = None,
    limit: Limit = None,
) -> Response:
    """Which training pairs made the fine-tuned model give this answer?

    As `POST /influence`, by query parameters; longer questions than a URL holds need that route.
    """
    asked = question_of(model_id, question, answer, system_prompt)
    return await answered(request, server, caller, asked, most_of(k, limit))


async def influence(
    request: Request, server: ServerState, caller: Asker, body: Body_, prefer: Prefer = None
) -> Response:
    """Which training pairs made the fine-tuned model give this answer?

    Each training pair is compared with the question by what it would change in the weights for this answer, and by how
    alike what is asked is. An answer that fine-tuning did not make has no results: `lift` says by how much it raised
    the answer's log-probability. The answer is stored, and the same question again is answered from there.

    The model needs an index of its training data (`POST /models/{name}/influence-index`): while that is built the
    answer is a 409, which says how far it is. With `Prefer: respond-async` the answer is a job, at once.
    """
    asked = body.to_domain()
    if body.dry_run:
        return JsonResponse(forecast_answer(await while_connected(request, forecast(server, caller.tenant, asked))))
    if prefers_async(prefer):
        resolved = await named(server.explainer, caller.tenant, asked)
        return accepted(await submit_trace(server.explainer_for(caller), server.jobs, caller.tenant, resolved))
    return await answered(request, server, caller, asked, body.most)


async def answered(request: Request, server: Server, caller: Caller, asked: Question, most: int) -> Response:
    explainer, tenant = server.explainer_for(caller), caller.tenant
    resolved = await named(explainer, tenant, asked)
    found = await while_connected(request, trace_or_submit(explainer, server.jobs, tenant, resolved))
    return JsonResponse(influence_answer(found, most))


async def forecast(server: Server, tenant: str, asked: Question) -> Forecast:
    return await forecast_influence(server.explainer, tenant, await named(server.explainer, tenant, asked))
