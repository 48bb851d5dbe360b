"""POST /explain: wire <-> domain."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool

from app.dialects.aleph_alpha.completion_schemas import Completing
from app.dialects.aleph_alpha.schemas import Factor, PromptItems, prompt_from
from app.questions import Question
from app.wire import ModelName, Number, Objects, Whole, Wire, as_parts
from explainers.decoding import CompletionConfig
from explainers.errors import InvalidRequest, MissingCapability
from explainers.registry import METHODS
from explainers.types import AtmanConfig, Overlap, Postprocessing, Prompt, TargetGranularity, Text, Turn
from explainers.types import Granularity as GranularityName

GENERATED_TOKENS = 64


class PromptGranularity(Wire):
    """Into what pieces the prompt is cut."""

    type: GranularityName = Field(
        description="`token`, `word`, `sentence` (Unicode rules), `paragraph` (empty lines) or `custom` (at every "
        "`delimiter`).",
        examples=["sentence"],
    )
    delimiter: str | None = Field(
        None, description="Where `custom` cuts; not empty. Ignored with the other types.", examples=[","]
    )


ONE_TEXT: dict[str, Any] = {"n": 1, "best_of": None, "log_probs": None}
ONE_TEXT |= dict.fromkeys(("tokens", "echo", "raw_completion", "stream"), False)
"""Members of /complete that ask for more than the one text that is explained, and what asks for nothing more."""


class Generation(Completing):
    """How the server completes the prompt before it explains its own words: the members of POST /complete."""

    maximum_tokens: Annotated[Whole, Field(ge=1, le=2**31 - 1)] | None = Field(
        None, description="Most tokens to generate; null: 64, or what the context has room for.", examples=[16]
    )

    def to_domain(self, config: AtmanConfig) -> CompletionConfig:
        """Under the controls of the explanation, unless the members say otherwise."""
        try:
            self.check()
            own = self.config()
        except InvalidRequest as error:
            raise type(error)(str(error), f"/generate{error.pointer or ''}") from None
        for name, neutral in ONE_TEXT.items():
            if getattr(self, name) != neutral:
                raise MissingCapability("is not served here: one completion is explained", f"/generate/{name}")
        sent = self.model_fields_set
        return replace(
            own,
            default_tokens=GENERATED_TOKENS,
            threshold=own.threshold if "contextual_control_threshold" in sent else config.threshold,
            log_additive=own.log_additive if "control_log_additive" in sent else config.log_additive,
            overlap=config.overlap,
        )


class Passage(Wire):
    """A part of a message that gets scores, and a name, of its own."""

    type: Literal["text"] = Field(description="`text`.", examples=["text"])
    text: str = Field(description="The text; the parts of a message are joined as they are.", examples=["Oslo is in "])
    name: Annotated[str, Field(max_length=200)] | None = Field(
        None, description="What the answer calls it, such as the document it is from.", examples=["atlas, page 7"]
    )


class SpokenMessage(Wire):
    """One message of a chat."""

    role: Literal["system", "user", "assistant"] = Field(description="Who says it.", examples=["user"])
    content: Annotated[Objects[Passage], BeforeValidator(as_parts, json_schema_input_type=str | list[Passage])] = Field(
        description="A text, or an array of parts that are scored apart.", examples=["Where is Oslo?"]
    )

    def to_domain(self, message: int) -> list[Text]:
        return [Text(part.text, turn=Turn(message, self.role, part.name)) for part in self.content]


def chat_from(messages: list[SpokenMessage]) -> Prompt:
    prompt = tuple(text for number, message in enumerate(messages) for text in message.to_domain(number))
    if not prompt:
        raise InvalidRequest("must hold at least one message with content", "/messages")
    return prompt


class ExplainRequest(Wire):
    """Which parts of the prompt made the model say the target?"""

    model: ModelName
    prompt: PromptItems = Field(
        [],
        description="Required unless `messages` are sent. A string, or an array of text, token_ids and image items, "
        'which are tokenised one by one and put together. `""` and `[]` mean: no prompt.',
        examples=[[{"type": "text", "data": "Oslo is in Norway. Rome is in Italy. Oslo is in"}]],
    )
    messages: Objects[SpokenMessage] = Field(
        [],
        description="A chat in place of `prompt`, rendered by the model's own chat template; the target is what the "
        "assistant says next. Each message (or each part of one) is an item of the answer; what the template adds is "
        "part of no score.",
        examples=[[{"role": "user", "content": "Oslo is in Norway. Where is Oslo?"}]],
    )
    target: str | None = Field(
        None,
        description="The output to explain; required and not empty, unless `generate` is sent.",
        examples=[" Norway"],
    )
    hosting: str | None = Field(None, description="Accepted for the vendor's client; no effect.", examples=[None])
    control_factor: Factor = Field(0.1, description="What attention to each piece is multiplied with in turn.")
    contextual_control_threshold: Annotated[Number, Field(ge=-1, le=1)] | None = Field(
        None,
        description="When set, tokens whose embedding has at least this cosine similarity are changed along.",
        examples=[None],
    )
    control_log_additive: StrictBool = Field(
        True,
        description="True: log(factor) is added to the attention scores. False: their distance to the row's minimum is "
        "multiplied.",
        examples=[True],
    )
    postprocessing: Postprocessing = Field(
        "none",
        description="Applied to the score of each target token: `none`, `absolute` or `square`.",
        examples=["none"],
    )
    normalize: StrictBool = Field(
        False, description="Min-max scaling to 0..1 over all scores of an explanation.", examples=[False]
    )
    prompt_granularity: PromptGranularity | None = Field(
        None,
        description="Into what pieces the prompt is cut; null: the granularity that gives nearest to thirty pieces.",
        examples=[{"type": "sentence"}],
    )
    target_granularity: TargetGranularity = Field(
        "complete",
        description="`complete`: one explanation of the whole target. `token`: one for each of its tokens.",
        examples=["complete"],
    )
    control_token_overlap: Overlap = Field(
        "partial",
        description="How tokens partly inside a piece or control count: by their share, or fully (`complete`).",
        examples=["partial"],
    )
    method: str = Field(
        "atman",
        description="How to explain. `atman`: attention suppression, exact. `gradient`: its first-order approximation, "
        "one pass forwards and one back for all pieces. `screened`: exact where the gradient is largest, scaled "
        "gradients elsewhere. These two say `approximate` in their answers. `ablation`: pieces are removed in random "
        "halves and a line is fitted to what the target then loses; its scores have standard errors as `uncertainty`, "
        "and `control_factor` has no effect.",
        examples=["atman"],
    )
    exact_scores: Annotated[Whole, Field(ge=1, le=2**31 - 1)] = Field(
        8, description="How many pieces method `screened` scores exactly; no effect on other methods.", examples=[8]
    )
    samples: Annotated[Whole, Field(ge=8, le=4096)] = Field(
        64, description="How many random halves method `ablation` removes; no effect on other methods.", examples=[64]
    )
    fresh: StrictBool = Field(
        False, description="True: compute anew even when the answer to this very request is stored.", examples=[False]
    )
    evaluate: StrictBool = Field(
        False,
        description="True: test the scores by removing the parts of the prompt, highest score first, and watching the "
        "target's log-probability. Adds `faithfulness`.",
        examples=[False],
    )
    uncertainty: StrictBool = Field(
        False,
        description="True: adds to each score how much of it is rounding of the model's arithmetic. Takes seven times "
        "as many passes.",
        examples=[False],
    )
    dry_run: StrictBool = Field(
        False, description="True: run nothing, store nothing, answer only what it would take.", examples=[False]
    )
    generate: Generation | None = Field(
        None,
        description="With a null or empty target: complete the prompt first (greedily, unless told otherwise), then "
        "explain that completion, which the answer holds as `completion`. No effect when there is a target.",
        examples=[{"maximum_tokens": 16}],
    )

    def to_domain(self) -> Question:
        if self.method not in METHODS:
            raise MissingCapability(f"only these methods are served: {', '.join(sorted(METHODS))}", "/method")
        prompt, config = self._prompt(), self._config()
        if not self.target and self.generate is None:
            raise InvalidRequest("must be a non-empty string, unless `generate` is sent", "/target")
        generate = None if self.target or self.generate is None else self.generate.to_domain(config)
        target = self.target or ""
        return Question(self.model, prompt, target, config, self.method, self.evaluate, self.uncertainty, generate)

    def _prompt(self) -> Prompt:
        sent = self.model_fields_set
        if "messages" not in sent:
            if "prompt" not in sent:
                raise InvalidRequest("a prompt is required: a string or an array of items", "/prompt")
            return prompt_from(self.prompt)
        if "prompt" in sent:
            raise InvalidRequest("send either `prompt` or `messages`", "/messages")
        return chat_from(self.messages)

    def _config(self) -> AtmanConfig:
        granularity = self.prompt_granularity
        delimiter = granularity.delimiter if granularity is not None and granularity.type == "custom" else None
        if granularity is not None and granularity.type == "custom" and not delimiter:
            raise InvalidRequest("must be a non-empty string with type custom", "/prompt_granularity/delimiter")
        options: dict[str, float] = {"control_factor": self.control_factor}
        if self.method == "screened":
            options["exact"] = self.exact_scores
        if self.method == "ablation":
            options = {"samples": self.samples}
        make: Any = METHODS[self.method].config
        config: AtmanConfig = make(
            log_additive=self.control_log_additive,
            threshold=self.contextual_control_threshold,
            granularity=None if granularity is None else granularity.type,
            delimiter=delimiter,
            target_granularity=self.target_granularity,
            overlap=self.control_token_overlap,
            postprocessing=self.postprocessing,
            normalize=self.normalize,
            **options,
        )
        return config
