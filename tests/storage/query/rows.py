"""Random rows with nulls, and their models: the same data for Postgres and for pandas."""

from __future__ import annotations

import json
import math
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import psycopg
from numpy.typing import NDArray

from storage.query.schema import Attribute, Explainability, QueryModel

CITIES = ["Oslo", "oslo", "Älta", "Zug", "100%", "a_b"]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Rows:
    """`frame` has the attributes and system columns, NaN and None for null; scores are (n, K * M)."""

    model: QueryModel
    frame: pd.DataFrame
    reference: pd.DataFrame
    scores: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    tokens: list[dict[str, Any]] = field(default_factory=list)


def attributes(*specs: tuple[str, str, str, dict[str, Any]]) -> tuple[Attribute, ...]:
    """Attributes of name, stage and type, each with a slot of its own."""
    slots = {"number": 0, "text": 0}
    made = []
    for position, (name, stage, value_type, more) in enumerate(specs):
        kind: Any = "number" if value_type in {"FLOAT", "INTEGER", "BOOLEAN", "TIMESTAMP"} else "text"
        slots[kind] += 1
        made.append(Attribute(name, stage, value_type, position, kind, slots[kind], **more))
    return tuple(made)


def holes(generator: np.random.Generator, values: Any, share: float = 0.15) -> NDArray[Any]:
    out = np.array(values, dtype=object)
    out[generator.random(len(out)) < share] = None
    return out


@cache
def tabular(n: int = 300) -> Rows:
    generator = np.random.default_rng(5)
    model = QueryModel(
        uuid.UUID(int=7),
        attributes(
            ("income", "PIPELINE_INPUT", "FLOAT", {}),
            ("age", "PIPELINE_INPUT", "INTEGER", {}),
            ("city", "PIPELINE_INPUT", "STRING", {}),
            ("member", "PIPELINE_INPUT", "BOOLEAN", {}),
            ("since", "NON_INPUT_DATA", "TIMESTAMP", {}),
            ("tags", "NON_INPUT_DATA", "ARRAY(STRING)", {}),
            ("a", "PREDICTED_VALUE", "FLOAT", {"attribute_link": "gt_a", "gt_class_link": "1"}),
            ("b", "PREDICTED_VALUE", "FLOAT", {"attribute_link": "gt_b", "gt_class_link": "2"}),
            ("c", "PREDICTED_VALUE", "FLOAT", {"attribute_link": "gt_c", "gt_class_link": "3"}),
            ("gt_a", "GROUND_TRUTH", "INTEGER", {"implicit": True, "attribute_link": "a"}),
            ("gt_b", "GROUND_TRUTH", "INTEGER", {"implicit": True, "attribute_link": "b"}),
            ("gt_c", "GROUND_TRUTH", "INTEGER", {"implicit": True, "attribute_link": "c"}),
            ("klass", "GROUND_TRUTH_CLASS", "INTEGER", {}),
            ("truth", "GROUND_TRUTH", "FLOAT", {}),
        ),
        Explainability(enabled=True, algorithm="lime"),
        classifier_threshold=0.4,
    )
    frame = _inferences(generator, n) | _values(generator, n)
    klass = holes(generator, generator.integers(1, 4, n), 0.3)
    frame["klass"] = klass
    for place, name in enumerate(("gt_a", "gt_b", "gt_c"), start=1):
        frame[name] = [None if each is None else int(each == place) for each in klass]
    frame["ground_truth_timestamp"] = [None if each is None else EPOCH + timedelta(days=20600) for each in klass]
    scores = {}
    for algorithm in ("lime", "shap"):
        found = generator.normal(size=(n, 12))
        found[generator.random((n, 12)) < 0.1] = np.nan
        scores[algorithm] = found
    scores["shap"][100:] = np.inf  # not computed
    return Rows(model, pd.DataFrame(frame), pd.DataFrame(_values(generator, 50)), scores)


def _inferences(generator: np.random.Generator, n: int) -> dict[str, Any]:
    start = EPOCH + timedelta(days=20500)
    moments = [start + timedelta(milliseconds=int(each)) for each in generator.integers(0, 10 * 86_400_000, n)]
    return {
        "inference_id": [str(uuid.UUID(int=1000 + place)) for place in range(n)],
        "partner_inference_id": [f"u-{place}" for place in range(n)],
        "inference_timestamp": moments,
        "received_timestamp": [moment + timedelta(seconds=1) for moment in moments],
        "batch_id": holes(generator, generator.choice(["b1", "b2"], n)),
    }


def _values(generator: np.random.Generator, n: int) -> dict[str, Any]:
    tags = [json.dumps([str(tag) for tag in generator.choice(CITIES, size)]) for size in generator.integers(0, 4, n)]
    return {
        "income": holes(generator, generator.normal(2000, 700, n).round(1)),
        "age": holes(generator, generator.integers(18, 40, n)),
        "city": holes(generator, generator.choice(CITIES, n)),
        "member": holes(generator, generator.integers(0, 2, n).astype(bool)),
        "since": holes(generator, [EPOCH + timedelta(microseconds=int(x)) for x in generator.integers(0, 2**50, n)]),
        "tags": holes(generator, tags),
        **{name: holes(generator, generator.random(n).round(2), 0.05) for name in "abc"},
        "truth": holes(generator, generator.normal(size=n)),
    }


