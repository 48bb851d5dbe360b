"""Chats and completions: wire -> domain."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, StrictBool, model_validator

from app.chat import Chat, message_of
from app.complete import Request
from app.wire import Count, ModelName, Number, Objects, Stops, Whole, Wire, as_parts
from explainers.chat_template import Message
from explainers.decoding import CompletionConfig
from explainers.errors import MissingCapability
from explainers.sampling import Sampling
from explainers.types import Text

MOST_CANDIDATES = 64
MOST_LOG_PROBS = 100
MOST_TOKENS = 512
"""Of an answer, unless asked otherwise."""
UNSUPPORTED = {
    "tools": "calling tools",
    "tool_choice": "calling tools",
    "response_format": "answering in a given format",
    "safety_model": "moderation",
}
"""Members that ask for what is not served, unless they ask for nothing."""
NOTHING: tuple[Any, ...] = ([], {}, "", "none", {"type": "text"})
ONLY_NOTHING: dict[str, Any] = {"enum": [None, *NOTHING]}

Limit = Annotated[Whole, Field(ge=1, le=2**31 - 1)]
LogProbs = Annotated[Whole, Field(ge=0, le=MOST_LOG_PROBS)]


class FlowPart(Wire):
    """A part of a message."""

    type: str = Field(description="`text`; images are refused.", examples=["text"])
    text: str | None = Field(None, description="The text.", examples=["Where is Oslo?"])


class FlowMessage(Wire):
    """One turn of the chat."""

    role: Literal["system", "user", "assistant"] = Field(description="Who says it.", examples=["user"])
    content: Annotated[Objects[FlowPart], BeforeValidator(as_parts, json_schema_input_type=str | list[FlowPart])] = (
        Field(description="The text, or parts that are put together.", examples=["Where is Oslo?"])
    )

    def to_domain(self, pointer: str) -> Message:
        return message_of(self.role, self.content, f"{pointer}/content")


class FlowStreamOptions(Wire):
    """What a stream tells besides."""

    include_usage: StrictBool = Field(False, description="Adds a last event with token counts.", examples=[True])


class Answering(Wire):
    """How the next token is chosen, and what is told of it: what chats and completions have in common."""

    whole: ClassVar[tuple[str, ...]] = ("echo", "logprobs")
    """What is not told in a stream."""

    model: ModelName
    max_tokens: Limit = Field(
        MOST_TOKENS,
        description="Most tokens to generate; the end of the model's context may come before.",
        examples=[16],
    )
    temperature: Annotated[Number, Field(ge=0)] = Field(
        0.7,
        description="Logits are divided by it before a token is drawn; 0 takes the most probable one, whatever `top_k` "
        "and `top_p` say.",
        examples=[0.0],
    )
    top_p: Annotated[Number, Field(ge=0, le=1)] = Field(
        1.0,
        description="Draw from the smallest set of tokens whose probabilities reach p; 1: from all.",
        examples=[1.0],
    )
    top_k: Whole = Field(
        5,
        ge=-1,
        le=2**31 - 1,
        description="Draw from the k most probable tokens only; null, 0 or -1: from all.",
        examples=[5],
    )
    repetition_penalty: Annotated[Number, Field(gt=0, le=100)] = Field(
        1.0,
        description="Positive logits of tokens that have occurred, in the prompt too, are divided by it, negative ones "
        "multiplied with it.",
        examples=[1.0],
    )
    seed: Count | None = Field(
        None,
        description="Changes the random numbers. They derive from the request: the same one has the same answer.",
        examples=[7],
    )
    stop: Stops = Field([], description="The answer ends before the first of these texts.", examples=[["\n"]])
    n: Whole = Field(1, ge=1, le=MOST_CANDIDATES, description="Answers to return.", examples=[1])
    stream: StrictBool = Field(
        False, description="True: answer in events, each as soon as it is certain.", examples=[False]
    )
    stream_options: FlowStreamOptions | None = Field(None, description="What a stream tells besides.")
    echo: StrictBool = Field(
        False, description="Adds the prompt as the model reads it. Not with `stream`.", examples=[False]
    )
    safety_model: Any = Field(
        None, description="Not served: refused with 400 unless null.", examples=[None], json_schema_extra=ONLY_NOTHING
    )

    @model_validator(mode="before")
    @classmethod
    def null_is_off(cls, data: Any) -> Any:
        """Of `top_k` alone, null is not the default."""
        return data | {"top_k": 0} if isinstance(data, dict) and data.get("top_k", 5) is None else data

    def check(self) -> None:
        for name, words in UNSUPPORTED.items():
            asked = getattr(self, name, None)
            if asked is not None and asked not in NOTHING:
                raise MissingCapability(f"{words} is not served", f"/{name}")
        for name in self.whole if self.stream else ():
            if getattr(self, name):
                raise MissingCapability("is not told in a stream", f"/{name}")

    def config(self, limit: int, log_probs: int | None) -> CompletionConfig:
        return CompletionConfig(
            default_tokens=limit,
            sampling=self._sampling(),
            n=self.n,
            stop_sequences=tuple(self.stop),
            log_probs=log_probs,
            echo=self.echo,
        )

    def _sampling(self) -> Sampling:
        drawn = self.temperature > 0
        first = drawn and self.top_p == 0  # the smallest set that reaches nothing has one token
        return Sampling(
            temperature=self.temperature,
            top_k=1 if first else max(0, self.top_k) if drawn else 0,
            top_p=self.top_p if drawn and self.top_p < 1 else 0.0,
            presence_penalty=self.repetition_penalty - 1,
            multiplicative_presence=self.repetition_penalty != 1,
            penalties_include_prompt=self.repetition_penalty != 1,
            seed=self.seed,
        )


class FlowChatRequest(Answering):
    """Answer the last message."""

    whole: ClassVar[tuple[str, ...]] = ("echo", "logprobs", "top_logprobs")

    messages: Annotated[Objects[FlowMessage], Field(min_length=1)] = Field(
        description="The chat so far.", examples=[[{"role": "user", "content": "Where is Oslo?"}]]
    )
    max_completion_tokens: Limit | None = Field(None, description="Outdoes `max_tokens`.", examples=[16])
    logprobs: StrictBool = Field(
        False, description="Adds the log-probability of each token in nats. Not with `stream`.", examples=[False]
    )
    top_logprobs: LogProbs = Field(
        0,
        description="Adds the log-probabilities of the k most probable tokens of each position. Not with `stream`.",
        examples=[0],
    )
    response_format: dict[str, Any] | None = Field(
        None,
        description="Not served: refused with 400 unless null or of type `text`.",
        examples=[None],
        json_schema_extra={"enum": [None, {}, {"type": "text"}]},
    )
    tools: Any = Field(
        None,
        description="Not served: refused with 400 unless null or empty.",
        examples=[None],
        json_schema_extra=ONLY_NOTHING,
    )
    tool_choice: Any = Field(
        None,
        description="Not served: refused with 400 unless null or `none`.",
        examples=["none"],
        json_schema_extra=ONLY_NOTHING,
    )

    @property
    def log_probs(self) -> int | None:
        return self.top_logprobs if self.logprobs or self.top_logprobs else None

    def to_domain(self, model: str) -> Chat:
        """The chat, with that model."""
        self.check()
        messages = (message.to_domain(f"/messages/{index}") for index, message in enumerate(self.messages))
        return Chat(model, tuple(messages), self.config(self.max_completion_tokens or self.max_tokens, self.log_probs))


class FlowCompletionRequest(Answering):
    """Go on with a text."""

    prompt: str = Field(description="The text, which goes through no template.", examples=["Oslo is in"])
    logprobs: LogProbs | None = Field(
        None,
        description="Adds log-probabilities in nats: of each token and of the k most probable ones. Not with `stream`.",
        examples=[0],
    )

    whole: ClassVar[tuple[str, ...]] = ("echo",)

    @property
    def log_probs(self) -> int | None:
        return self.logprobs

    def to_domain(self, model: str) -> Request:
        """The completion, with that model."""
        self.check()
        if self.stream and self.logprobs is not None:
            raise MissingCapability("is not told in a stream", "/logprobs")
        return Request(model, (Text(self.prompt),), self.config(self.max_tokens, self.logprobs))
