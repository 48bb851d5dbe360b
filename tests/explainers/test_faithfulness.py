"""Removal curves: against the engine asked one by one, and what must hold whatever the scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from explainers.faithfulness import ORDERS, STEPS, Faithfulness, faithfulness
from explainers.language_model import LanguageModel
from explainers.methods.atman import attribute
from explainers.types import AtmanConfig, Attribution, Control, Prompt, Span, Text
from tests.explainers import brute_force, plain_rules

TEXT = "Anna lives in Oslo. Ben is in Rome"
PROMPT: Prompt = (Text(TEXT, (Control(Span(0, 4), 0.5),)),)
TARGET = " Oslo, Anna"
WORDS = AtmanConfig(granularity="word")


def judged(model: LanguageModel, attribution: Attribution, config: AtmanConfig = WORDS, seed: int = 7) -> Faithfulness:
    return faithfulness(model, PROMPT, TARGET, config, attribution, seed)


def with_values(attribution: Attribution, values: object) -> Attribution:
    return replace(attribution, values=np.array(values, dtype=float)[None])


@pytest.mark.parametrize("config", [WORDS, replace(WORDS, log_additive=False), replace(WORDS, control_factor=1.0)])
def test_drops_are_those_of_the_parts_removed_together(llama: LanguageModel, config: AtmanConfig) -> None:
    explained = attribute(llama, PROMPT, TARGET, config)
    found = judged(llama, explained, config)
    order = np.argsort(-explained.values[0], kind="stable")
    sequence = llama.encode(PROMPT, TARGET)

    def total(count: int) -> float:
        removed = [(0, Control(explained.features[column].place, 0.0)) for column in order[:count]]
        factors = plain_rules.factors(llama, PROMPT, TARGET, removed, overlap="partial", threshold=None)
        return float(brute_force.log_probabilities(llama, sequence, factors).sum())

    expected = [total(0) - total(count) for count in range(1, len(order) + 1)]
    assert found.removed == tuple(range(1, len(order) + 1))
    np.testing.assert_allclose(found.drops, expected, atol=1e-3)
    assert found.area == pytest.approx(np.mean(expected), abs=1e-3)
    assert found.score is not None and found.largest_area >= max(expected) - 1e-3
    chance = np.mean(found.random_areas)
    assert found.score == pytest.approx((found.area - chance) / (found.largest_area - chance))
    assert found.random_drops[-1] == pytest.approx(found.drops[-1], abs=1e-3)
    assert len(found.random_areas) == ORDERS and found.forwards > 1


def test_good_orders_are_better_than_bad_ones(llama: LanguageModel) -> None:
    explained = attribute(llama, PROMPT, TARGET, replace(WORDS, control_factor=0.0))
    good, bad = judged(llama, explained), judged(llama, with_values(explained, -explained.values[0]))
    assert good.score is not None and bad.score is not None
    assert good.score > bad.score
    assert good.score <= 1


def test_the_seed_decides_the_random_orders(llama: LanguageModel) -> None:
    explained = attribute(llama, PROMPT, TARGET, WORDS)
    assert judged(llama, explained) == judged(llama, explained)
    assert judged(llama, explained).random_areas != judged(llama, explained, seed=8).random_areas


def test_many_pieces_take_few_steps(llama: LanguageModel) -> None:
    prompt, config = (Text("Anna lives in Oslo. " * 20),), AtmanConfig(granularity="word")
    found = faithfulness(llama, prompt, TARGET, config, attribute(llama, prompt, TARGET, config), 7)
    assert len(found.removed) == STEPS and (found.removed[0], found.removed[-1]) == (1, 80)
    assert list(found.removed) == sorted(set(found.removed))


@pytest.mark.parametrize("prompt", [(), (Text(""),), (Text("Anna"),)])
def test_too_few_pieces_tell_nothing(llama: LanguageModel, prompt: Prompt) -> None:
    config = AtmanConfig(granularity="word", target_granularity="token")
    found = faithfulness(llama, prompt, TARGET, config, attribute(llama, prompt, TARGET, config), 7)
    assert found.score is None
    assert len(found.drops) <= 1


def test_target_tokens_are_not_removed(llama: LanguageModel) -> None:
    config = replace(WORDS, target_granularity="token")
    found = judged(llama, attribute(llama, PROMPT, TARGET, config), config)
    assert found.removed[-1] == len(TEXT.split())
