"""What both demo models of rows have in common: their declaration as a schema to bind, and records as they are sent.

A model's folder holds, beside the model: `schema.json`, the body that registers it; `inferences.jsonl`, one inference
per line with prediction and ground truth.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeAlias

from explainers.predictors.binding import Schema
from explainers.table import Column

Record: TypeAlias = dict[str, Any]

MODELS: Final = Path(__file__).parent / "models"
START: Final = datetime(2026, 3, 1, tzinfo=UTC)
DAYS: Final = 30


def schema_of(body: Mapping[str, Any]) -> Schema:
    """What the body that registers a classifier declares of its inputs and outputs."""
    inputs, outputs = (_of_stage(body, stage) for stage in ("PIPELINE_INPUT", "PREDICTED_VALUE"))
    return Schema(
        columns=tuple(Column(attribute["name"]) for attribute in inputs),
        outputs=tuple(attribute["name"] for attribute in outputs),
        task="classification",
        classes=tuple(attribute["gt_class_link"] for attribute in outputs),
        positive=next(i for i, attribute in enumerate(outputs) if attribute.get("is_positive_predicted_attribute")),
    )


def _of_stage(body: Mapping[str, Any], stage: str) -> list[Record]:
    found = [attribute for attribute in body["attributes"] if attribute["stage"] == stage]
    return sorted(found, key=lambda attribute: int(attribute["position"]))


def class_attributes(truth: Record, classes: Sequence[str], labels: Sequence[str]) -> list[Record]:
    """The attributes of a classifier's outputs, the first one positive, and of the class that turns out true."""
    predicted = [
        {"name": name, "label": label, "value_type": "FLOAT", "stage": "PREDICTED_VALUE", "position": place}
        | {"categorical": False, "min_range": 0, "max_range": 1, "gt_class_link": name}
        | {"is_positive_predicted_attribute": place == 0}
        for place, (name, label) in enumerate(zip(classes, labels, strict=True))
    ]
    categories = [{"value": name, "label": label} for name, label in zip(classes, labels, strict=True)]
    fixed = {"value_type": "STRING", "stage": "GROUND_TRUTH_CLASS", "position": 0, "categorical": True}
    return [*predicted, truth | fixed | {"categories": categories}]


def moments(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """For each inference when it was made, and when the truth was known: one to five days later."""
    found = []
    for _ in range(count):
        made = START + timedelta(minutes=rng.randrange(DAYS * 24 * 60))
        known = made + timedelta(minutes=rng.randrange(24 * 60, 5 * 24 * 60))
        found.append((_written(made), _written(known)))
    return found


def _written(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def record(name: str, moment: tuple[str, str], data: Record, truth: Record) -> Record:
    """An inference with its ground truth."""
    return {
        "partner_inference_id": name,
        "inference_timestamp": moment[0],
        "inference_data": data,
        "ground_truth_timestamp": moment[1],
        "ground_truth_data": truth,
    }


def write_json(path: Path, body: Record) -> None:
    path.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")


def write_lines(path: Path, records: Iterable[Record]) -> None:
    lines = (json.dumps(record, separators=(",", ":")) + "\n" for record in records)
    path.write_text("".join(lines), encoding="utf-8")


def read_lines(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
