"""Inputs that a person changes: sliders, choices and fields around the values of an inference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from app.definitions import Attribute
from app.explorer.session import MOST_FIELDS
from explainers.errors import InvalidRequest

PREFIX = "input."
"""Before the names of inputs in the form, which has fields of its own."""
OTHERS = 10
"""Fields beside the inputs, at most."""
NOISE = 1e-6
"""How much of an output a change is to be at least: models that count in 32 bits know no more."""


@dataclass(frozen=True, slots=True)
class Slider:
    """One input in the form. With `low` and `high` it slides; with `options` it is chosen from; else it is typed."""

    name: str
    field: str
    value: str
    low: str = ""
    high: str = ""
    step: str = "any"
    options: tuple[str, ...] = ()
    long: bool = False


def most_inputs() -> int:
    """What a form may have."""
    return MOST_FIELDS - OTHERS


def sliders(inputs: Sequence[Attribute], row: Mapping[str, Any]) -> list[Slider]:
    """One per input, in order; none where there are too many for a form."""
    return [slider(each, row.get(each.name)) for each in inputs] if len(inputs) <= most_inputs() else []


def slider(attribute: Attribute, value: Any) -> Slider:
    name, field, shown = attribute.name, PREFIX + attribute.name, written(value)
    if options := options_of(attribute, shown):
        return Slider(name, field, shown, options=options)
    if attribute.value_type in ("FLOAT", "INTEGER") and value is not None:
        low, high = (written(end) for end in range_of(attribute, float(value)))
        return Slider(name, field, shown, low, high, "1" if attribute.value_type == "INTEGER" else "any")
    return Slider(name, field, shown, long=attribute.value_type == "UNSTRUCTURED_TEXT" or has_breaks(shown))


def options_of(attribute: Attribute, shown: str) -> tuple[str, ...]:
    """The declared categories, and the value itself."""
    if attribute.value_type == "BOOLEAN":
        return ("true", "false") if shown else ("", "true", "false")
    declared = [written(each.get("value")) for each in attribute.details.get("categories") or []]
    return tuple(dict.fromkeys([*declared, shown])) if declared else ()


def range_of(attribute: Attribute, value: float) -> tuple[float, float]:
    """The declared range, widened to hold the value; without one, as far on both sides as the value is large."""
    least, most = attribute.details.get("min_range"), attribute.details.get("max_range")
    reach = abs(value) or 1.0
    low = value - reach if least is None else min(float(least), value)
    high = value + reach if most is None else max(float(most), value)
    return low, high if high > low else low + 1.0


def written(value: Any) -> str:
    """So that it reads back as the same value."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def given_from(inputs: Sequence[Attribute], fields: Mapping[str, str]) -> list[tuple[str, Any]]:
    """Every input with its value of the form; raises InvalidRequest that names the one that is wrong or missing."""
    given = []
    for attribute in inputs:
        if PREFIX + attribute.name not in fields:
            raise InvalidRequest(f"lacks '{attribute.name}'")
        given.append((attribute.name, value_of(attribute, fields[PREFIX + attribute.name])))
    return given


def value_of(attribute: Attribute, text: str) -> Any:
    """An empty field is a null, but for a text."""
    if attribute.value_type not in ("FLOAT", "INTEGER", "BOOLEAN"):
        return text if text or attribute.value_type == "UNSTRUCTURED_TEXT" else None
    if not text.strip():
        return None
    if attribute.value_type == "BOOLEAN" and text in ("true", "false"):
        return text == "true"
    with suppress(ValueError):
        number = float(text)
        if math.isfinite(number):
            return int(number) if attribute.value_type == "INTEGER" and number.is_integer() else number
    raise InvalidRequest(f"'{attribute.name}' must be a {'number' if attribute.is_number else 'value'}")


def has_breaks(text: str) -> bool:
    return "\n" in text or "\r" in text


def as_stored(value: Any, stored: Any) -> Any:
    """A text with the line breaks of the stored one, and that one itself where nothing else is changed.

    Browsers send breaks as they please, whatever they were given.
    """
    if not isinstance(value, str) or not isinstance(stored, str):
        return value
    if plain_breaks(value) == plain_breaks(stored):
        return stored
    return plain_breaks(value).replace("\n", "\r\n") if "\r\n" in stored else plain_breaks(value)


def plain_breaks(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def outcome(now: float, change: float | None) -> tuple[str, str | None]:
    """An output and its change, written; a change that is nothing beside the output is 0."""
    if change is None:
        return figure(now), None
    size = max(abs(now), abs(now - change))
    return figure(now), "0" if abs(change) <= NOISE * size else figure(change, "+")


def figure(value: float, sign: str = "-") -> str:
    """Four digits that count, and all before the point."""
    return f"{value:{sign}.0f}" if 1e3 <= abs(value) < 1e15 else f"{value:{sign}.4g}"
