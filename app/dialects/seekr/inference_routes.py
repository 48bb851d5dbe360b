"""What the model answers: chats through its own template, and plain completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Annotated, Any

from fastapi import Body, Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from app.chat import as_completion
from app.complete import Completed, Event, complete_prompt, stream_completion
from app.complete import Request as Completion
from app.dependencies import Asker, Caller, JsonResponse, Server, ServerState, while_connected
from app.deployments import count_tokens, model_named
from app.dialects.seekr.inference_answers import (
    Delta,
    FlowChatResponse,
    FlowCompletionResponse,
    Telling,
    answer_events,
    chat_answer,
    chat_delta,
    completion_answer,
    completion_delta,
    frame,
)
from app.dialects.seekr.inference_schemas import Answering, FlowChatRequest, FlowCompletionRequest
from app.dialects.seekr.router import flow_router
from app.errors import Responses, problems
from app.streams import done_stream, streamed_as
from explainers.types import Text
from storage.errors import StorageError

EVERY = (400, 401, 403, 404, 409, 413, 415, 429)
CHUNKS = {"chat": "chat.completion.chunk", "completion": "completion.chunk"}
ASKED = {"model": "demo-lm", "messages": [{"role": "user", "content": "Oslo is in Norway. Where is Oslo?"}]}

ChatBody = Annotated[
    FlowChatRequest,
    Body(
        openapi_examples={
            "question": {"summary": "One question", "value": ASKED | {"max_tokens": 8, "temperature": 0}},
            "events": {
                "summary": "The answer as it comes",
                "value": ASKED | {"max_tokens": 8, "temperature": 0, "stream": True},
            },
        }
    ),
]
CompletionBody = Annotated[
    FlowCompletionRequest,
    Body(
        openapi_examples={
            "text": {
                "summary": "Go on with a text",
                "value": {"model": "demo-lm", "prompt": "Oslo is in", "max_tokens": 8, "temperature": 0},
            }
        }
    ),
]


def events_like(example: str) -> Responses:
    told = "The answer; with `stream`, one line `data: {...}` and an empty line per event, and `data: [DONE]` last."
    return {200: {"description": told, "content": streamed_as(example)}}


CHAT_EVENTS = events_like(
    '{"id":"chat-1","object":"chat.completion.chunk","created":1772352000,"model":"demo-qa","choices":[{"index":0,'
    '"delta":{"role":"assistant","content":"Anna"},"finish_reason":null}]}'
)
COMPLETION_EVENTS = events_like(
    '{"id":"completion-1","object":"completion.chunk","created":1772352000,"model":"demo-qa","choices":[{"index":0,'
    '"delta":{"content":" Norway"},"text":" Norway","finish_reason":null}]}'
)


def inference_routes() -> list[BaseRoute]:
    flow = flow_router()
    flow.post(
        "/v1/inference/chat/completions",
        summary="Answer in a chat",
        responses=CHAT_EVENTS | problems(*EVERY),
        response_model=FlowChatResponse,
    )(chat)
    flow.post(
        "/v1/inference/completions",
        summary="Complete a text",
        responses=COMPLETION_EVENTS | problems(*EVERY),
        response_model=FlowCompletionResponse,
    )(complete)
    return flow.routes


async def chat(request: Request, server: ServerState, caller: Asker, body: ChatBody) -> Response:
    """What does the model answer?

    The messages are put together by the chat template that came with the model; a model without one is refused. The
    same request has the same answer, sampled ones included.
    """
    explainer = server.explainer
    model = await model_named(explainer.database, caller.tenant, body.model)
    asked = await while_connected(request, as_completion(explainer, caller.tenant, body.to_domain(model)))
    if body.stream:
        return await streamed(request, server, caller, body, asked, chat_delta, "chat")
    return JsonResponse(chat_answer(await completed(request, server, caller, asked), telling(body, asked)))


async def complete(request: Request, server: ServerState, caller: Asker, body: CompletionBody) -> Response:
    """How does the text go on?

    The text is read as it is, by models with and without a chat template. The same request has the same answer.
    """
    asked = body.to_domain(await model_named(server.explainer.database, caller.tenant, body.model))
    if body.stream:
        return await streamed(request, server, caller, body, asked, completion_delta, "completion")
    return JsonResponse(completion_answer(await completed(request, server, caller, asked), telling(body, asked)))


def telling(body: FlowChatRequest | FlowCompletionRequest, asked: Completion) -> Telling:
    text = "".join(item.data for item in asked.prompt if isinstance(item, Text))
    return Telling(body.model, text if body.echo else None, body.log_probs)


async def completed(request: Request, server: Server, caller: Caller, asked: Completion) -> Completed:
    found = await while_connected(request, complete_prompt(server.explainer_for(caller), caller.tenant, asked))
    await note(server, caller, asked, found)
    return found


async def streamed(
    request: Request, server: Server, caller: Caller, body: Answering, asked: Completion, delta: Delta, kind: str
) -> Response:
    async def counted() -> AsyncGenerator[Event, None]:
        async with aclosing(stream_completion(server.explainer_for(caller), caller.tenant, asked)) as events:
            async for event in events:
                if isinstance(event, Completed):
                    await note(server, caller, asked, event)
                yield event

    around: dict[str, Any] = frame(CHUNKS[kind], kind, body.model)
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    return await done_stream(request, answer_events(counted(), around, delta, with_usage=with_usage))


async def note(server: Server, caller: Caller, asked: Completion, found: Completed) -> None:
    """Counts tokens. An answer that is there is given, counted or not."""
    read, written = found.completions.prompt_tokens, found.completions.generated_tokens
    with suppress(StorageError):
        await count_tokens(server.explainer.database, caller.tenant, asked.model, read=read, written=written)
