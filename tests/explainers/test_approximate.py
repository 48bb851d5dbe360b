"""The approximate methods: near the exact scores where these are small changes, and of the same form everywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from explainers.errors import InvalidRequest
from explainers.language_model import LanguageModel
from explainers.methods import atman, gradient, screened
from explainers.registry import METHODS
from explainers.types import AtmanConfig, Control, Prompt, ScreenedConfig, Span, Text, TokenIds

TEXT = "Anna lives in Oslo. Ben is in Rome. The key is in the red box."
PROMPT: Prompt = (Text(TEXT, (Control(Span(0, 4), 0.7),)), TokenIds((260, 270, 260)))
TARGET = " Oslo, Anna"
APPROXIMATE = [name for name, method in METHODS.items() if method.approximate]


@pytest.mark.parametrize("threshold", [None, 0.2])
@pytest.mark.parametrize("log_additive", [True, False])
@pytest.mark.parametrize("target_granularity", ["complete", "token"])
def test_gradient_agrees_with_the_exact_scores_of_small_changes(
    llama: LanguageModel, threshold: float | None, log_additive: bool, target_granularity: Any
) -> None:
    config = AtmanConfig(0.999, log_additive, threshold, "word", target_granularity=target_granularity)
    prompt = PROMPT if threshold is None else (Text(TEXT), PROMPT[1])  # an own control's similar tokens may jump
    exact = atman.attribute(llama, prompt, TARGET, config).values
    found = gradient.attribute(llama, prompt, TARGET, config).values
    np.testing.assert_allclose(found, exact, atol=0.02 * np.abs(exact).max())


@pytest.mark.parametrize("factor", [0.0, 0.1, 3.0])
@pytest.mark.parametrize("log_additive", [True, False])
def test_gradient_ranks_like_the_exact_scores(llama: LanguageModel, factor: float, log_additive: bool) -> None:
    config = AtmanConfig(factor, log_additive, granularity="word")
    exact = atman.attribute(llama, PROMPT, TARGET, config).values[0]
    found = gradient.attribute(llama, PROMPT, TARGET, config).values[0]
    assert np.isfinite(found).all()
    assert np.corrcoef(found.argsort().argsort(), exact.argsort().argsort())[0, 1] > 0.4


def test_screened_with_all_pieces_exact_is_exact(llama: LanguageModel) -> None:
    for config in (ScreenedConfig(exact=99), ScreenedConfig(exact=99, target_granularity="token", normalize=True)):
        exact = atman.attribute(llama, PROMPT, TARGET, config)
        found = screened.attribute(llama, PROMPT, TARGET, config)
        np.testing.assert_allclose(found.values, exact.values, atol=1e-4)
        assert found.facts["exact"] == [True] * len(found.features)


@pytest.mark.parametrize("target_granularity", ["complete", "token"])
def test_screened_scores_the_largest_exactly_and_scales_the_others(
    llama: LanguageModel, target_granularity: Any
) -> None:
    config = ScreenedConfig(granularity="word", target_granularity=target_granularity, exact=3)
    exact = atman.attribute(llama, PROMPT, TARGET, config)
    first_order = gradient.attribute(llama, PROMPT, TARGET, config)
    found = screened.attribute(llama, PROMPT, TARGET, config)
    chosen = np.array(found.facts["exact"])
    assert chosen.sum() == 3
    sizes = np.abs(first_order.values).sum(axis=0)
    assert sizes[chosen].min() >= sizes[~chosen].max()
    np.testing.assert_allclose(found.values[:, chosen], exact.values[:, chosen], atol=1e-4)
    scaled = first_order.values[:, ~chosen] * found.facts["scale"]
    np.testing.assert_allclose(found.values[:, ~chosen], scaled, atol=1e-6)
    assert found.facts["scale"] > 0


def test_at_least_one_piece_is_exact(llama: LanguageModel) -> None:
    with pytest.raises(InvalidRequest, match="at least one"):
        screened.attribute(llama, PROMPT, TARGET, ScreenedConfig(exact=0))


@pytest.mark.parametrize("method", APPROXIMATE)
@pytest.mark.parametrize("target_granularity", ["complete", "token"])
@pytest.mark.parametrize("postprocessing", ["none", "absolute"])
def test_same_form_as_the_exact_method(
    llama: LanguageModel, method: str, target_granularity: Any, postprocessing: Any
) -> None:
    options = {"granularity": "word", "target_granularity": target_granularity, "postprocessing": postprocessing}
    exact = atman.attribute(llama, PROMPT, TARGET, AtmanConfig(**options))
    served = METHODS[method]
    found = served.attribute(llama, PROMPT, TARGET, served.config(**options), lambda: None)
    assert (found.features, found.targets) == (exact.features, exact.targets)
    assert found.values.shape == exact.values.shape
    assert found.base_values is not None and exact.base_values is not None
    np.testing.assert_allclose(found.base_values, exact.base_values, atol=1e-4)
    assert found.method == method
    assert json.loads(json.dumps(found.facts))["seconds"] > 0
    assert postprocessing == "none" or (found.values >= 0).all()


@pytest.mark.parametrize("method", APPROXIMATE)
@pytest.mark.parametrize("target_granularity", ["complete", "token"])
@pytest.mark.parametrize("prompt", [(), (Text(""),), (Text("Anna"),)])
def test_empty_and_single_prompts(llama: LanguageModel, method: str, prompt: Prompt, target_granularity: Any) -> None:
    served = METHODS[method]
    config = served.config(target_granularity=target_granularity, normalize=True)
    found = served.attribute(llama, prompt, TARGET, config, lambda: None)
    assert np.isfinite(found.values).all()


@pytest.mark.parametrize("method", APPROXIMATE)
def test_a_factor_of_one_scores_nothing(any_model: LanguageModel, method: str) -> None:
    served = METHODS[method]
    for additive in (True, False):
        config = replace(served.config(), control_factor=1.0, log_additive=additive)
        assert (served.attribute(any_model, PROMPT, TARGET, config, lambda: None).values == 0).all()


@pytest.mark.parametrize("method", APPROXIMATE)
def test_the_same_request_gives_the_same_bits(llama: LanguageModel, method: str) -> None:
    served = METHODS[method]
    config = served.config(threshold=0.2, target_granularity="token")
    first, second = (served.attribute(llama, PROMPT, TARGET, config, lambda: None).values for _ in range(2))
    assert (first == second).all()
