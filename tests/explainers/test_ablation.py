"""Context attribution: the fit, its standard errors, and the same form as the other methods."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from explainers.language_model import LanguageModel
from explainers.methods import ablation, atman
from explainers.types import AblationConfig, AtmanConfig, Prompt, Text

PROMPT: Prompt = (Text("Anna lives in Oslo. Ben is in Rome. The key is in the red box."),)
TARGET = " Oslo, Anna"
WORDS = AblationConfig(granularity="word")


def test_a_line_is_found_with_its_errors() -> None:
    generator = np.random.default_rng(0)
    removed, slopes = generator.integers(0, 2, (400, 6)).astype(float), np.array([3.0, -1, 0, 0, 0.5, 2])
    losses = (removed @ slopes + generator.normal(0, 0.3, 400))[:, None]
    found, errors = ablation._fitted(removed, losses)
    assert (np.abs(found[0] - slopes) < 4 * errors[0] + 0.01).all()
    np.testing.assert_allclose(errors, 2 * 0.3 / np.sqrt(400), rtol=0.2)


def test_one_piece_is_its_removal(llama: LanguageModel) -> None:
    config = AblationConfig(granularity="paragraph")
    exact = atman.attribute(llama, PROMPT, TARGET, AtmanConfig(0.0, granularity="paragraph"))
    assert ablation.attribute(llama, PROMPT, TARGET, config).values == pytest.approx(exact.values, rel=0.02)


def test_more_samples_err_less(llama: LanguageModel) -> None:
    few, many = (ablation.attribute(llama, PROMPT, TARGET, replace(WORDS, samples=n)) for n in (64, 1024))
    assert few.uncertainty is not None and many.uncertainty is not None
    assert np.median(many.uncertainty) < 0.5 * np.median(few.uncertainty)
    off = np.abs(few.values - many.values)
    assert (off < 3 * few.uncertainty + 3 * many.uncertainty).mean() > 0.85


@pytest.mark.parametrize("prompt", [(), (Text(""),), (Text("Anna"),), PROMPT])
@pytest.mark.parametrize("samples", [8, 9])
def test_any_prompt(llama: LanguageModel, prompt: Prompt, samples: int) -> None:
    config = AblationConfig(granularity="token", target_granularity="token", samples=samples)
    found = ablation.attribute(llama, prompt, TARGET, config)
    exact = atman.attribute(llama, prompt, TARGET, AtmanConfig(granularity="token", target_granularity="token"))
    assert (found.features, found.targets) == (exact.features, exact.targets)
    assert found.uncertainty is not None and found.uncertainty.shape == found.values.shape
    assert np.isfinite(found.values).all() and np.isfinite(found.uncertainty).all()
    assert (found.values[exact.values == 0] == 0).all()
    assert (ablation.attribute(llama, prompt, TARGET, config).values == found.values).all()


def test_complete_is_the_sum_over_target_tokens(llama: LanguageModel) -> None:
    whole = ablation.attribute(llama, PROMPT, TARGET, replace(WORDS, postprocessing="none"))
    assert whole.values.shape[0] == 1 and whole.facts["samples"] == 64
