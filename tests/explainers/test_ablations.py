"""Which parts are left out together, and the LASSO held against scikit-learn's."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from numpy.typing import NDArray

from explainers.ablations import ablations, halves, sparse_fit


def reference(kept: NDArray[np.float64], outcomes: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """Coefficients (G, F) on standardised columns, as ContextCite finds them."""
    from sklearn.linear_model import Lasso
    from sklearn.preprocessing import StandardScaler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant outcomes
        columns = StandardScaler().fit_transform(kept)
        model = Lasso(alpha=alpha, fit_intercept=True, tol=1e-12, max_iter=100_000)
        return np.stack([model.fit(columns, outcome).coef_.copy() for outcome in outcomes.T])


@pytest.mark.parametrize(("samples", "parts"), [(32, 1), (32, 3), (64, 6), (32, 7), (64, 20), (256, 60), (33, 12)])
@pytest.mark.parametrize("alpha", [0.01, 0.3])
def test_the_sparse_fit_is_that_of_scikit_learn(samples: int, parts: int, alpha: float) -> None:
    random = np.random.default_rng(samples * 1000 + parts)
    kept = ablations(random, samples, parts)
    effects = random.normal(size=(parts, 3)) * (random.random((parts, 3)) < 0.4)
    outcomes = kept @ effects + 0.3 * kept[:, :1] * kept[:, -1:] + random.normal(size=(len(kept), 3)) * [0, 0.1, 2]
    fit = sparse_fit(kept, outcomes, alpha)
    np.testing.assert_allclose(fit.standardised, reference(kept, outcomes, alpha), atol=3e-6)
    np.testing.assert_allclose(fit.slopes * kept.std(axis=0), fit.standardised, atol=1e-12)


@pytest.mark.parametrize("parts", [100, 600])
def test_more_parts_than_samples(parts: int) -> None:
    """Solutions need not be unique there: what is predicted and what is minimised are."""
    random = np.random.default_rng(parts)
    kept = halves(random, 64, parts)
    outcomes = 2 * kept[:, :2] + random.normal(size=(64, 2)) * [0.0, 1.0]
    fit, known = sparse_fit(kept, outcomes), reference(kept, outcomes, 0.01)
    centred = kept - kept.mean(axis=0)
    for own, slopes, other, outcome in zip(fit.standardised, fit.slopes, known, outcomes.T, strict=True):
        columns = centred / kept.std(axis=0)
        np.testing.assert_allclose(centred @ slopes, columns @ other, atol=1e-4)
        moved = outcome - outcome.mean()
        objectives = [((moved - columns @ w) ** 2).mean() / 2 + 0.01 * np.abs(w).sum() for w in (own, other)]
        assert objectives[0] == pytest.approx(objectives[1], rel=1e-5)


def test_what_never_varies_has_no_slope() -> None:
    kept = ablations(np.random.default_rng(0), 32, 4)
    flat = sparse_fit(kept, np.full((len(kept), 2), 16.1))
    assert (flat.slopes == 0).all() and flat.slopes.shape == (2, 4)
    kept[:, 1] = 1.0
    found = sparse_fit(kept, kept[:, [0, 1]]).slopes
    assert found[0, 0] == pytest.approx(0.98) and (found[:, 1] == 0).all() and (found[1] == 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_columns_made_of_others(seed: int) -> None:
    """Equal ones, opposite ones, and one that is others together: of the optimum only its value is certain."""
    random = np.random.default_rng(seed)
    kept = halves(random, 64, 8)
    kept[:, 7] = ((kept[:, 0] + kept[:, 1]) > 0).astype(float)
    kept = np.hstack([kept, kept[:, :2], 1 - kept[:, 2:4], kept[:, [0]] * kept[:, [1]]])
    outcomes = kept @ random.normal(size=(len(kept.T), 3)) + random.normal(size=(64, 3)) * [0, 0.1, 1]
    columns, moved = (kept - kept.mean(axis=0)) / kept.std(axis=0), outcomes - outcomes.mean(axis=0)

    def objectives(slopes: NDArray[np.float64]) -> NDArray[np.float64]:
        return ((moved - columns @ slopes.T) ** 2).mean(axis=0) / 2 + 0.01 * np.abs(slopes).sum(axis=1)

    own, known = sparse_fit(kept, outcomes).standardised, reference(kept, outcomes, 0.01)
    np.testing.assert_allclose(objectives(own), objectives(known), rtol=1e-6)


def test_opposite_outcomes_have_opposite_slopes() -> None:
    random = np.random.default_rng(1)
    kept = halves(random, 64, 9)
    outcome = random.normal(size=(64, 1))
    fit = sparse_fit(kept, np.hstack([outcome, -outcome]))
    assert (fit.slopes[0] == -fit.slopes[1]).all()


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_few_parts_are_left_out_in_every_way_once(parts: int) -> None:
    kept = ablations(np.random.default_rng(0), 32, parts)
    assert kept.shape == (2**parts, parts)
    assert len({tuple(row) for row in kept}) == 2**parts and set(kept.ravel()) == {0.0, 1.0}


def test_halves_come_in_pairs() -> None:
    kept = ablations(np.random.default_rng(0), 64, 7)
    assert kept.shape == (64, 7) and (kept[::2] + kept[1::2] == 1).all()
    assert (halves(np.random.default_rng(0), 33, 7) == halves(np.random.default_rng(0), 34, 7)[:33]).all()
    assert abs(halves(np.random.default_rng(0), 255, 300).mean() - 0.5) < 0.01
