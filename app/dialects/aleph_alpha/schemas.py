"""POST /explain and its neighbours: wire <-> domain."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool

from app.explain import Question
from app.wire import Array, Count, ModelName, Number, Wire
from explainers.errors import InvalidRequest, MissingCapability
from explainers.types import (
    AtmanConfig,
    Control,
    Image,
    Item,
    Overlap,
    Postprocessing,
    Prompt,
    Span,
    TargetGranularity,
    Text,
    Tile,
    TokenIds,
)
from explainers.types import Granularity as GranularityName

NOT_SERVED_YET = {
    "evaluate": "a faithfulness evaluation",
    "uncertainty": "uncertainty of scores",
    "dry_run": "a dry run",
}
"""Members of /explain that ask for what no release serves yet: refused, never silently ignored."""

Factor = Annotated[
    Number,
    Field(
        ge=0,
        description="What attention to the part is multiplied with: below 1 suppresses, 1 changes nothing, above 1 "
        "amplifies.",
        examples=[0.1],
    ),
]
TokenOverlap = Annotated[
    Overlap | None,
    Field(
        description="How a token that lies only partly inside counts: by its share (`partial`) or fully (`complete`). "
        "Default: the request's `control_token_overlap`.",
        examples=["partial"],
    ),
]


class TextControl(Wire):
    """Changes the attention to some characters of a text item."""

    start: int = Field(ge=0, description="First character (Unicode code points, from 0).", examples=[0])
    length: int = Field(ge=0, description="Number of characters; 0 does nothing.", examples=[18])
    factor: Factor
    token_overlap: TokenOverlap = None

    def to_domain(self, data: str, pointer: str) -> Control:
        if self.start + self.length > len(data):
            raise InvalidRequest(f"must end within the {len(data)} characters of its text", pointer)
        return Control(Span(self.start, self.start + self.length), self.factor, self.token_overlap)


class TokenControl(Wire):
    """Changes the attention to one token of a token_ids item."""

    index: int = Field(ge=0, description="Position of the token in this item, from 0.", examples=[0])
    factor: Factor

    def to_domain(self, count: int, pointer: str) -> Control:
        if self.index >= count:
            raise InvalidRequest(f"must be below {count}, the number of ids of its item", f"{pointer}/index")
        return Control(self.index, self.factor)


Fraction = Annotated[Number, Field(ge=0, le=1)]


class Rectangle(Wire):
    """A part of an image, in fractions of the whole image."""

    left: Fraction = Field(description="Left edge, 0 to 1.", examples=[0.0])
    top: Fraction = Field(description="Upper edge, 0 to 1.", examples=[0.0])
    width: Fraction = Field(description="Width, 0 to 1.", examples=[0.5])
    height: Fraction = Field(description="Height, 0 to 1.", examples=[0.5])

    def to_domain(self, pointer: str) -> Tile:
        if max(self.left + self.width, self.top + self.height) > 1 + 1e-9:
            raise InvalidRequest("must lie within 0..1", pointer)
        return Tile(self.left, self.top, self.width, self.height)


class ImageControl(Wire):
    """Changes the attention to a rectangle of an image item."""

    rect: Rectangle = Field(description="The rectangle.")
    factor: Factor
    token_overlap: TokenOverlap = None

    def to_domain(self, pointer: str) -> Control:
        return Control(self.rect.to_domain(f"{pointer}/rect"), self.factor, self.token_overlap)


class TextItem(Wire):
    """A text of the prompt."""

    type: Literal["text"] = Field(description="`text`.", examples=["text"])
    data: str = Field(description="The text.", examples=["Oslo is in Norway. Rome is in Italy. Oslo is in"])
    controls: Array[TextControl] = Field([], description="Changes of attention to parts of it.", examples=[[]])

    def to_domain(self, pointer: str) -> Item:
        controls = (c.to_domain(self.data, f"{pointer}/controls/{i}") for i, c in enumerate(self.controls))
        return Text(self.data, tuple(controls))


class TokenIdsItem(Wire):
    """A part of the prompt that is given as token ids."""

    type: Literal["token_ids"] = Field(description="`token_ids`.", examples=["token_ids"])
    data: Array[Count] = Field(description="Ids of the model's vocabulary.", examples=[[812, 27]])
    controls: Array[TokenControl] = Field([], description="Changes of attention to single tokens.", examples=[[]])

    def to_domain(self, pointer: str) -> Item:
        controls = (c.to_domain(len(self.data), f"{pointer}/controls/{i}") for i, c in enumerate(self.controls))
        return TokenIds(tuple(self.data), tuple(controls))


class ImageItem(Wire):
    """An image of the prompt. It is never cropped: `x`, `y` and `size` are checked and have no effect."""

    type: Literal["image"] = Field(description="`image`.", examples=["image"])
    data: str = Field(description="The image file (PNG, JPEG, WebP or BMP) in base64.", examples=["iVBORw0KGgo="])
    x: int | None = Field(None, ge=0, description="Left edge of a square crop, in pixels.", examples=[0])
    y: int | None = Field(None, ge=0, description="Upper edge of a square crop, in pixels.", examples=[0])
    size: int | None = Field(None, ge=1, description="Side of a square crop, in pixels.", examples=[224])
    controls: Array[ImageControl] = Field([], description="Changes of attention to rectangles.", examples=[[]])

    def to_domain(self, pointer: str) -> Item:
        if len({value is None for value in (self.x, self.y, self.size)}) > 1:
            raise InvalidRequest("x, y and size belong together: all three or none", pointer)
        try:
            data = b64decode(self.data, validate=True)
        except ValueError:
            raise InvalidRequest("must be base64", f"{pointer}/data") from None
        controls = tuple(c.to_domain(f"{pointer}/controls/{i}") for i, c in enumerate(self.controls))
        return Image(data, controls, cropped=self.size is not None)


AnyItem = Annotated[TextItem | TokenIdsItem | ImageItem, Field(discriminator="type")]


def as_items(prompt: Any) -> Any:
    """A bare string is one text item without controls."""
    return [{"type": "text", "data": prompt}] if isinstance(prompt, str) else prompt


PromptItems = Annotated[
    Array[AnyItem],
    BeforeValidator(as_items, json_schema_input_type=str | list[AnyItem]),
    Field(
        description="A string, or an array of text, token_ids and image items, which are tokenised one by one and put "
        'together. `""` and `[]` mean: no prompt.',
        examples=[[{"type": "text", "data": "Oslo is in Norway. Rome is in Italy. Oslo is in"}]],
    ),
]


def prompt_from(items: Sequence[TextItem | TokenIdsItem | ImageItem]) -> Prompt:
    return tuple(item.to_domain(f"/prompt/{index}") for index, item in enumerate(items))


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


class ExplainRequest(Wire):
    """Which parts of the prompt made the model say the target?"""

    model: ModelName
    prompt: PromptItems
    target: str | None = Field(None, description="The output to explain; required and not empty.", examples=[" Norway"])
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
        "atman", description="How to explain. `atman`: attention suppression, exact.", examples=["atman"]
    )
    fresh: StrictBool = Field(
        False, description="True: compute anew even when the answer to this very request is stored.", examples=[False]
    )
    evaluate: StrictBool = Field(False, description="Reserved: true is refused until it is served.", examples=[False])
    uncertainty: StrictBool = Field(
        False, description="Reserved: true is refused until it is served.", examples=[False]
    )
    dry_run: StrictBool = Field(False, description="Reserved: true is refused until it is served.", examples=[False])
    generate: dict[str, Any] | None = Field(
        None, description="Reserved: a completion by the server; refused until it is served.", examples=[None]
    )

    def to_domain(self) -> Question:
        self._refuse_unserved()
        if not self.target:
            raise InvalidRequest("must be a non-empty string", "/target")
        return Question(self.model, prompt_from(self.prompt), self.target, self._config(), self.method)

    def _refuse_unserved(self) -> None:
        for name, words in NOT_SERVED_YET.items():
            if getattr(self, name):
                raise MissingCapability(f"{words} is not served yet", f"/{name}")
        if self.generate is not None:
            raise MissingCapability("completing before explaining is not served yet", "/generate")

    def _config(self) -> AtmanConfig:
        granularity = self.prompt_granularity
        delimiter = granularity.delimiter if granularity is not None and granularity.type == "custom" else None
        if granularity is not None and granularity.type == "custom" and not delimiter:
            raise InvalidRequest("must be a non-empty string with type custom", "/prompt_granularity/delimiter")
        return AtmanConfig(
            control_factor=self.control_factor,
            log_additive=self.control_log_additive,
            threshold=self.contextual_control_threshold,
            granularity=None if granularity is None else granularity.type,
            delimiter=delimiter,
            target_granularity=self.target_granularity,
            overlap=self.control_token_overlap,
            postprocessing=self.postprocessing,
            normalize=self.normalize,
        )


class TokenizeRequest(Wire):
    """What does the tokenizer make of a text?"""

    model: ModelName
    prompt: str = Field(description="The text.", examples=["Oslo is in Norway."])
    tokens: StrictBool = Field(True, description="Whether to answer the vocabulary's strings.", examples=[True])
    token_ids: StrictBool = Field(True, description="Whether to answer the ids.", examples=[True])


class DetokenizeRequest(Wire):
    """What text do these ids stand for?"""

    model: ModelName
    token_ids: Array[Count] = Field(description="Ids of the model's vocabulary.", examples=[[812, 27]])


class NotServedYet(Wire):
    """Any object."""
