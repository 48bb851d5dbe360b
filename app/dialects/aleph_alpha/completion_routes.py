"""What the model would say, and how likely it is to say what was expected."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Body, Query, Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from app.complete import complete_prompt, stream_completion
from app.dependencies import Asker, JsonResponse, ServerState, keyed_router, while_connected
from app.dialects.aleph_alpha.completion_answers import (
    CompleteResponse,
    EvaluateResponse,
    complete_answer,
    complete_events,
    evaluate_answer,
)
from app.dialects.aleph_alpha.completion_schemas import CompleteRequest, EvaluateRequest
from app.errors import problems
from app.evaluate import evaluate_completion
from app.streams import event_stream, streamed_as

SENTENCES = "Oslo is in Norway. Rome is in Italy. Oslo is in"
SUPPRESSED = {"type": "text", "data": SENTENCES, "controls": [{"start": 0, "length": 18, "factor": 0.1}]}

EvaluateBody = Annotated[
    EvaluateRequest,
    Body(
        openapi_examples={
            "plain": {
                "summary": "How likely is the answer?",
                "value": {"model": "demo-lm", "prompt": SENTENCES, "completion_expected": " Norway"},
            },
            "without the evidence": {
                "summary": "How likely is it still when the first sentence is suppressed?",
                "value": {"model": "demo-lm", "prompt": [SUPPRESSED], "completion_expected": " Norway"},
            },
        }
    ),
]
CompleteBody = Annotated[
    CompleteRequest,
    Body(
        openapi_examples={
            "greedy": {
                "summary": "Go on with the most probable tokens",
                "value": {"model": "demo-lm", "prompt": SENTENCES, "maximum_tokens": 8, "stop_sequences": ["."]},
            },
            "suppressed": {
                "summary": "What does it say when the first sentence is suppressed? With log-probabilities",
                "value": {
                    "model": "demo-lm",
                    "prompt": [SUPPRESSED],
                    "maximum_tokens": 1,
                    "log_probs": 3,
                    "tokens": True,
                },
            },
            "sampled": {
                "summary": "Three different ones, in events",
                "value": {
                    "model": "demo-lm",
                    "prompt": SENTENCES,
                    "maximum_tokens": 8,
                    "temperature": 0.8,
                    "top_p": 0.9,
                    "n": 3,
                    "stream": True,
                },
            },
        }
    ),
]
Nice = Annotated[bool, Query(description="Queue behind all requests that are not nice.", examples=[True])]

EVERY = (400, 401, 403, 404, 409, 413, 415, 429, 503)

EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The completions; with `stream`, one line `data: {...}` and an empty line per event: "
        "`stream_chunk`s as text becomes certain, a `stream_summary` at the end of each completion, and last a "
        "`completion_summary`.",
        "content": streamed_as('{"type":"stream_chunk","index":0,"completion":" Norway"}'),
    }
}


def completion_routes(prefix: str) -> list[BaseRoute]:
    keyed = keyed_router("Complete (Aleph Alpha's wire)", prefix)
    keyed.post(
        "/evaluate",
        summary="Evaluate an expected completion",
        responses=problems(*EVERY),
        response_model=EvaluateResponse,
    )(evaluate)
    keyed.post(
        "/complete",
        summary="Complete a prompt",
        responses=EVENTS | problems(*EVERY),
        response_model=CompleteResponse,
    )(complete)
    return keyed.routes


async def evaluate(
    request: Request, server: ServerState, caller: Asker, body: EvaluateBody, nice: Nice = False
) -> Response:
    """How likely is the model to say what was expected, while the prompt's controls act?

    The score that `/explain` gives a piece of the prompt is the `log_perplexity` with that piece under control, less
    the one without.
    """
    asked = body.to_domain()
    work = evaluate_completion(server.explainer_for(caller), caller.tenant, asked, nice=nice)
    return JsonResponse(evaluate_answer(await while_connected(request, work)))


async def complete(
    request: Request, server: ServerState, caller: Asker, body: CompleteBody, nice: Nice = False
) -> Response:
    """What does the model say after the prompt, while the prompt's controls act?

    Tokens are chosen in this order: penalties, logit bias, temperature, `top_k`, `top_p`; temperature 0 takes the most
    probable one, unless `top_k` is above 1 or `top_p` above 0: then it counts as 1. The same request has the same
    answer, sampled ones included. A completion that is not ready within the server's deadline is stopped with a 409,
    unless it is streamed.
    """
    asked = body.to_domain()
    if not body.stream:
        work = complete_prompt(server.explainer_for(caller), caller.tenant, asked, nice=nice)
        return JsonResponse(complete_answer(await while_connected(request, work), body))
    events = stream_completion(server.explainer_for(caller), caller.tenant, asked, nice=nice)
    return await event_stream(request, complete_events(events, body), lambda problem: {**problem, "type": "error"})
