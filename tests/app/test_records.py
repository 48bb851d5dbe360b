"""Nothing is lost on the way through JSON."""

from __future__ import annotations

import json

import numpy as np

from app.records import attribution_from, attribution_record, digest_of, request_from, request_record
from explainers.registry import METHODS
from explainers.types import (
    AtmanConfig,
    Attribution,
    Control,
    Feature,
    Image,
    Prompt,
    Span,
    Target,
    Text,
    Tile,
    TokenIds,
)

PROMPT: Prompt = (
    Text("a\x00b 👩‍👧 \u2028", (Control(Span(0, 2), 0.1, "complete"), Control(Span(1, 1), 1e-300))),
    TokenIds((3, 0, 7), (Control(2, 3.0),)),
    Image(bytes(range(256)), (Control(Tile(0.1, 0.2, 0.3, 1 / 3), 0.0, "partial"),)),
    Image(b"other", cropped=True),
)


def through_json(value: object) -> dict[str, object]:
    found: dict[str, object] = json.loads(json.dumps(value, allow_nan=False))
    return found


def test_request() -> None:
    config = AtmanConfig(threshold=0.0, granularity="custom", delimiter="\x00|", normalize=True)
    record = through_json(request_record("atman", PROMPT, " t\x00", config))
    assert request_from(record) == ("atman", PROMPT, " t\x00", config)
    for name, method in METHODS.items():
        record = through_json(request_record(name, PROMPT, " t", method.config()))
        assert request_from(record) == (name, PROMPT, " t", method.config())


def test_attribution() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 3)) * np.array([1e-300, 1.0, 1e300])
    values[0, 0] = -0.0
    features = (Feature("a\x00", 0, Span(0, 2)), Feature("7", 1, 2), Feature("t", 2, Tile(0, 0, 1 / 3, 1)))
    targets = (Target(" x", Span(0, 2)), Target("class"))
    whole = Attribution("atman", features, targets, values, values[:, 0], np.abs(values), {"warnings": ["w"], "n": 1})
    found = attribution_from(through_json(attribution_record(whole)))
    assert (found.method, found.features, found.targets, found.facts) == (
        whole.method, whole.features, whole.targets, whole.facts,
    )  # fmt: skip
    assert found.values.tobytes() == values.tobytes()
    assert found.base_values is not None and found.base_values.tobytes() == np.ascontiguousarray(values[:, 0]).tobytes()
    assert found.uncertainty is not None and np.array_equal(found.uncertainty, np.abs(values))


def test_no_features() -> None:
    empty = Attribution("atman", (), (Target("x"),), np.zeros((1, 0)))
    found = attribution_from(through_json(attribution_record(empty)))
    assert found.values.shape == (1, 0) and found.base_values is None and found.uncertainty is None


def test_digest_ignores_order_and_nothing_else() -> None:
    assert digest_of("m", {"a": 1, "b": [{"c": 2, "d": 3}]}) == digest_of("m", {"b": [{"d": 3, "c": 2}], "a": 1})
    others = [digest_of("n", {"a": 1}), digest_of("m", {"a": 2}), digest_of("m", {"a": None}), digest_of("m", {})]
    assert len({digest_of("m", {"a": 1}), *others}) == 5
    assert len(digest_of("m")) == 32
