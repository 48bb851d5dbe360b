"""What the model answers in a chat."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Body, Query, Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from app.chat import as_completion
from app.complete import complete_prompt, stream_completion
from app.dependencies import Asker, JsonResponse, ServerState, keyed_router, while_connected
from app.dialects.aleph_alpha.chat_schemas import ChatRequest, ChatResponse, chat_answer, chat_events
from app.errors import problems
from app.streams import event_stream, streamed_as

MESSAGES = [{"role": "user", "content": "Oslo is in Norway. Where is Oslo?"}]

ChatBody = Annotated[
    ChatRequest,
    Body(
        openapi_examples={
            "question": {
                "summary": "One question",
                "value": {"model": "demo-lm", "messages": MESSAGES, "maximum_tokens": 8},
            },
            "events": {
                "summary": "The answer as it comes",
                "value": {"model": "demo-lm", "messages": MESSAGES, "maximum_tokens": 8, "stream": True},
            },
        }
    ),
]
Nice = Annotated[bool, Query(description="Queue behind all requests that are not nice.", examples=[True])]

EVERY = (400, 401, 403, 404, 409, 413, 415, 429, 503)

EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with `stream`, one line `data: {...}` and an empty line per event: the role, "
        "pieces of text as they become certain, the reason of the end.",
        "content": streamed_as(
            '{"object":"chat.completion.chunk","model":"demo-lm","choices":[{"index":0,'
            '"delta":{"content":" Norway"},"finish_reason":null}]}'
        ),
    }
}


def chat_routes(prefix: str) -> list[BaseRoute]:
    keyed = keyed_router("Complete (Aleph Alpha's wire)", prefix)
    keyed.post(
        "/chat/completions",
        summary="Answer in a chat",
        responses=EVENTS | problems(*EVERY),
        response_model=ChatResponse,
    )(chat)
    return keyed.routes


async def chat(request: Request, server: ServerState, caller: Asker, body: ChatBody, nice: Nice = False) -> Response:
    """What does the model answer?

    The messages are put together by the chat template that came with the model; a model without one is refused.
    """
    asked = body.to_domain()
    explainer, tenant = server.explainer_for(caller), caller.tenant
    completion = await while_connected(request, as_completion(explainer, tenant, asked))
    if not body.stream:
        work = complete_prompt(explainer, tenant, completion, nice=nice)
        return JsonResponse(chat_answer(await while_connected(request, work), body.model))
    events = stream_completion(explainer, tenant, completion, nice=nice)
    return await event_stream(request, chat_events(events, body), lambda problem: {"error": problem})
