"""Every route of the dialect, at the root and below /v1."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Request
from fastapi.responses import PlainTextResponse
from starlette.responses import Response
from starlette.routing import BaseRoute

from app.accepted import ACCEPTED, Prefer, accepted, prefers_async
from app.dependencies import Asker, JsonResponse, ReaderOrAsker, ServerState, keyed_router, while_connected
from app.dialects.aleph_alpha.answers import (
    AvailableModel,
    DetokenizeResponse,
    DryRunResponse,
    ExplainResponse,
    TokenizeResponse,
    dry_run_answer,
    explain_answer,
)
from app.dialects.aleph_alpha.chat_routes import chat_routes
from app.dialects.aleph_alpha.completion_routes import completion_routes
from app.dialects.aleph_alpha.explain_schemas import ExplainRequest
from app.dialects.aleph_alpha.schemas import DetokenizeRequest, NotServedYet, TokenizeRequest
from app.errors import problems
from app.explain import forecast_completion
from app.jobs import Order, explain_or_submit, submit
from app.models import list_loaded, load_model
from explainers.errors import InvalidRequest, MissingCapability
from explainers.language_model import LanguageModel

DIALECT_LEVEL = "1.19.0"
"""The level of the vendor's API that is served, not the release of this server."""

NOT_SERVED_YET = {
    "/embed": "Embedding",
    "/embeddings": "Embedding",
    "/semantic_embed": "Semantic embedding",
    "/batch_semantic_embed": "Semantic embedding of batches",
    "/instructable_embed": "Instructable embedding",
    "/rerank": "Reranking",
    "/translate": "Translation",
    "/steering_concepts": "Steering",
}
"""Routes of the vendor that answer 400 instead of 404, which would look like a wrong host."""

SENTENCES = "Oslo is in Norway. Rome is in Italy. Oslo is in"
SUPPRESSED = {"start": 0, "length": 18, "factor": 0.1}

ExplainBody = Annotated[
    ExplainRequest,
    Body(
        openapi_examples={
            "which sentence": {
                "summary": "Which sentence made the model say it?",
                "value": {
                    "model": "demo-lm",
                    "prompt": [{"type": "text", "data": SENTENCES}],
                    "target": " Norway",
                    "prompt_granularity": {"type": "sentence"},
                },
            },
            "token by token": {
                "summary": "Each token of the target, with one sentence suppressed throughout",
                "value": {
                    "model": "demo-lm",
                    "prompt": [{"type": "text", "data": SENTENCES, "controls": [SUPPRESSED]}],
                    "target": " Norway",
                    "prompt_granularity": {"type": "word"},
                    "target_granularity": "token",
                    "normalize": True,
                },
            },
            "quick and tested": {
                "summary": "Approximately, in one pass each way, and how well the scores stand a test",
                "value": {
                    "model": "demo-lm",
                    "prompt": SENTENCES,
                    "target": " Norway",
                    "method": "gradient",
                    "evaluate": True,
                },
            },
            "its own words": {
                "summary": "Let the model go on, then ask where that comes from",
                "value": {"model": "demo-lm", "prompt": SENTENCES, "generate": {"maximum_tokens": 4}},
            },
            "dry run": {
                "summary": "What would it take?",
                "value": {"model": "demo-lm", "prompt": SENTENCES, "target": " Norway", "dry_run": True},
            },
        }
    ),
]
TokenizeBody = Annotated[
    TokenizeRequest,
    Body(
        openapi_examples={
            "both": {"value": {"model": "demo-lm", "prompt": "Oslo is in Norway.", "tokens": True, "token_ids": True}}
        }
    ),
]
DetokenizeBody = Annotated[
    DetokenizeRequest, Body(openapi_examples={"two tokens": {"value": {"model": "demo-lm", "token_ids": [70, 71]}}})
]
Model = Annotated[str, Path(description="Name of a registered model; may contain `/`.", examples=["demo-lm"])]
Nice = Annotated[bool, Query(description="Queue behind all requests that are not nice.", examples=[True])]

EVERY = (400, 401, 403, 404, 413, 415)


def aleph_alpha_routes() -> list[BaseRoute]:
    return [
        route
        for prefix in ("", "/v1")
        for routes in (explain_routes, completion_routes, chat_routes, version_routes)
        for route in routes(prefix)
    ]


