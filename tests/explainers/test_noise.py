"""The noise floor: nothing in exact arithmetic, about the true error in coarse arithmetic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from explainers.language_model import LanguageModel
from explainers.loaders import load_causal_lm
from explainers.methods import atman
from explainers.noise import SHIFTS, noise_floor
from explainers.plan import plan
from explainers.registry import METHODS
from explainers.types import AtmanConfig, Attribution, Control, Prompt, Span, Text
from tests import tiny_models

TEXT = "Anna lives in Oslo. Ben is in Rome. The key is in the red box."
PROMPT: Prompt = (Text(TEXT, (Control(Span(0, 4), 0.5),)),)
TARGET = " Oslo, Anna"
WORDS = AtmanConfig(granularity="word")


def explained(model: LanguageModel, config: AtmanConfig, method: str = "atman") -> tuple[Attribution, Any]:
    asked = plan(model, PROMPT, TARGET, config)
    found = METHODS[method].explain(asked, lambda: None)
    return found, noise_floor(METHODS[method].explain, asked, found)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factor", [0.0, 0.1, 3.0])
@pytest.mark.parametrize("log_additive", [True, False])
def test_single_precision_is_quiet(llama: LanguageModel, method: str, factor: float, log_additive: bool) -> None:
    found, noise = explained(llama, replace(WORDS, control_factor=factor, log_additive=log_additive), method)
    assert noise.floor.shape == found.values.shape
    assert (noise.floor >= 0).all() and noise.floor.max() < 0.01 * np.abs(found.values).max()
    assert noise.forwards >= len(SHIFTS)


def test_what_is_true_change_is_no_noise(any_model: LanguageModel) -> None:
    """Every family: removed columns, own controls and sinks shift the scores smoothly."""
    found, noise = explained(any_model, WORDS)
    assert np.median(noise.floor) < 1e-3 * max(1.0, float(np.abs(found.values).max()))


@pytest.mark.parametrize("factor", [0.0, 0.1])
def test_coarse_arithmetic_is_as_noisy_as_said(tmp_path: Path, factor: float) -> None:
    """In bfloat16 the floor is of the size of the scores' true error, and covers most of it."""
    folder = tiny_models.save(tmp_path / "coarse", initializer_range=0.1)
    coarse = load_causal_lm(folder, "bfloat16")
    network = load_causal_lm(folder).network
    network.load_state_dict(coarse.network.state_dict())  # the same rounded weights, in float32 arithmetic
    config = replace(WORDS, control_factor=factor)
    found, noise = explained(coarse, config)
    error = np.abs(found.values - atman.attribute(replace(coarse, network=network), PROMPT, TARGET, config).values)
    assert 0.3 < np.median(noise.floor) / np.median(error) < 30
    assert (error <= noise.floor).mean() > 0.7


def test_the_same_request_has_the_same_floor(llama: LanguageModel) -> None:
    config = replace(WORDS, target_granularity="token", normalize=True)
    assert (explained(llama, config)[1].floor == explained(llama, config)[1].floor).all()
    assert np.isfinite(explained(llama, config)[1].floor).all()
