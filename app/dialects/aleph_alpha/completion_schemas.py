"""POST /complete and POST /evaluate: wire -> domain."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StrictBool

from app.complete import Request
from app.dialects.aleph_alpha.schemas import PromptItems, prompt_from
from app.evaluate import Expectation
from app.wire import Array, Count, ModelName, Number, StopSequences, Whole, Wire, moderate
from explainers.decoding import CompletionConfig
from explainers.errors import InvalidRequest, MissingCapability
from explainers.evaluation import EvaluationConfig
from explainers.sampling import Sampling

MOST_CANDIDATES = 64
MOST_LOG_PROBS = 100

UNSUPPORTED = {
    "sequence_penalty": "a penalty on sequences",
    "penalty_bias": "a penalty on the tokens of a text",
    "penalty_exceptions": "exceptions from penalties",
    "completion_bias_inclusion": "restricting a completion to given texts",
    "completion_bias_exclusion": "excluding texts from a completion",
    "steering_concepts": "steering",
}
"""Members that ask for what is not served: refused unless they ask for nothing, never silently ignored."""

Threshold = Annotated[
    Annotated[Number, Field(ge=-1, le=1)] | None,
    Field(
        description="When set, controls also act on tokens whose embedding has at least this cosine similarity to a "
        "controlled one, generated ones included.",
        examples=[None],
    ),
]
LogAdditive = Annotated[
    StrictBool,
    Field(
        description="True: log(factor) is added to the attention scores. False: their distance to the row's minimum is "
        "multiplied.",
        examples=[True],
    ),
]
Hosting = Annotated[str | None, Field(description="Accepted for the vendor's client; no effect.", examples=[None])]
Penalty = Annotated[Number, Field(ge=-100, le=100)]
Flag = StrictBool
BestOf = Annotated[Whole, Field(ge=1, le=MOST_CANDIDATES)]


class EvaluateRequest(Wire):
    """How likely is the model to say what was expected?"""

    model: ModelName
    prompt: PromptItems
    completion_expected: str = Field(
        min_length=1, description="What the model should say; not empty.", examples=[" Norway"]
    )
    hosting: Hosting = None
    contextual_control_threshold: Threshold = None
    control_log_additive: LogAdditive = True

    def to_domain(self) -> Expectation:
        config = EvaluationConfig(self.contextual_control_threshold, self.control_log_additive)
        return Expectation(self.model, prompt_from(self.prompt), self.completion_expected, config)


class Choosing(Wire):
    """How the next token is chosen: what /complete and /chat/completions have in common."""

    maximum_tokens: Count | None = Field(
        None,
        description="Most tokens to generate; null: on to the end of text, a stop sequence or the end of the context.",
        examples=[16],
    )
    temperature: Annotated[Number, Field(ge=0)] = Field(
        0.0,
        description="Logits are divided by it before a token is drawn; 0 takes the most probable one.",
        examples=[0.0],
    )
    top_k: Count = Field(
        0,
        description="Draw from the k most probable tokens only; 0: from all. Applied after the temperature.",
        examples=[0],
    )
    top_p: Annotated[Number, Field(ge=0, le=1)] = Field(
        0.0,
        description="Draw from the smallest set of tokens whose probabilities reach p; 0: from all. Applied last.",
        examples=[0.0],
    )
    presence_penalty: Penalty = Field(
        0.0, description="Taken once from the logit of every token that has occurred.", examples=[0.0]
    )
    frequency_penalty: Penalty = Field(
        0.0, description="Taken from the logit of a token for each time that it has occurred.", examples=[0.0]
    )
    seed: Count | None = Field(
        None,
        description="Changes the random numbers. They derive from the request: the same one has the same answer.",
        examples=[7],
    )
    steering_concepts: Array[str] = Field([], description="Not served: refused with 400 unless empty.", examples=[[]])
    stream: Flag = Field(False, description="True: answer in events, each as soon as it is certain.", examples=[False])


class Completing(Choosing):
    """How a prompt is completed: what /complete and the `generate` of /explain have in common."""

    n: Whole = Field(1, ge=1, le=MOST_CANDIDATES, description="Completions to return.", examples=[1])
    best_of: BestOf | None = Field(
        None,
        description="Completions to generate, of which the n with the highest log-probability per token are returned; "
        "above n. Not with `stream`.",
        examples=[None],
    )
    stop_sequences: StopSequences = Field(
        [], description="The completion ends before the first of these texts.", examples=[["\n"]]
    )
    minimum_tokens: Count = Field(
        0, description="The text may end only after so many tokens; stop sequences still end it.", examples=[0]
    )
    logit_bias: Annotated[dict[str, Number], BeforeValidator(moderate)] | None = Field(
        None,
        description="Token id (as a string) -> what is added to its logit; at most 10,000.",
        examples=[{"42": -100.0}],
    )
    log_probs: Annotated[Whole, Field(ge=0, le=MOST_LOG_PROBS)] | None = Field(
        None,
        description="Adds log-probabilities in nats, as the model has them before penalties, biases and temperature: "
        "of the chosen token (0), or of the k most probable ones and the chosen one.",
        examples=[0],
    )
    tokens: Flag = Field(False, description="Adds the completion's tokens.", examples=[True])
    echo: Flag = Field(False, description="Puts the prompt before the completion.", examples=[False])
    raw_completion: Flag = Field(False, description="Adds the completion with special tokens.", examples=[False])
    use_multiplicative_presence_penalty: Flag = Field(
        False,
        description="True: positive logits are divided by 1 + `presence_penalty`, negative ones multiplied with it.",
        examples=[False],
    )
    use_multiplicative_frequency_penalty: Flag = Field(
        False, description="The same with `frequency_penalty`, once per occurrence.", examples=[False]
    )
    repetition_penalties_include_prompt: Flag = Field(
        False, description="Whether tokens of the prompt count as having occurred.", examples=[False]
    )
    repetition_penalties_include_completion: Flag = Field(
        True, description="Whether generated tokens count as having occurred.", examples=[True]
    )
    sequence_penalty: Number = Field(0.0, description="Not served: refused with 400 unless 0.", examples=[0.0])
    sequence_penalty_min_length: Whole = Field(
        2, ge=2, description="No effect without `sequence_penalty`.", examples=[2]
    )
    use_multiplicative_sequence_penalty: Flag = Field(
        False, description="No effect without `sequence_penalty`.", examples=[False]
    )
    penalty_bias: str | None = Field(None, description="Not served: refused with 400 unless empty.", examples=[""])
    penalty_exceptions: Array[str] = Field([], description="Not served: refused with 400 unless empty.", examples=[[]])
    penalty_exceptions_include_stop_sequences: Flag | None = Field(
        None,
        description="Not served: true is refused with 400 where penalties and stop sequences meet.",
        examples=[None],
    )
    completion_bias_inclusion: Array[str] = Field(
        [], description="Not served: refused with 400 unless empty.", examples=[[]]
    )
    completion_bias_inclusion_first_token_only: Flag = Field(
        False, description="No effect without `completion_bias_inclusion`.", examples=[False]
    )
    completion_bias_exclusion: Array[str] = Field(
        [], description="Not served: refused with 400 unless empty.", examples=[[]]
    )
    completion_bias_exclusion_first_token_only: Flag = Field(
        False, description="No effect without `completion_bias_exclusion`.", examples=[False]
    )
    disable_optimizations: Flag = Field(
        False, description="No effect: prompts and completions are never rewritten.", examples=[False]
    )
    contextual_control_threshold: Threshold = None
    control_log_additive: LogAdditive = True

    def config(self) -> CompletionConfig:
        return CompletionConfig(
            maximum_tokens=self.maximum_tokens,
            sampling=self._sampling(),
            n=self.n,
            best_of=self.best_of,
            stop_sequences=tuple(self.stop_sequences),
            log_probs=self.log_probs,
            echo=self.echo,
            threshold=self.contextual_control_threshold,
            log_additive=self.control_log_additive,
        )

    def _sampling(self) -> Sampling:
        return Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            multiplicative_presence=self.use_multiplicative_presence_penalty,
            multiplicative_frequency=self.use_multiplicative_frequency_penalty,
            penalties_include_prompt=self.repetition_penalties_include_prompt,
            penalties_include_completion=self.repetition_penalties_include_completion,
            logit_bias=self._biases(),
            minimum_tokens=self.minimum_tokens,
            seed=self.seed,
        )

    def _biases(self) -> tuple[tuple[int, float], ...]:
        for token in self.logit_bias or {}:
            if not (token.isascii() and token.isdigit() and len(token) <= len(str(2**31))):
                raise InvalidRequest("must have token ids as its keys", "/logit_bias")
        return tuple(sorted((int(token), bias) for token, bias in (self.logit_bias or {}).items()))

    def check(self) -> None:
        """Raises what is wrong with members that are right one by one, and for what is not served."""
        refuse_unsupported(self)
        if self.best_of is not None and self.stream:
            raise InvalidRequest("cannot be streamed", "/best_of")
        for kind in ("presence", "frequency"):
            if getattr(self, f"use_multiplicative_{kind}_penalty") and getattr(self, f"{kind}_penalty") < 0:
                raise InvalidRequest("must not be negative when it is multiplicative", f"/{kind}_penalty")
        penalised = self.presence_penalty != 0 or self.frequency_penalty != 0
        if self.penalty_exceptions_include_stop_sequences and penalised and self.stop_sequences:
            raise MissingCapability(
                "excepting stop sequences from penalties is not served", "/penalty_exceptions_include_stop_sequences"
            )


class CompleteRequest(Completing):
    """Go on with the prompt while its controls act."""

    model: ModelName
    prompt: PromptItems
    hosting: Hosting = None

    def to_domain(self) -> Request:
        self.check()
        return Request(self.model, prompt_from(self.prompt), self.config())


def refuse_unsupported(request: Wire) -> None:
    for name, words in UNSUPPORTED.items():
        if getattr(request, name, None):
            raise MissingCapability(f"{words} is not served", f"/{name}")


Reason = Literal["maximum_tokens", "end_of_text", "stop_sequence_reached"]
