"""The shipped demo model does what its card says, as seen through the server's own engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from explainers.context import ContextQuestion
from explainers.context import attribute as attribute_context
from explainers.language_model import LanguageModel
from explainers.loaders import load_causal_lm
from explainers.methods.atman import attribute
from explainers.types import AtmanConfig, Attribution, Span, Text

DEMO = Path(__file__).parents[1] / "demo"
RECALLS: list[dict[str, Any]] = [
    json.loads(line) for line in (DEMO / "data" / "recall_heldout.jsonl").read_text(encoding="utf-8").splitlines()
]


@pytest.fixture(scope="module")
def demo_lm() -> LanguageModel:
    return load_causal_lm(DEMO / "models" / "demo-lm")


@pytest.fixture(scope="module")
def explained(demo_lm: LanguageModel) -> list[Attribution]:
    config = AtmanConfig(granularity="sentence")
    return [attribute(demo_lm, (Text(recall["prompt"]),), recall["target"], config) for recall in RECALLS]


def decisive(recall: dict[str, Any], attribution: Attribution) -> list[bool]:
    """Which of the chunks is the sentence that the answer follows from."""
    start, stop = recall["span"]
    return [overlap(feature.place, start, stop) for feature in attribution.features]


def overlap(place: object, start: int, stop: int) -> bool:
    return isinstance(place, Span) and place.start < stop and start < place.stop


def test_there_are_a_hundred_prompts_of_four_to_ten_facts() -> None:
    assert len(RECALLS) == 100
    assert {4, 10} <= {len(recall["facts"]) for recall in RECALLS}


def test_the_model_answers_right(explained: list[Attribution]) -> None:
    """The whole right answer is more likely than everything else together."""
    likely = [
        attribution.base_values is not None and attribution.base_values[0] > np.log(0.5) for attribution in explained
    ]
    assert sum(likely) >= 95


def test_the_decisive_sentence_comes_first(explained: list[Attribution]) -> None:
    """Of all sentences, the question included."""
    first = [
        decisive(recall, attribution)[int(attribution.values[0].argmax())]
        for recall, attribution in zip(RECALLS, explained, strict=True)
    ]
    assert sum(first) >= 98


def test_facts_that_do_not_matter_score_about_nothing(explained: list[Attribution]) -> None:
    others = [
        abs(value)
        for recall, attribution in zip(RECALLS, explained, strict=True)
        for value, own in zip(attribution.values[0], decisive(recall, attribution), strict=True)
        if not own
    ]
    assert np.median(others) < 0.02
    assert np.quantile(others, 0.95) < 0.3


def test_the_context_attributor_finds_the_decisive_sentence(demo_lm: LanguageModel) -> None:
    """Text of facts is left out, and the answer read again behind what is kept."""
    first = []
    for recall in RECALLS[:20]:
        end = recall["prompt"].rindex(recall["facts"][-1]) + len(recall["facts"][-1])
        context, query = recall["prompt"][:end], recall["prompt"][end:].strip()
        found = attribute_context(demo_lm, ContextQuestion(context, query, recall["target"]))
        first.append(decisive(recall, found)[int(found.values[0].argmax())])
    assert sum(first) >= 19
