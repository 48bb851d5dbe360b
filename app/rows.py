"""One record of a monitored model as the places that keep it: numbers and texts, each attribute at its own.

A record is checked whole before anything of it is kept. What follows from given values (the other class, whether the
true class is this one) is derived here, once, so that queries find it like any other value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, TypeAlias

from app.definitions import TRUTHS, Attribute, Definition, Stage, ValueType
from explainers.errors import InvalidRequest
from storage.values import UNSTORABLE

Reader: TypeAlias = Callable[[Any], float | str]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
LARGEST_INTEGER = 2**53
"""Beyond it floats skip integers."""


@dataclass(slots=True)
class Row:
    """Values by place, None where there is none."""

    numbers: list[float | None]
    texts: list[str | None]


@dataclass(frozen=True, slots=True)
class Place:
    attribute: Attribute
    slot: int  # from 0
    read: Reader


@dataclass(frozen=True)
class Layout:
    """Where the values of a model's attributes are kept, and how they are read from JSON."""

    definition: Definition
    places: Mapping[str, Place] = field(init=False)
    numbers: int = field(init=False)
    texts: int = field(init=False)

    def __post_init__(self) -> None:
        counts = {True: 0, False: 0}
        places = {}
        for attribute in self.definition.attributes:
            slot = counts[attribute.is_number]
            places[attribute.name] = Place(attribute, slot, reader_of(attribute))
            counts[attribute.is_number] += 1
        object.__setattr__(self, "places", places)
        object.__setattr__(self, "numbers", counts[True])
        object.__setattr__(self, "texts", counts[False])

    def inference(self, data: Any, truth: Any = None) -> Row:
        """The row of an inference, with its ground truth if it comes along; raises InvalidRequest."""
        row = self.empty()
        given = self._read(row, data, self._of_inference, "inference_data")
        for name in self._needed:
            if name not in given:
                raise InvalidRequest(f"inference_data lacks '{name}'")
        self._derive_class(row)
        if truth is not None:
            self.add_truth(row, truth)
        return row

    def truth(self, data: Any) -> Row:
        """A row with the ground truth alone; raises InvalidRequest."""
        row = self.empty()
        self.add_truth(row, data)
        return row

    def reference(self, data: Any) -> Row:
        """A row of the reference set: any attribute, none of them needed; raises InvalidRequest."""
        row = self.empty()
        self._read(row, data, self._declared, "a row")
        self._derive_class(row)
        self._derive_truth(row)
        return row

    def add_truth(self, row: Row, data: Any) -> None:
        self._read(row, data, self._of_truth, "ground_truth_data")
        self._derive_truth(row)

    def empty(self) -> Row:
        return Row([None] * self.numbers, [None] * self.texts)

    def told_by(self, given: Iterable[str]) -> frozenset[str]:
        """The attributes of which such a ground truth says something: those named, and those that follow from them."""
        names = frozenset(given)
        derived = self._derived_truths if self._class_name in names else ()
        return names | {place.attribute.name for place in derived}

    def put(self, row: Row, place: Place, value: Any) -> None:
        """Raises InvalidRequest naming the attribute."""
        try:
            read = None if value is None else place.read(value)
        except (TypeError, ValueError, OverflowError):
            kind = place.attribute.value_type
            raise InvalidRequest(f"'{place.attribute.name}' must be {WORDS.get(kind, 'a JSON value')}") from None
        values: list[Any] = row.numbers if place.attribute.is_number else row.texts
        values[place.slot] = read

    def value(self, row: Row, name: str) -> Any:
        place = self.places[name]
        return (row.numbers if place.attribute.is_number else row.texts)[place.slot]

    def _read(self, row: Row, data: Any, allowed: Mapping[str, Place], what: str) -> Mapping[str, Any]:
        if not isinstance(data, dict):
            raise InvalidRequest(f"{what} must be a JSON object")
        for name, value in data.items():
            place = allowed.get(name)
            if place is None:
                raise InvalidRequest(f"{what} has an attribute that this model has not there{shown(name)}")
            self.put(row, place, value)
        return data

    def _derive_class(self, row: Row) -> None:
        """What one of two classes leaves to the other."""
        for place in self._other_classes:
            (given,) = (a for a in self.definition.of_stage("PREDICTED_VALUE") if not a.implicit)
            value = self.value(row, given.name)
            row.numbers[place.slot] = None if value is None else 1 - value

    def _derive_truth(self, row: Row) -> None:
        if self._class_name is None:
            return
        value = self.value(row, self._class_name)
        for place in self._derived_truths:
            predicted = self.places[str(place.attribute.link)].attribute
            same = value is not None and predicted.gt_class_link in class_names(value, self._class_type)
            row.numbers[place.slot] = None if value is None else float(same)

    @cached_property
    def _declared(self) -> Mapping[str, Place]:
        return {name: place for name, place in self.places.items() if not place.attribute.implicit}

    @cached_property
    def _of_inference(self) -> Mapping[str, Place]:
        return {name: place for name, place in self._declared.items() if place.attribute.stage not in TRUTHS}

    @cached_property
    def _of_truth(self) -> Mapping[str, Place]:
        return {name: place for name, place in self._declared.items() if place.attribute.stage in TRUTHS}

    @cached_property
    def _needed(self) -> tuple[str, ...]:
        stages: tuple[Stage, ...] = ("PIPELINE_INPUT", "PREDICTED_VALUE")
        return tuple(name for name, place in self._declared.items() if place.attribute.stage in stages)

    @cached_property
    def _other_classes(self) -> tuple[Place, ...]:
        return tuple(self._implicit("PREDICTED_VALUE"))

    @cached_property
    def _derived_truths(self) -> tuple[Place, ...]:
        return tuple(self._implicit("GROUND_TRUTH"))

    def _implicit(self, stage: Stage) -> Iterable[Place]:
        return (place for place in self.places.values() if place.attribute.implicit and place.attribute.stage == stage)

    @cached_property
    def _class_name(self) -> str | None:
        classes = self.definition.of_stage("GROUND_TRUTH_CLASS")
        return classes[0].name if classes else None

    @cached_property
    def _class_type(self) -> ValueType:
        return self.places[str(self._class_name)].attribute.value_type


