"""Calibration prompts, and answers in batches that are the model's own greedy ones."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from explainers.decoding import CompletionConfig, completing, outcome_of
from explainers.influence.generic import LONGEST, TOGETHER, answering, generic_prompts
from explainers.influence.levels import FEWEST_PROMPTS
from explainers.loaders import load_causal_lm
from explainers.types import TokenIds
from tests import tiny_models


def finished(work: Generator[None, None, Any]) -> Any:
    return outcome_of(work)


def test_the_prompts_are_many_and_different() -> None:
    prompts = generic_prompts()
    assert len(prompts) >= 200 > FEWEST_PROMPTS
    assert len(set(prompts)) == len(prompts)
    assert all(prompt == prompt.strip() and prompt for prompt in prompts)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt"])
def test_answers_in_batches_are_those_of_one_at_a_time(tmp_path: Path, family: str) -> None:
    model = load_causal_lm(tiny_models.save(tmp_path, family), "float32", "cpu")
    prompts = [(0, *range(5, 5 + length)) for length in (1, 7, 3, 30, 12)] * 4
    assert len(prompts) > TOGETHER
    found = finished(answering(model, prompts))
    assert found[:4] == found[5:9]
    for prompt, answer in list(zip(prompts, found, strict=True))[:5]:
        # The start token comes by itself.
        (alone,) = finished(completing(model, (TokenIds(prompt[1:]),), CompletionConfig(maximum_tokens=LONGEST))).items
        assert answer.ended == (alone.finish_reason == "end_of_text")
        assert answer.ids == tuple(alone.generated)[: len(answer.ids)]
        assert len(answer.ids) >= len(alone.generated) - 1