@cache
def text_rows() -> Rows:
    """Texts with two classes; the first is "call the fire fire smoke", the second empty, the third not explained."""
    model = QueryModel(
        uuid.UUID(int=8),
        attributes(
            ("note", "PIPELINE_INPUT", "UNSTRUCTURED_TEXT", {}),
            ("urgent", "PREDICTED_VALUE", "FLOAT", {"is_positive_predicted_attribute": True}),
            ("calm", "PREDICTED_VALUE", "FLOAT", {}),
        ),
        Explainability(enabled=True, algorithm="lime"),
    )
    texts = ["call the fire fire smoke", "", "quiet"]
    frame = _inferences(np.random.default_rng(1), 3)
    frame["partner_inference_id"] = ["n-9", "n-10", "n-11"]
    frame["inference_id"] = [str(uuid.UUID(int=5000 + place)) for place in range(3)]
    frame |= {"note": texts, "urgent": [0.9, 0.5, 0.1], "calm": [0.1, 0.5, 0.9], "ground_truth_timestamp": [None] * 3}
    frame["batch_id"] = [None] * 3
    up = [0.12, 0.0, 0.3, 0.41, None]
    down = [-0.12, 0.0, -0.3, -0.41, None]
    words = texts[0].split()
    tokens = [
        {"seq": 1, "algorithm": "lime", "tokens": words, "positions": list(range(5)), "scores": up + down},
        {"seq": 2, "algorithm": "lime", "tokens": [], "positions": [], "scores": []},
        {"seq": 1, "algorithm": "shap", "tokens": words, "positions": list(range(5)), "scores": [1.0] * 10},
    ]
    return Rows(model, pd.DataFrame(frame), pd.DataFrame(), {}, tokens)


