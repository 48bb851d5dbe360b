"""POST /explain and its neighbours: wire <-> domain."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool

from app.wire import MOST_ENTRIES, Array, Id, ModelName, Number, Objects, Whole, Wire
from explainers.controls import LARGEST_FACTOR
from explainers.errors import InvalidRequest
from explainers.types import (
    Control,
    Image,
    Item,
    Overlap,
    Prompt,
    Span,
    Text,
    Tile,
    TokenIds,
)

Factor = Annotated[
    Number,
    Field(
        ge=0,
        le=LARGEST_FACTOR,
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

    start: Whole = Field(ge=0, description="First character (Unicode code points, from 0).", examples=[0])
    length: Whole = Field(ge=0, description="Number of characters; 0 does nothing.", examples=[18])
    factor: Factor
    token_overlap: TokenOverlap = None

    def to_domain(self, data: str, pointer: str) -> Control:
        if self.start + self.length > len(data):
            raise InvalidRequest(f"must end within the {len(data)} characters of its text", pointer)
        return Control(Span(self.start, self.start + self.length), self.factor, self.token_overlap)


class TokenControl(Wire):
    """Changes the attention to one token of a token_ids item."""

    index: Whole = Field(ge=0, description="Position of the token in this item, from 0.", examples=[0])
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
    controls: Objects[TextControl] = Field([], description="Changes of attention to parts of it.", examples=[[]])

    def to_domain(self, pointer: str) -> Item:
        controls = (c.to_domain(self.data, f"{pointer}/controls/{i}") for i, c in enumerate(self.controls))
        return Text(self.data, tuple(controls))


class TokenIdsItem(Wire):
    """A part of the prompt that is given as token ids."""

    type: Literal["token_ids"] = Field(description="`token_ids`.", examples=["token_ids"])
    data: Array[Id] = Field(description="Ids of the model's vocabulary.", examples=[[812, 27]])
    controls: Objects[TokenControl] = Field([], description="Changes of attention to single tokens.", examples=[[]])

    def to_domain(self, pointer: str) -> Item:
        controls = (c.to_domain(len(self.data), f"{pointer}/controls/{i}") for i, c in enumerate(self.controls))
        return TokenIds(tuple(self.data), tuple(controls))


class ImageItem(Wire):
    """An image of the prompt. It is never cropped: `x`, `y` and `size` are checked and have no effect."""

    type: Literal["image"] = Field(description="`image`.", examples=["image"])
    data: str = Field(description="The image file (PNG, JPEG, WebP or BMP) in base64.", examples=["iVBORw0KGgo="])
    x: Whole | None = Field(None, ge=0, description="Left edge of a square crop, in pixels.", examples=[0])
    y: Whole | None = Field(None, ge=0, description="Upper edge of a square crop, in pixels.", examples=[0])
    size: Whole | None = Field(None, ge=1, description="Side of a square crop, in pixels.", examples=[224])
    controls: Objects[ImageControl] = Field([], description="Changes of attention to rectangles.", examples=[[]])

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
    Objects[AnyItem],
    BeforeValidator(as_items, json_schema_input_type=str | list[AnyItem]),
    Field(
        description="A string, or an array of text, token_ids and image items, which are tokenised one by one and put "
        'together. `""` and `[]` mean: no prompt.',
        examples=[[{"type": "text", "data": "Oslo is in Norway. Rome is in Italy. Oslo is in"}]],
    ),
]


def prompt_from(items: Sequence[TextItem | TokenIdsItem | ImageItem]) -> Prompt:
    if sum(len(item.controls) for item in items) > MOST_ENTRIES:
        raise InvalidRequest(f"must have at most {MOST_ENTRIES} controls in all", "/prompt")
    return tuple(item.to_domain(f"/prompt/{index}") for index, item in enumerate(items))


class TokenizeRequest(Wire):
    """What does the tokenizer make of a text?"""

    model: ModelName
    prompt: str = Field(description="The text.", examples=["Oslo is in Norway."])
    tokens: StrictBool = Field(True, description="Whether to answer the vocabulary's strings.", examples=[True])
    token_ids: StrictBool = Field(True, description="Whether to answer the ids.", examples=[True])


class DetokenizeRequest(Wire):
    """What text do these ids stand for?"""

    model: ModelName
    token_ids: Array[Id] = Field(description="Ids of the model's vocabulary.", examples=[[812, 27]])


class NotServedYet(Wire):
    """Any object."""
