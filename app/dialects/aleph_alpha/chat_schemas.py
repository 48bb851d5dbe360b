"""POST /chat/completions: wire <-> domain."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, StrictBool

from app.chat import Chat, message_of
from app.complete import Completed, Event, Finished
from app.dialects.aleph_alpha.completion_schemas import Choosing, refuse_unsupported
from app.wire import Array, Count, ModelName, Objects, Stops, Whole, Wire, as_parts
from explainers.chat_template import Message
from explainers.decoding import CompletionConfig, FinishReason, Piece
from explainers.errors import MissingCapability
from explainers.sampling import Sampling

REASONS: dict[FinishReason, str] = {
    "maximum_tokens": "length",
    "end_of_text": "stop",
    "stop_sequence_reached": "stop",
}
UNSUPPORTED = {
    "tools": "calling tools",
    "response_format": "answering in a given format",
    "logprobs": "log-probabilities of a chat",
}
"""Members that ask for what is not served: refused unless they ask for nothing."""


class ContentPart(Wire):
    """A part of a message."""

    type: str = Field(description="`text`; images are refused.", examples=["text"])
    text: str | None = Field(None, description="The text.", examples=["Where is Oslo?"])


class ChatMessage(Wire):
    """One turn of the chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description="Who says it; the model's template may not know every role.", examples=["user"]
    )
    content: Annotated[
        Objects[ContentPart], BeforeValidator(as_parts, json_schema_input_type=str | list[ContentPart])
    ] = Field(description="The text, or parts that are put together.", examples=["Where is Oslo?"])

    def to_domain(self, pointer: str) -> Message:
        return message_of(self.role, self.content, f"{pointer}/content")


class StreamOptions(Wire):
    """What a stream tells besides."""

    include_usage: StrictBool = Field(False, description="Adds a last event with token counts.", examples=[True])


class ChatRequest(Choosing):
    """Answer the last message."""

    model: ModelName
    messages: Annotated[Objects[ChatMessage], Field(min_length=1)] = Field(
        description="The chat so far.", examples=[[{"role": "user", "content": "Where is Oslo?"}]]
    )
    max_tokens: Count | None = Field(None, description="Another name of `maximum_tokens`.", examples=[16])
    max_completion_tokens: Count | None = Field(None, description="Another name of `maximum_tokens`.", examples=[16])
    stop: Stops = Field([], description="The answer ends before the first of these texts.", examples=[["\n"]])
    stream_options: StreamOptions | None = Field(None, description="What a stream tells besides.")
    n: Whole = Field(1, ge=1, le=1, description="Only 1 is served.", examples=[1])
    tools: Array[Any] = Field(
        [],
        description="Not served: refused with 400 unless empty.",
        examples=[[]],
        json_schema_extra={"maxItems": 0},
    )
    tool_choice: str | dict[str, Any] | None = Field(None, description="No effect without tools.", examples=["none"])
    response_format: dict[str, Any] | None = Field(
        None,
        description="Not served: refused with 400 unless of type `text`.",
        examples=[{"type": "text"}],
        json_schema_extra={"enum": [None, {}, {"type": "text"}]},
    )
    logprobs: StrictBool = Field(
        False,
        description="Not served: refused with 400 when true.",
        examples=[False],
        json_schema_extra={"const": False},
    )

    def to_domain(self) -> Chat:
        self._check()
        messages = (message.to_domain(f"/messages/{index}") for index, message in enumerate(self.messages))
        config = CompletionConfig(
            maximum_tokens=self._maximum(),
            sampling=self._sampling(),
            stop_sequences=tuple(self.stop),
        )
        return Chat(self.model, tuple(messages), config)

    def _maximum(self) -> int | None:
        given = (self.maximum_tokens, self.max_completion_tokens, self.max_tokens)
        return min((tokens for tokens in given if tokens is not None), default=None)

    def _sampling(self) -> Sampling:
        return Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=0.0 if self.top_p == 1 else self.top_p,  # all tokens: what clients of this wire send by default
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=self.seed,
        )

    def _check(self) -> None:
        refuse_unsupported(self)
        for name, words in UNSUPPORTED.items():
            asked = getattr(self, name)
            if asked and asked != {"type": "text"}:
                raise MissingCapability(f"{words} is not served", f"/{name}")


class ReplyMessage(BaseModel):
    role: Literal["assistant"] = Field(description="`assistant`.", examples=["assistant"])
    content: str = Field(description="What the model says.", examples=["In Norway."])


class Choice(BaseModel):
    index: int = Field(description="Always 0.", examples=[0])
    message: ReplyMessage = Field(description="The answer.")
    finish_reason: Literal["stop", "length"] = Field(
        description="`stop`: it has ended by itself or at a stop text. `length`: no more tokens.", examples=["stop"]
    )


class Usage(BaseModel):
    prompt_tokens: int = Field(description="Tokens of the chat, with what the template adds.", examples=[13])
    completion_tokens: int = Field(description="Tokens that were generated.", examples=[4])
    total_tokens: int = Field(description="Their sum.", examples=[17])


class ChatResponse(BaseModel):
    """The answer to the chat."""

    object: Literal["chat.completion"] = Field(description="`chat.completion`.", examples=["chat.completion"])
    model: str = Field(description="As asked.", examples=["demo-lm"])
    model_version: str = Field(description="Names the exact weights.", examples=["sha256:5f1c0a"])
    choices: list[Choice] = Field(description="One answer.")
    usage: Usage = Field(description="Token counts.")


def chat_answer(answer: Completed, model: str) -> dict[str, Any]:
    (item,) = answer.completions.items
    message = {"role": "assistant", "content": item.text}
    return {
        "object": "chat.completion",
        "model": model,
        "model_version": answer.model_digest,
        "choices": [{"index": 0, "message": message, "finish_reason": REASONS[item.finish_reason]}],
        "usage": usage(answer),
    }


def usage(answer: Completed) -> dict[str, int]:
    prompt, generated = answer.completions.prompt_tokens, answer.completions.generated_tokens
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


async def chat_events(events: AsyncGenerator[Event, None], asked: ChatRequest) -> AsyncGenerator[dict[str, Any], None]:
    """First the role, then the pieces, the reason of the end, and token counts if they are asked for."""
    frame = {"object": "chat.completion.chunk", "model": asked.model}
    begun = False
    async with aclosing(events):
        async for event in events:
            if not begun:
                yield {**frame, "choices": [choice({"role": "assistant", "content": ""})]}
                begun = True
            match event:
                case Piece(text=text) if text:
                    yield {**frame, "choices": [choice({"content": text})]}
                case Finished(completion=completion):
                    yield {**frame, "choices": [choice({}, REASONS[completion.finish_reason])]}
                case Completed() if asked.stream_options is not None and asked.stream_options.include_usage:
                    yield {**frame, "choices": [], "usage": usage(event)}


def choice(delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": reason}