@cache
def listed(n: int = 120) -> Rows:
    """Ranked lists beside what was relevant, tokens and their likelihoods; some are null, empty or of another form."""
    generator = np.random.default_rng(9)
    model = QueryModel(
        uuid.UUID(int=9),
        attributes(
            ("user", "PIPELINE_INPUT", "STRING", {}),
            ("best", "PREDICTED_VALUE", "RANKED_LIST", {"attribute_link": "liked"}),
            ("liked", "GROUND_TRUTH", "ARRAY(STRING)", {"attribute_link": "best"}),
            ("words", "NON_INPUT_DATA", "TOKENS", {}),
            ("chances", "NON_INPUT_DATA", "TOKEN_LIKELIHOODS", {}),
        ),
        explainability=None,
    )
    items = [f"item {letter}" for letter in "abcdefghij"] + ['é"\\']
    ranked: list[Any] = []
    liked: list[Any] = []
    for _ in range(n):
        order = generator.permutation(items)[: generator.integers(0, 9)]
        ranked.append([{"item_id": str(each), "score": 0.5, "label": "x"} for each in order])
        liked.append([str(each) for each in generator.permutation(items)[: generator.integers(0, 5)]])
    ranked[3] = [{"item_id": "item a"}, {"item_id": "item b"}, {"item_id": "item a"}, {"label": "nameless"}, 7, None]
    ranked[4] = {"item_id": "item a"}
    frame = _inferences(generator, n) | {"user": holes(generator, ["x", "y"] * (n // 2))}
    frame["inference_id"] = [str(uuid.UUID(int=7000 + place)) for place in range(n)]
    frame["ground_truth_timestamp"] = [None] * n
    words = [["call", "the", "é"], [], ["fire"]] * (n // 3)
    chances = [[{"call": 0.7}, {"the": 0.3, "a": 0.25}], [], {"not": "a list"}] * (n // 3)
    columns = {"best": ranked, "liked": liked, "words": words, "chances": chances}
    frame |= {name: holes(generator, [json.dumps(each) for each in column]) for name, column in columns.items()}
    frame["best"][3], frame["liked"][3] = json.dumps(ranked[3]), json.dumps(["item b", "item j", "item b"])
    return Rows(model, pd.DataFrame(frame), pd.DataFrame())


@cache
def boxed(n: int = 160) -> Rows:
    """Detections beside the boxes that people drew, on a coarse grid: many ties, some lists null or empty."""
    generator = np.random.default_rng(11)
    model = QueryModel(
        uuid.UUID(int=10),
        attributes(
            ("image", "PIPELINE_INPUT", "IMAGE", {}),
            ("camera", "NON_INPUT_DATA", "STRING", {}),
            ("found", "PREDICTED_VALUE", "BOUNDING_BOX", {"attribute_link": "drawn"}),
            ("drawn", "GROUND_TRUTH", "BOUNDING_BOX", {"attribute_link": "found"}),
        ),
        Explainability(enabled=True, algorithm="lime"),
    )

    def boxes(most: int, classes: int) -> list[list[Any]]:
        size = generator.integers(0, most)
        places = generator.integers(0, 5, (size, 4)) + np.array([0, 0, 1, 1])
        confidences = generator.integers(0, 11, size) / 10
        kinds = generator.integers(0, classes, size)
        rest = zip(kinds, confidences, places, strict=True)
        return [[int(kind), float(confidence), *map(int, place)] for kind, confidence, place in rest]

    found = [boxes(7, 4) for _ in range(n)]
    drawn = [boxes(6, 3) for _ in range(n)]
    drawn = [[[box[0], *box[2:]] for box in each] if place % 2 else each for place, each in enumerate(drawn)]
    found[5], drawn[6] = [[3, 1.0, 0.5, 0.5, 0.0, 0.0]], [[0, 0.5, 0.5, 0.0, 0.0], [4, 1, 0, 0, 4, 4]]
    frame = _inferences(generator, n) | {"image": [f"{place}.png" for place in range(n)]}
    frame["inference_id"] = [str(uuid.UUID(int=9000 + place)) for place in range(n)]
    frame["ground_truth_timestamp"] = [None] * n
    frame["camera"] = holes(generator, ["north", "south"] * (n // 2))
    columns = {"found": found, "drawn": drawn}
    frame |= {name: holes(generator, [json.dumps(each) for each in column]) for name, column in columns.items()}
    return Rows(model, pd.DataFrame(frame), pd.DataFrame({"found": frame["found"][:9]}))


def register(opened: psycopg.Connection[Any], model: QueryModel, tenant: str) -> None:
    """Makes the tenant and the model that rows belong to, unless they are there; the connection is the tenant's."""
    opened.execute("SELECT set_config('whence.tenant', %s, false)", [tenant])
    opened.execute("INSERT INTO tenants (id) VALUES (%s) ON CONFLICT DO NOTHING", [tenant])
    opened.execute(
        "INSERT INTO monitored_models (id, partner_model_id, input_type, output_type, status, is_batch, definition)"
        " VALUES (%s, %s, 'TABULAR', 'MULTICLASS', 'Ready', false, '{}') ON CONFLICT DO NOTHING",
        [model.id, str(model.id)],
    )


def fill(opened: psycopg.Connection[Any], rows: Rows, tenant: str = "t") -> None:
    """Stores them for a tenant, the first with number 1."""
    model = rows.model
    register(opened, model, tenant)
    for seq, row in enumerate(rows.frame.to_dict("records"), start=1):
        opened.execute(
            "INSERT INTO inferences (model_id, seq, id, partner_inference_id, inference_timestamp, received_timestamp,"
            " batch_id, ground_truth_timestamp, numbers, texts) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                model.id,
                seq,
                row["inference_id"],
                row["partner_inference_id"],
                row["inference_timestamp"],
                row["received_timestamp"],
                given(row["batch_id"]),
                given(row["ground_truth_timestamp"]),
                *cells(model, row),
            ],
        )
    for seq, row in enumerate(rows.reference.to_dict("records"), start=1):
        insert = "INSERT INTO reference_rows (model_id, seq, numbers, texts) VALUES (%s, %s, %s, %s)"
        opened.execute(insert, [model.id, seq, *cells(model, row)])
    for algorithm, scores in rows.scores.items():
        for seq, values in enumerate(scores, start=1):
            if not np.isinf(values).any():
                found = [given(each) for each in values.tolist()]
                insert = (
                    "INSERT INTO inference_scores (model_id, seq, algorithm, fingerprint, scores, errors, fit, facts)"
                    " VALUES (%s, %s, %s, 0, %s, %s, %s, %s)"
                )
                errors = [abs(each or 0.0) for each in found]
                facts = json.dumps({"n_samples": 500 + seq} if algorithm == "lime" else {"method": "exact"})
                opened.execute(insert, [model.id, seq, algorithm, found, errors, [0.1, 0.2, 0.3], facts])
    for each in rows.tokens:
        scored = (
            "INSERT INTO inference_scores (model_id, seq, algorithm, fingerprint, scores, facts)"
            " VALUES (%s, %s, %s, 0, '{}', '{}')"
        )
        opened.execute(scored, [model.id, each["seq"], each["algorithm"]])
        insert = (
            "INSERT INTO inference_tokens"
            " (model_id, attribute, fingerprint, facts, seq, algorithm, tokens, positions, scores)"
            " VALUES (%s, 'note', 0, '{}', %s, %s, %s, %s, %s)"
        )
        opened.execute(insert, [model.id, *each.values()])


def cells(model: QueryModel, row: dict[str, Any]) -> tuple[list[float | None], list[str | None]]:
    numbers: list[float | None] = []
    texts: list[str | None] = []
    for each in model.attributes:
        value = given(row.get(each.name))
        if each.slot_kind == "text":
            texts.append(value)
        elif isinstance(value, datetime):
            numbers.append(float((value - EPOCH) // timedelta(microseconds=1)))
        else:
            numbers.append(None if value is None else float(value))
    return numbers, texts


def given(value: Any) -> Any:
    """None for every kind of missing value."""
    missing = value is None or value is pd.NaT or (isinstance(value, float) and math.isnan(value))
    return None if missing else value
