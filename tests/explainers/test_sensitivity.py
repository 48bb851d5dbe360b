"""Derivatives: against finite differences of the exact engine, on every family; and nothing is left behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from explainers import attention_control
from explainers.language_model import LanguageModel, TokenSequence
from explainers.loaders import load_image_text_lm
from explainers.sensitivity import Sensitivity, sensitivity
from explainers.suppression import log_probabilities
from explainers.types import Image, Text
from tests import tiny_models
from tests.explainers import plain_images

STEP = 1e-3


def asked(model: LanguageModel, repeats: int = 1) -> TokenSequence:
    return model.encode((Text("Anna lives in Oslo. Ben is in Rome. " * repeats),), " Oslo, Anna")


def differences(
    model: LanguageModel, sequence: TokenSequence, base: NDArray[np.float64], log_additive: bool
) -> NDArray[np.float64]:  # (T, S)
    """Central differences: every column's factor a little larger and a little smaller."""
    moved = []
    for column in range(base.size):
        for sign in (1, -1):
            factors = base.copy()
            factors[column] = base[column] * np.exp(sign * STEP) if log_additive else base[column] + sign * STEP
            moved.append(factors)
    found = log_probabilities(model, sequence, base, moved, log_additive=log_additive).variants
    return (found[0::2] - found[1::2]).T / (2 * STEP)


@pytest.mark.parametrize("log_additive", [True, False])
def test_derivatives_equal_finite_differences(any_model: LanguageModel, log_additive: bool) -> None:
    """Sliding windows, soft-capping, sinks and experts included. A step may cross the edge of a ReLU or of the choice
    of an expert, where there is no derivative: a few numbers may be off."""
    sequence = asked(any_model)
    base = np.ones(sequence.positions)
    base[3], base[5], base[7] = 0.5, 0.0, 2.0
    found = sensitivity(any_model, sequence, base, log_additive=log_additive, per_token=True)
    expected = differences(any_model, sequence, base, log_additive)
    exact = log_probabilities(any_model, sequence, base, [], log_additive=log_additive).base
    np.testing.assert_allclose(found.base, exact, atol=1e-4)
    off = np.abs(found.gradients - expected) / max(1.0, np.abs(expected).max())
    assert found.gradients.shape == expected.shape
    assert np.quantile(off, 0.9) < 5e-3
    assert np.quantile(off, 0.97) < 2e-2


@pytest.mark.parametrize("log_additive", [True, False])
def test_one_pass_back_gives_the_sum_over_the_target(any_model: LanguageModel, log_additive: bool) -> None:
    sequence = asked(any_model)
    base = np.ones(sequence.positions)
    parts = sensitivity(any_model, sequence, base, log_additive=log_additive, per_token=True)
    whole = sensitivity(any_model, sequence, base, log_additive=log_additive, per_token=False)
    scale = max(1.0, float(np.abs(parts.gradients).max()))
    np.testing.assert_allclose(whole.gradients[0], parts.gradients.sum(axis=0), atol=1e-4 * scale)
    assert (parts.forwards, parts.backwards) == (1, len(sequence.target))
    assert (whole.forwards, whole.backwards) == (1, 1)


def test_no_target_token_depends_on_itself_or_later_ones(any_model: LanguageModel) -> None:
    sequence = asked(any_model)
    found = sensitivity(any_model, sequence, np.ones(sequence.positions), log_additive=True, per_token=True)
    for token, row in enumerate(found.gradients):
        assert (row[sequence.first_scored + 1 + token :] == 0).all()
        assert (row[1 : sequence.first_scored] != 0).any()


def test_a_common_factor_cancels(llama: LanguageModel) -> None:
    """Softmax does not see what all columns share, so the derivatives of each row's columns add up to nothing."""
    sequence = asked(llama, repeats=3)
    found = sensitivity(llama, sequence, np.ones(sequence.positions), log_additive=True, per_token=True)
    np.testing.assert_allclose(found.gradients.sum(axis=1), 0, atol=1e-4)


def test_the_model_stays_as_it_was(any_model: LanguageModel) -> None:
    before = {name: tensor.clone() for name, tensor in any_model.network.state_dict().items()}
    sequence = asked(any_model)
    exact = log_probabilities(any_model, sequence, np.ones(sequence.positions), [], log_additive=True).base
    sensitivity(any_model, sequence, np.ones(sequence.positions), log_additive=True, per_token=True)
    again = log_probabilities(any_model, sequence, np.ones(sequence.positions), [], log_additive=True).base
    assert (exact == again).all()
    assert all(torch.equal(before[name], tensor) for name, tensor in any_model.network.state_dict().items())
    assert all(weight.grad is None and not weight.requires_grad for weight in any_model.network.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in any_model.network.modules())
    assert any_model.network.config._attn_implementation == attention_control.IMPLEMENTATION


def test_work_can_be_stopped_between_passes(llama: LanguageModel) -> None:
    calls = []

    def stop_at_the_third() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise InterruptedError

    sequence = asked(llama)
    with pytest.raises(InterruptedError):
        sensitivity(
            llama,
            sequence,
            np.ones(sequence.positions),
            log_additive=True,
            per_token=True,
            checkpoint=stop_at_the_third,
        )
    assert len(calls) == 3


def test_steps_are_logarithms_unless_a_column_is_removed() -> None:
    found = Sensitivity(np.zeros(1), np.array([[1.0, 10.0, 100.0, 0.0]]), 1, 1, 4)
    base = np.array([1.0, 2.0, 1.0, 0.0])
    damped, removed, revived = base * [1, 0.5, 1, 1], base * [0.5, 1, 0, 1], np.array([1.0, 2.0, 1.0, 0.3])
    predicted = found.predicted(base, [damped, removed, revived, base], log_additive=True)
    np.testing.assert_allclose(predicted, [[-10 * np.log(0.5), 0.5 + 100, 0, 0]])
    np.testing.assert_allclose(found.predicted(base, [removed], log_additive=False), [[0.5 + 100]])
    assert found.predicted(base, [], log_additive=True).shape == (1, 0)


@pytest.mark.parametrize("family", list(tiny_models.IMAGE_FAMILIES))
def test_derivatives_reach_visual_tokens(family: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = load_image_text_lm(tiny_models.save_image_text(tmp_path_factory.mktemp("models") / family, family))
    sequence = model.encode((Text("Ben"), Image(plain_images.png(30, 50, 2)), Text(" lives in ")), " Oslo")
    base = np.ones(sequence.positions)
    base[4] = 0.5
    found = sensitivity(model, sequence, base, log_additive=True, per_token=True).gradients
    off = np.abs(found - differences(model, sequence, base, log_additive=True))
    assert np.quantile(off, 0.95) < 5e-3 * max(1.0, np.abs(found).max())