def explain_routes(prefix: str) -> list[BaseRoute]:
    keyed = keyed_router("Explain (Aleph Alpha's wire)", prefix)
    keyed.post(
        "/explain",
        summary="Explain a completion",
        responses=ACCEPTED | problems(*EVERY, 409, 429, 503),
        response_model=ExplainResponse | DryRunResponse,
    )(explain)
    keyed.post("/tokenize", summary="Tokenize a text", responses=problems(*EVERY), response_model=TokenizeResponse)(
        tokenize
    )
    keyed.post(
        "/detokenize", summary="Text of token ids", responses=problems(*EVERY), response_model=DetokenizeResponse
    )(detokenize)
    keyed.get(
        "/models_available",
        summary="List models that can be asked",
        responses=problems(401, 403),
        response_model=list[AvailableModel],
    )(models_available)
    keyed.get(
        "/models/{model:path}/tokenizer", summary="Get a model's tokenizer", responses=problems(400, 401, 403, 404)
    )(tokenizer)
    for path, what in NOT_SERVED_YET.items():
        keyed.post(path, include_in_schema=False)(refusal(what))
    return keyed.routes


def version_routes(prefix: str) -> list[BaseRoute]:
    opened = APIRouter(prefix=prefix, include_in_schema=not prefix, tags=["Health"])
    opened.get("/version", summary="Level of the vendor's API", response_class=PlainTextResponse)(version)
    return opened.routes


async def explain(
    request: Request, server: ServerState, caller: Asker, body: ExplainBody, nice: Nice = False, prefer: Prefer = None
) -> Response:
    """Which parts of the prompt made the model say the target?

    Each piece of the prompt is suppressed in turn; its score is the loss of the target's log-probability, in nats.
    Positive: the piece supports the target. The answer is stored, and the same request again is answered from there.

    With `Prefer: respond-async` the answer is a job, at once. Without it, work that is not ready within the server's
    deadline goes on as the job that the 409 names.
    """
    order, explainer = Order(body.to_domain(), body.fresh), server.explainer_for(caller)
    if body.dry_run:
        found = forecast_completion(server.explainer, caller.tenant, order.question)
        return JsonResponse(dry_run_answer(await while_connected(request, found)))
    if prefers_async(prefer):
        return accepted(await submit(explainer, server.jobs, caller.tenant, order))
    answer = await while_connected(request, explain_or_submit(explainer, server.jobs, caller.tenant, order, nice=nice))
    return JsonResponse(explain_answer(answer, order.question.prompt))


async def version() -> str:
    """The level of Aleph Alpha's API that is served."""
    return DIALECT_LEVEL


async def models_available(server: ServerState, caller: ReaderOrAsker) -> Response:
    """The models that can be asked."""
    loaded = await list_loaded(server.explainer.database, server.explainer.runtime, caller.tenant)
    return JsonResponse([available(entry.registration.name, entry.description, model) for entry, model in loaded])


def available(name: str, description: str, model: LanguageModel) -> dict[str, Any]:
    return {
        "name": name,
        "description": description,
        "max_context_size": model.context_length,
        "hostings": [],
        "image_support": model.reads_images,
        "qa_support": False,
        "summarization_support": False,
        "embedding_types": [],
        "maximum_completion_tokens": model.context_length,
        "aligned": False,
    }


async def tokenizer(server: ServerState, caller: ReaderOrAsker, model: Model) -> Response:
    """The model's tokenizer as the text of its `tokenizer.json`."""
    loaded = await load_model(server.explainer.database, server.explainer.runtime, caller.tenant, model)
    text = await asyncio.to_thread(loaded.tokenizer.to_str)
    return Response(text, media_type="application/json")


async def tokenize(server: ServerState, caller: ReaderOrAsker, body: TokenizeBody) -> Response:
    """The tokens of a text, special tokens included if the tokenizer adds them."""
    loaded = await load_model(server.explainer.database, server.explainer.runtime, caller.tenant, body.model)
    encoding = await asyncio.to_thread(loaded.tokenize, body.prompt, "/prompt", special_tokens=True)
    answer: dict[str, Any] = {"tokens": encoding.tokens} if body.tokens else {}
    return JsonResponse(answer | ({"token_ids": encoding.ids} if body.token_ids else {}))


async def detokenize(server: ServerState, caller: ReaderOrAsker, body: DetokenizeBody) -> Response:
    """The text of token ids."""
    loaded = await load_model(server.explainer.database, server.explainer.runtime, caller.tenant, body.model)
    size = loaded.tokenizer.get_vocab_size(with_added_tokens=True)
    if any(loaded.tokenizer.id_to_token(token) is None for token in set(body.token_ids)):
        raise InvalidRequest(f"must be ids of the vocabulary, which has {size} tokens", "/token_ids")
    return JsonResponse({"result": await asyncio.to_thread(loaded.tokenizer.decode, body.token_ids)})


def refusal(what: str) -> Any:
    """A route that says what is missing."""

    async def refuse(_: Asker, __: NotServedYet) -> Response:
        raise MissingCapability(f"{what} is not served yet; POST /explain is")

    return refuse
