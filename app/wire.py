"""What the JSON of all dialects has in common: strict numbers, and `null` for "use the default"."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    GetJsonSchemaHandler,
    StringConstraints,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

Number: TypeAlias = Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""A finite JSON number; `true` and `"0.1"` are none."""


def integral(value: Any) -> Any:
    """JSON knows one kind of number: 16.0 is as whole as 16."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole: TypeAlias = Annotated[int, BeforeValidator(integral), Field(strict=True)]
"""A whole JSON number; `true` and `"1"` are none. For single members: an array of many is read faster without it."""

Count: TypeAlias = Annotated[Whole, Field(ge=0, le=2**31 - 1)]
"""A whole number of something."""

Id: TypeAlias = Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]
"""One of many."""


def written_out(time: Any) -> Any:
    """Raises ValueError for a number, which would be taken for seconds since 1970."""
    try:
        float(time)
    except (TypeError, ValueError):
        return time
    raise ValueError("must be a date and time, as 2026-01-31T12:00:00Z")


def zoned(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)


Moment: TypeAlias = Annotated[datetime, BeforeValidator(written_out), AfterValidator(zoned)]
"""A date and time; without zone: UTC."""

Entry = TypeVar("Entry")

Array: TypeAlias = Annotated[list[Entry], FailFast()]
"""A JSON array, read up to its first bad entry: a body of millions of bad ones must not become millions of errors."""

MOST_ENTRIES = 10_000
"""Of an array of objects: each is checked while every other request waits."""

Objects: TypeAlias = Annotated[Array[Entry], Field(max_length=MOST_ENTRIES)]
"""A JSON array of objects."""


def as_parts(content: Any) -> Any:
    """A bare string is one part; a union of both would collect the mistakes of every entry."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def moderate(entries: Any) -> Any:
    """Raises ValueError for an object with too many members: it is checked to its end, mistakes and all."""
    if isinstance(entries, dict) and len(entries) > MOST_ENTRIES:
        raise ValueError(f"must have at most {MOST_ENTRIES} members")
    return entries


StopSequences: TypeAlias = Annotated[
    Array[Annotated[str, StringConstraints(min_length=1, max_length=256)]], Field(max_length=64)
]
"""Texts before which a completion ends: all of them are looked for behind every token."""


def as_list(stop: Any) -> Any:
    """One text may stand alone."""
    return [stop] if isinstance(stop, str) else stop


Stops: TypeAlias = Annotated[StopSequences, BeforeValidator(as_list, json_schema_input_type=str | list[str])]

ModelName: TypeAlias = Annotated[str, Field(description="Name of a registered model.", examples=["demo-lm"])]


class Wire(BaseModel):
    """A JSON object: unknown members are ignored, an optional member that is null has its default."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def null_means_default(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        fields = cls.model_fields
        return {
            name: value
            for name, value in data.items()
            if value is not None or (name in fields and fields[name].is_required())
        }

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """As it is read: null may stand for every optional member."""
        schema = handler(core)
        whole = handler.resolve_ref_schema(schema)
        members = whole.get("properties", {})
        optional = [name for name in members if name not in whole.get("required", ())]
        members |= {name: nullable(members[name]) for name in optional}
        return schema


class CostFields(BaseModel):
    """What a request takes at most, counted before anything is done: what the limits of a key are held against."""

    tokens: int = Field(description="Tokens that the model reads and writes.", examples=[17])
    chunks: int = Field(description="Pieces, inputs or training pairs that are compared.", examples=[3])
    forwards: int = Field(description="Passes through the model; of a predictor rows or texts.", examples=[2])
    bytes: int = Field(description="Memory beyond the weights, estimated.", examples=[4194304])
    seconds: float = Field(description="Seconds of the device, predicted.", examples=[0.021])
    measured: bool = Field(
        description="Whether such work was timed since the server started; if not it takes at least `seconds`.",
        examples=[True],
    )


COST: Any = Field(description="What the limits of the key are held against.")

ABOUT = ("title", "description", "examples", "default")


def nullable(member: JsonSchemaValue) -> JsonSchemaValue:
    """The schema of a member that may be null too; what is said about the member stays outside."""
    if {"type": "null"} in member.get("anyOf", ()) or not member.keys() - set(ABOUT):
        return member
    if "enum" in member and None in member["enum"]:
        return member
    about = {name: member[name] for name in ABOUT if name in member}
    value = {name: rule for name, rule in member.items() if name not in ABOUT}
    choices = value["anyOf"] if value.keys() == {"anyOf"} else [value]
    return {"anyOf": [*choices, {"type": "null"}], **about}
