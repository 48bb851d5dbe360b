"""Prompts, configurations and attributions as plain JSON values, and back without loss: a stored attribution answers
byte for byte like the fresh one.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from explainers.registry import METHODS
from explainers.types import (
    AtmanConfig,
    Attribution,
    Control,
    Feature,
    Image,
    Item,
    Place,
    Prompt,
    Span,
    Target,
    Text,
    Tile,
    TokenIds,
    Turn,
)

Record: TypeAlias = dict[str, Any]

CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def digest_of(*parts: Any) -> bytes:
    """One name for JSON values, 32 bytes: equal values have equal names, whatever the order of members."""
    return hashlib.sha256(CANONICAL.encode(parts).encode()).digest()


def request_record(method: str, prompt: Prompt, target: str, config: AtmanConfig) -> Record:
    """A question to a causal language model."""
    items = [item_record(item) for item in prompt]
    settings = {field.name: getattr(config, field.name) for field in fields(config)}
    return {"method": method, "prompt": items, "target": target, "config": settings}


def request_from(record: Mapping[str, Any]) -> tuple[str, Prompt, str, AtmanConfig]:
    """The inverse of `request_record`: method, prompt, target, configuration."""
    prompt = tuple(item_from(item) for item in record["prompt"])
    method = record["method"]
    return method, prompt, record["target"], METHODS[method].config(**record["config"])


def text_of(items: Sequence[Mapping[str, Any]]) -> str:
    """The texts of a prompt's records, for lists and searches; images and token ids have none."""
    return "\n".join(item["data"] for item in items if item["type"] == "text")


def item_record(item: Item) -> Record:
    """An image is kept as the file that was sent: the record answers what was asked, and names it by its content."""
    controls = [control_record(control) for control in item.controls]
    match item:
        case Text():
            return {"type": "text", "data": item.data, "controls": controls} | turn_record(item)
        case TokenIds():
            return {"type": "token_ids", "data": list(item.ids), "controls": controls}
        case Image():
            record = {"type": "image", "data": b64encode(item.data).decode(), "controls": controls}
            return record | ({"cropped": True} if item.cropped else {})


def item_from(record: Mapping[str, Any]) -> Item:
    controls = tuple(control_from(control) for control in record["controls"])
    match record["type"]:
        case "text":
            return Text(record["data"], controls, Turn(**record["turn"]) if "turn" in record else None)
        case "token_ids":
            return TokenIds(tuple(record["data"]), controls)
        case _:
            return Image(b64decode(record["data"]), controls, record.get("cropped", False))


def turn_record(text: Text) -> Record:
    return {} if text.turn is None else {"turn": asdict(text.turn)}


def control_record(control: Control) -> Record:
    return {"place": place_record(control.place), "factor": float(control.factor), "overlap": control.overlap}


def control_from(record: Mapping[str, Any]) -> Control:
    return Control(place_from(record["place"]), float(record["factor"]), record["overlap"])


def place_record(place: Place) -> int | list[int] | list[float]:
    """Characters as [start, stop], a tile as [left, top, width, height], a token as its position."""
    match place:
        case Span():
            return [place.start, place.stop]
        case Tile():
            return [float(place.left), float(place.top), float(place.width), float(place.height)]
        case _:
            return place


def place_from(record: int | Sequence[float]) -> Place:
    if isinstance(record, int):
        return record
    if len(record) == 2:
        return Span(int(record[0]), int(record[1]))
    return Tile(*(float(side) for side in record))


def attribution_record(attribution: Attribution) -> Record:
    return {
        "method": attribution.method,
        "features": [
            {"name": feature.name, "item": feature.item, "place": place_record(feature.place)}
            for feature in attribution.features
        ],
        "targets": [
            {"text": target.text, "span": None if target.span is None else place_record(target.span)}
            for target in attribution.targets
        ],
        "values": numbers(attribution.values),
        "base_values": numbers(attribution.base_values),
        "uncertainty": numbers(attribution.uncertainty),
        "facts": dict(attribution.facts),
    }


def attribution_from(record: Mapping[str, Any]) -> Attribution:
    features = tuple(
        Feature(feature["name"], feature["item"], place_from(feature["place"])) for feature in record["features"]
    )
    values = np.asarray(record["values"], dtype=np.float64).reshape(len(record["targets"]), len(features))
    return Attribution(
        method=record["method"],
        features=features,
        targets=tuple(target_from(target) for target in record["targets"]),
        values=values,
        base_values=array(record["base_values"]),
        uncertainty=array(record["uncertainty"]),
        facts=record["facts"],
    )


def target_from(record: Mapping[str, Any]) -> Target:
    span = record["span"]
    return Target(record["text"], None if span is None else Span(span[0], span[1]))


def numbers(values: NDArray[np.float64] | None) -> list[Any] | None:
    plain: list[Any] | None = None if values is None else np.asarray(values, dtype=np.float64).tolist()
    return plain


def array(record: Any) -> NDArray[np.float64] | None:
    return None if record is None else np.asarray(record, dtype=np.float64)
