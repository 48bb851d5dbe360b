"""Figures of merit and the formulas of the other methods, each against a plain way to get the same number."""

from __future__ import annotations

from math import log
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.influence import baselines, metrics
from benchmarks.influence.gradients import Passes, Seen

SCORES = np.array([[0.9, 0.1, 0.8, 0.2], [0.1, 0.9, 0.3, 0.2]])
RELEVANT = np.array([[True, False, False, True], [False, False, True, True]])


def test_ranking_figures_by_hand() -> None:
    assert metrics.ranks(SCORES).tolist() == [[1, 4, 2, 3], [4, 1, 2, 3]]
    assert metrics.reciprocal_ranks(SCORES, RELEVANT).tolist() == [1, 0.5]
    assert metrics.recalls(SCORES, RELEVANT, 2).tolist() == [0.5, 0.5]
    assert metrics.r_precisions(SCORES, RELEVANT).tolist() == [0.5, 0.5]
    assert metrics.areas(SCORES, RELEVANT).tolist() == [0.75, 0.5]
    assert metrics.shares_at_top(SCORES, np.array([True, True, False, False]), 2).tolist() == [0.5, 0.5]


def test_equal_scores_tell_nothing() -> None:
    relevant = np.zeros((1, 1000), dtype=bool)
    relevant[0, :100] = True
    assert metrics.areas(np.zeros((1, 1000)), relevant) == 0.5
    assert metrics.r_precisions(np.zeros((1, 1000)), relevant)[0] < 0.3


def test_a_perfect_forecast_has_an_lds_of_one() -> None:
    draw = np.random.default_rng(0)
    scores, held = draw.normal(size=(5, 40)), draw.random((30, 40)) < 0.5
    losses = 3 - held.astype(float) @ scores.T
    assert metrics.datamodelling(scores, held, losses).value == pytest.approx(1)
    assert metrics.datamodelling(-scores, held, losses).value == pytest.approx(-1)
    by_chance = metrics.datamodelling(draw.normal(size=(5, 40)), held, losses)
    assert abs(by_chance.value) < 0.4
    assert by_chance.over_retrainings is not None


def test_runs_that_agree_leave_no_noise_and_more_runs_leave_less() -> None:
    draw = np.random.default_rng(0)
    truth, noise = draw.normal(size=(1, 400, 3)), draw.normal(size=(8, 400, 3))
    assert metrics.agreement(np.repeat(truth, 2, 0)).value == pytest.approx(1)
    assert metrics.ceiling(np.repeat(truth, 2, 0)) == pytest.approx(1)
    for runs in (2, 8):
        losses = truth + noise[:runs]
        reached = metrics.correlations(truth[0], losses.mean(0)).mean()
        assert metrics.ceiling(losses) == pytest.approx(reached, abs=0.03)
    assert metrics.agreement(truth + noise[:2]).value == pytest.approx(0.48, abs=0.06)  # Spearman's, of .5


def test_the_first_hundredth_is_removed() -> None:
    scores = np.arange(300.0)[None]
    assert [removed.tolist() for removed in metrics.removals(scores)] == [[297, 298, 299]]
    assert metrics.empty_rate([0, 3, 0, 1]) == 0.5


def test_bm25_by_hand() -> None:
    pairs = (SimpleNamespace(question="a b", answer="c"), SimpleNamespace(question="a", answer="d"))
    query = SimpleNamespace(question="b", answer="x")
    found = baselines.lexical(SimpleNamespace(pairs=pairs), [query])  # type: ignore[arg-type]
    weight = log(1 + 1.5 / 1.5)
    assert found[0] == pytest.approx([weight * 2.5 / (1 + 1.5 * (0.25 + 0.75 * 3 / 2.5)), 0])


def test_whitened_cosine_is_that_of_the_inverse() -> None:
    draw = torch.Generator().manual_seed(0)
    pairs, questions = (torch.randn(n, 12, generator=draw, dtype=torch.float64) for n in (9, 3))
    moments = pairs.T @ pairs
    metric = torch.linalg.inv(moments + 0.1 * moments.trace() / 9 * torch.eye(12, dtype=torch.float64))
    lengths = [torch.einsum("ni,ij,nj->n", part, metric, part).sqrt() for part in (questions, pairs)]
    expected = questions @ metric @ pairs.T / lengths[0][:, None] / lengths[1]
    dot, kernel = questions @ pairs.T, pairs @ pairs.T
    torch.testing.assert_close(baselines.whitened(dot, kernel, questions.square().sum(1), 9), expected)


def test_data_inf_is_a_mean_of_inverses_of_rank_one() -> None:
    draw = torch.Generator().manual_seed(0)
    pairs, questions = (torch.randn(n, 12, generator=draw, dtype=torch.float64) for n in (9, 3))
    damping = 0.1 * pairs.square().sum(1).mean() / 12
    eye = torch.eye(12, dtype=torch.float64)
    inverse = torch.stack([torch.linalg.inv(torch.outer(row, row) + damping * eye) for row in pairs]).mean(0)
    found = baselines._data_inf(questions @ pairs.T, pairs @ pairs.T, 12)
    torch.testing.assert_close(found, questions @ inverse @ pairs.T)


def test_ek_fac_is_a_diagonal_in_the_eigenbasis_of_the_factors() -> None:
    draw = torch.Generator().manual_seed(0)
    inputs, gradients = (torch.randn(6, 3, width, generator=draw) for width in (4, 5))  # (B, S, width)
    seen = Seen([inputs], [gradients])
    pairs, questions = seen.per_row(torch.arange(6)), torch.randn(2, 5, 4, generator=draw)
    sums = baselines.Sums.empty(2, 6)
    baselines._add_factored(sums, Passes({"layer": seen}, torch.arange(6)), "layer", pairs, questions)

    factors = [part.flatten(0, 1).double() for part in (gradients, inputs)]
    basis = torch.kron(*(torch.linalg.eigh(part.T @ part)[1].contiguous() for part in factors))
    values = (pairs.flatten(1).double() @ basis).square().mean(0)
    inverse = basis @ torch.diag(1 / (values + 0.1 * values.mean())) @ basis.T
    expected = questions.flatten(1).double() @ inverse @ pairs.flatten(1).double().T
    torch.testing.assert_close(sums.factored, expected, atol=1e-4, rtol=1e-4)
