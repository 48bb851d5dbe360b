"""Chats and completions: domain -> wire, whole or as events."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal
from uuid import uuid4

from pydantic import BaseModel, Field

from app.complete import Completed, Event, Finished
from explainers.completion_text import INCOMPLETE, ScoredToken
from explainers.decoding import Completion, FinishReason, Piece

REASONS: dict[FinishReason, str] = {
    "maximum_tokens": "length",
    "end_of_text": "stop",
    "stop_sequence_reached": "stop",
}
Json = dict[str, Any]
Delta = Callable[[str, bool], Json]
"""What a choice of an event says: from a piece of text, and whether it is the first of its answer."""

FINISH = Field(
    description="`stop`: it has ended by itself or at a stop text. `length`: no more tokens.", examples=["stop"]
)
ID = Field(description="Made up for this answer.", examples=["chat-6f1c0a5e"])
CREATED = Field(description="Seconds since 1970.", examples=[1772352000])
MODEL = Field(description="As asked.", examples=["demo-qa"])
INDEX = Field(description="Which of the n answers, from 0.", examples=[0])


class TokenLogProbs(BaseModel):
    """Token by token, as the model has them before penalties and temperature."""

    tokens: list[str] = Field(description="Texts of the tokens.", examples=[["Anna", " keeps"]])
    token_logprobs: list[float | None] = Field(description="In nats.", examples=[[-0.01, -0.2]])
    text_offset: list[int] = Field(description="Where each token begins in the text.", examples=[[0, 4]])
    top_logprobs: list[dict[str, float] | None] = Field(
        description="The k most probable tokens of each position; empty unless asked for.",
        examples=[[{"Anna": -0.01, "Ben": -4.7}, {" keeps": -0.2, " kept": -1.8}]],
    )


class PromptLogProbs(BaseModel):
    tokens: list[str] = Field(description="Texts of the tokens.", examples=[["Who", " keeps"]])
    token_logprobs: list[float | None] = Field(description="In nats; null of the first.", examples=[[None, -3.1]])


class EchoedPrompt(BaseModel):
    text: str = Field(description="The prompt as the model reads it.", examples=["user: Who keeps the mill?"])
    logprobs: PromptLogProbs | None = Field(description="With `logprobs`.")


class FlowReply(BaseModel):
    role: Literal["assistant"] = Field(description="`assistant`.", examples=["assistant"])
    content: str = Field(description="What the model says.", examples=["Anna keeps the mill."])


class FlowChoice(BaseModel):
    index: int = INDEX
    finish_reason: Literal["stop", "length"] = FINISH
    message: FlowReply = Field(description="The answer.")
    logprobs: TokenLogProbs | None = Field(None, description="Where asked for.")


class FlowUsage(BaseModel):
    prompt_tokens: int = Field(description="Tokens of the prompt, with what a template adds.", examples=[11])
    completion_tokens: int = Field(description="Tokens that were generated, of all answers.", examples=[6])
    total_tokens: int = Field(description="Their sum.", examples=[17])


class FlowChatResponse(BaseModel):
    """Answers to the chat."""

    id: str = ID
    object: Literal["chat.completion"] = Field(description="`chat.completion`.", examples=["chat.completion"])
    created: int = CREATED
    model: str = MODEL
    choices: list[FlowChoice] = Field(description="The n answers.")
    usage: FlowUsage = Field(description="Token counts.")
    prompt: list[EchoedPrompt] | None = Field(None, description="With `echo`: one entry.")


class FlowText(BaseModel):
    index: int = INDEX
    finish_reason: Literal["stop", "length"] = FINISH
    text: str = Field(description="What the model says.", examples=[" Norway."])
    logprobs: TokenLogProbs | None = Field(None, description="Where asked for.")


class FlowCompletionResponse(BaseModel):
    """Completions of the text."""

    id: str = ID
    object: Literal["text.completion"] = Field(description="`text.completion`.", examples=["text.completion"])
    created: int = CREATED
    model: str = MODEL
    choices: list[FlowText] = Field(description="The n completions.")
    usage: FlowUsage = Field(description="Token counts.")
    prompt: list[EchoedPrompt] | None = Field(None, description="With `echo`: one entry.")


@dataclass(frozen=True, slots=True)
class Telling:
    """What an answer says beside the text: `prompt` is the text that was read, None unless it is echoed."""

    model: str
    prompt: str | None
    log_probs: int | None


def chat_answer(completed: Completed, telling: Telling) -> Json:
    def choice(text: str) -> Json:
        return {"message": {"role": "assistant", "content": text}}

    return frame("chat.completion", "chat", telling.model) | answer(completed, telling, choice)


def completion_answer(completed: Completed, telling: Telling) -> Json:
    return frame("text.completion", "completion", telling.model) | answer(
        completed, telling, lambda text: {"text": text}
    )


def answer(completed: Completed, telling: Telling, said: Callable[[str], Json]) -> Json:
    echoed = 0 if telling.prompt is None else completed.completions.prompt_tokens
    choices = []
    for item in completed.completions.items:
        text, tokens = item.text[len(telling.prompt or "") :], item.tokens[echoed:]
        choice = {"index": item.index, "finish_reason": REASONS[item.finish_reason]} | said(text)
        logs = {} if telling.log_probs is None else {"logprobs": log_probs(text, tokens, telling.log_probs)}
        choices.append(choice | logs)
    found = {"choices": choices, "usage": usage(completed)}
    return found if telling.prompt is None else found | {"prompt": [prompt_part(completed, telling)]}


def prompt_part(completed: Completed, telling: Telling) -> Json:
    tokens = completed.completions.items[0].tokens[: completed.completions.prompt_tokens]
    part = {"tokens": [token.text for token in tokens], "token_logprobs": [token.log_prob for token in tokens]}
    return {"text": telling.prompt, "logprobs": None if telling.log_probs is None else part}


def log_probs(text: str, tokens: Sequence[ScoredToken], most: int) -> Json:
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.log_prob for token in tokens],
        "text_offset": offsets(text, [token.text for token in tokens]),
        "top_logprobs": [alternatives(token) for token in tokens] if most else [],
    }


def alternatives(token: ScoredToken) -> dict[str, float]:
    """Of tokens with the same text, the most probable."""
    return dict(reversed(token.alternatives))


def offsets(text: str, tokens: Sequence[str]) -> list[int]:
    """Where each token begins. One that is part of a character has no text of its own, and begins where that does."""
    starts, position, parts = [], 0, 0
    for token in tokens:
        found = text.find(token, position, position + len(token) + parts * INCOMPLETE) if token else -1
        starts.append(position if found < 0 else found)
        position, parts = (position, parts + 1) if found < 0 else (found + len(token), 0)
    return starts


def usage(completed: Completed) -> dict[str, int]:
    read, written = completed.completions.prompt_tokens, completed.completions.generated_tokens
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def frame(kind: str, prefix: str, model: str) -> Json:
    return {"id": f"{prefix}-{uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def chat_delta(text: str, first: bool) -> Json:
    return {"delta": ({"role": "assistant"} if first else {}) | {"content": text}}


def completion_delta(text: str, first: bool) -> Json:
    """For the vendor's client, and for those of OpenAI's wire."""
    return {"delta": {"content": text}, "text": text}


async def answer_events(
    events: AsyncGenerator[Event, None], around: Json, delta: Delta, *, with_usage: bool
) -> AsyncGenerator[Json, None]:
    """The pieces of all answers, each with its number; of each the reason of its end; token counts if asked for."""
    begun: set[int] = set()

    def told(index: int, text: str, reason: str | None = None) -> Json:
        choice = {"index": index} | delta(text, index not in begun) | {"finish_reason": reason}
        begun.add(index)
        return around | {"choices": [choice]}

    async with aclosing(events):
        async for event in events:
            match event:
                case Piece(index=index, text=text) if text:
                    yield told(index, text)
                case Finished(completion=Completion(index=index, finish_reason=reason)):
                    yield told(index, "", REASONS[reason])
                case Completed() if with_usage:
                    yield around | {"choices": [], "usage": usage(event)}