def shown(name: Any) -> str:
    """A name of the caller's, if it is one: data never comes back in a message."""
    return f": '{name}'" if isinstance(name, str) and name.isidentifier() and len(name) <= 255 else ""


def class_names(value: float | str, kind: ValueType) -> tuple[str, ...]:
    """How a class may be written as a string."""
    if isinstance(value, str):
        return (value,)
    if kind == "BOOLEAN":
        return ("True", "true", "1") if value else ("False", "false", "0")
    return (str(int(value)), str(float(value))) if float(value).is_integer() else (str(value),)


def read_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    found = float(value)
    if not math.isfinite(found):
        raise ValueError
    return found


def read_integer(value: Any) -> float:
    found = read_float(value)
    if not found.is_integer() or abs(found) > LARGEST_INTEGER:
        raise ValueError
    return found


def read_boolean(value: Any) -> float:
    if value not in (0, 1) or not isinstance(value, bool | int | float):
        raise TypeError
    return float(value)


def read_time(value: Any) -> float:
    """Microseconds since 1970, from ISO 8601; UTC where no offset is given."""
    return float((moment(value) - EPOCH) // MICROSECOND)


def moment(value: Any) -> datetime:
    """A time from ISO 8601, or one that a file held as such."""
    if not isinstance(value, str | datetime):
        raise TypeError
    found = datetime.fromisoformat(value) if isinstance(value, str) else value
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def read_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    if UNSTORABLE.search(value):
        raise ValueError
    return value


def read_texts(value: Any) -> str:
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise TypeError
    return read_json(value)


def read_json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def read_boxes(value: Any) -> str:
    """A list of [class_id, confidence, top_left_x, top_left_y, width, height]."""
    return _boxes(value, (6,))


def read_true_boxes(value: Any) -> str:
    """The same, where the confidence may be left out: people who draw boxes have none."""
    return _boxes(value, (5, 6))


def _boxes(value: Any, lengths: Sequence[int]) -> str:
    if not isinstance(value, list):
        raise TypeError
    for box in value:
        if not isinstance(box, list) or len(box) not in lengths:
            raise TypeError
        read_integer(box[0])
        confidence, *sides = map(read_float, box[1:] if len(box) == 6 else [1, *box[1:]])
        if not 0 <= confidence <= 1 or min(sides[2:]) < 0:
            raise ValueError
    return read_json(value)


def reader_of(attribute: Attribute) -> Reader:
    if attribute.value_type == "BOUNDING_BOX" and attribute.stage in TRUTHS:
        return read_true_boxes
    return READERS[attribute.value_type]


READERS: Mapping[ValueType, Reader] = {
    "BOOLEAN": read_boolean,
    "FLOAT": read_float,
    "INTEGER": read_integer,
    "TIMESTAMP": read_time,
    "STRING": read_text,
    "UNSTRUCTURED_TEXT": read_text,
    "IMAGE": read_text,
    "ARRAY(STRING)": read_texts,
    "TOKENS": read_texts,
    "BOUNDING_BOX": read_boxes,
    "TOKEN_LIKELIHOODS": read_json,
    "RANKED_LIST": read_json,
    "TIME_SERIES": read_json,
}

TEXT_WORDS = "a string without NUL or half a surrogate pair"

WORDS: Mapping[ValueType, str] = {
    "BOOLEAN": "true, false, 1 or 0",
    "FLOAT": "a finite number",
    "INTEGER": "a whole number",
    "TIMESTAMP": "an ISO 8601 time",
    "STRING": TEXT_WORDS,
    "UNSTRUCTURED_TEXT": TEXT_WORDS,
    "IMAGE": TEXT_WORDS,
    "ARRAY(STRING)": "an array of strings",
    "TOKENS": "an array of strings",
    "BOUNDING_BOX": "an array of [class_id, confidence (0..1), top_left_x, top_left_y, width, height]",
}
