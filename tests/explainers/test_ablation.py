"""Context attribution: the fit, its standard errors, and the same form as the other methods."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from explainers.language_model import LanguageModel
from explainers.methods import ablation, atman
from explainers.plan import plan
from explainers.types import AblationConfig, AtmanConfig, Prompt, Text

PROMPT: Prompt = (Text("Anna lives in Oslo. Ben is in Rome. The key is in the red box."),)
TARGET = " Oslo, Anna"
WORDS = AblationConfig(granularity="word")


def test_a_line_is_found_with_its_errors() -> None:
    generator = np.random.default_rng(0)
    removed, slopes = generator.integers(0, 2, (400, 6)).astype(float), np.array([3.0, -1, 0, 0, 0.5, 2])
    losses = (removed @ slopes + generator.normal(0, 0.3, 400))[:, None]
    fit = ablation._fitted(removed, losses)
    errors = fit.reach * np.sqrt((fit.left**2).sum() / fit.freedom)
    assert (np.abs(fit.slopes[0] - slopes) < 4 * errors + 0.01).all()
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


def test_errors_are_in_the_unit_of_the_scores(llama: LanguageModel) -> None:
    config = replace(WORDS, target_granularity="token")
    plain, absolute, square = (
        ablation.attribute(llama, PROMPT, TARGET, replace(config, postprocessing=name))
        for name in ("none", "absolute", "square")
    )
    assert plain.uncertainty is not None and absolute.uncertainty is not None and square.uncertainty is not None
    np.testing.assert_allclose(absolute.uncertainty, plain.uncertainty, rtol=1e-9)
    np.testing.assert_allclose(square.uncertainty, 2 * np.abs(plain.values) * plain.uncertainty, rtol=1e-9)


def test_the_lowest_of_normalised_scores_has_an_error_too(llama: LanguageModel) -> None:
    plain, normal = (ablation.attribute(llama, PROMPT, TARGET, replace(WORDS, normalize=n)) for n in (False, True))
    assert plain.uncertainty is not None and normal.uncertainty is not None
    np.testing.assert_allclose(normal.uncertainty, plain.uncertainty / np.ptp(plain.values), rtol=1e-9)
    assert normal.values.min() == 0 and normal.uncertainty.min() > 0


def test_the_error_of_a_sum_is_that_of_the_fitted_sum(llama: LanguageModel) -> None:
    asked = plan(llama, PROMPT, TARGET, replace(WORDS, postprocessing="square"))
    generator, (pieces, tokens) = np.random.default_rng(0), (len(asked.chunks), len(asked.sequence.target))
    removed = generator.integers(0, 2, (200, pieces)).astype(float)
    losses = removed @ generator.normal(size=(pieces, tokens)) + generator.normal(size=(200, 1))  # shared by tokens
    fit = ablation._fitted(removed, losses)
    for piece, error in enumerate(ablation._errors(asked, fit)[0]):
        summed = ablation._fitted(removed, losses @ (2 * fit.slopes[:, [piece]]))
        assert error == pytest.approx(summed.reach[piece] * np.sqrt((summed.left**2).sum() / summed.freedom), rel=1e-9)
