"""What a response comes from, in the context that it was given."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body, Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from app.context import settle
from app.dependencies import Asker, JsonResponse, ServerState, while_connected
from app.dialects.seekr.context_schemas import (
    ContextAttributionRequest,
    ContextAttributionResponse,
    context_answer,
)
from app.dialects.seekr.router import flow_router
from app.errors import problems
from app.explain import Explained
from app.jobs import attribute_or_go_on

FACTS = {
    "context": "Anna lives in Oslo. Ben lives in Rome. Carl lives in Paris.",
    "query": "Anna lives in",
    "response": " Oslo.",
}

ContextBody = Annotated[
    ContextAttributionRequest,
    Body(
        openapi_examples={
            "sentences": {"summary": "Which sentence does each sentence of the response come from?", "value": FACTS},
            "highlight": {
                "summary": "Where does this word come from? With what the passes were like",
                "value": {**FACTS, "model": "demo-lm", "highlight": "Oslo", "top_k": 1, "return_diagnostics": True},
            },
        }
    ),
]
EVERY = (400, 401, 403, 404, 409, 413, 415, 429)


def context_routes() -> list[BaseRoute]:
    flow = flow_router()
    flow.post(
        "/v1/explainability/context-attributor",
        summary="Attribute a response to its context",
        responses=problems(*EVERY),
        response_model=ContextAttributionResponse,
    )(attribute)
    return flow.routes


async def attribute(request: Request, server: ServerState, caller: Asker, body: ContextBody) -> Response:
    """From which parts of the context does each sentence of the response come?

    The response is read behind many random halves of the context, and a sparse line is fitted to what each piece adds
    to the logits of its tokens (Cohen-Wang et al., ContextCite, 2024). The prompt is the context, a line break and the
    query: under the model's chat template as one message of the user, and as it stands for a model without.

    The same request has the same answer, which is stored. What is not ready within the server's deadline goes on as the
    job that the 409 names: repeat the request later.
    """

    async def work() -> Explained:
        asked = await settle(server.explainer, caller.tenant, body.to_domain(), server.settings.context_model)
        return await attribute_or_go_on(server.explainer_for(caller), server.jobs, caller.tenant, asked)

    return JsonResponse(context_answer(await while_connected(request, work()), body))
