"""Which parts to leave out together, and the sparse line through what that does.

After Cohen-Wang et al., *ContextCite: Attributing Model Generation to Context*, 2024, section 3: random halves of the
parts, and a LASSO on them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from explainers.errors import InconsistentAnswer

ALPHA = 0.01
"""What one standardised slope costs, in units of the outcome."""

PROBABILITY = 0.5
"""That a part is kept."""

ROUNDS = 2000
"""Many times what a LASSO on at most 256 samples takes."""

SLACK = 1e-9
"""How far, per deviation of the outcome, a solution may be from the conditions of the optimum."""


def halves(random: np.random.Generator, samples: int, parts: int) -> NDArray[np.float64]:  # (N, F) of 0 and 1
    """Random halves, 1 = kept; they come in pairs of which one keeps what the other leaves out."""
    first = random.integers(0, 2, size=((samples + 1) // 2, parts))
    return np.stack([first, 1 - first], axis=1).reshape(-1, parts)[:samples].astype(float)


def ablations(random: np.random.Generator, samples: int, parts: int) -> NDArray[np.float64]:  # (N, F) of 0 and 1
    """`samples` random halves, or each of the 2^F choices once where they are no more than that."""
    if 2**parts > samples:
        return halves(random, samples, parts)
    every: NDArray[np.float64] = (np.arange(2**parts)[:, None] >> np.arange(parts) & 1).astype(float)
    return every


@dataclass(frozen=True, slots=True)
class SparseFit:
    """Slopes of G outcomes in F parts."""

    slopes: NDArray[np.float64]  # (G, F), what keeping a part adds to an outcome
    standardised: NDArray[np.float64]  # (G, F), the same per deviation of the part's column
    deviations: NDArray[np.float64]  # (F,), of the columns


def sparse_fit(
    kept: NDArray[np.float64],  # (N, F) of 0 and 1
    outcomes: NDArray[np.float64],  # (N, G)
    alpha: float = ALPHA,
) -> SparseFit:
    """LASSO on standardised columns with an intercept; a column that never varies gets no slope.

    Minimises, for each outcome, the squares left / 2N + alpha * sum of |standardised slopes|, by coordinate descent.
    Raises InconsistentAnswer where that does not settle.
    """
    deviations = kept.std(axis=0)
    columns = (kept - kept.mean(axis=0)) / np.where(deviations > 0, deviations, 1.0)
    found = _lasso(columns, outcomes - outcomes.mean(axis=0), alpha)
    slopes = np.where(deviations[:, None] > 0, found / np.where(deviations > 0, deviations, 1.0)[:, None], 0.0)
    return SparseFit(slopes.T, found.T, deviations)


def _lasso(columns: NDArray[np.float64], left: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:  # (F, G)
    """Coordinate descent: sweeps over all columns, and between them over those that are in use."""
    samples, slopes = len(columns), np.zeros((columns.shape[1], left.shape[1]))
    within, left = SLACK * np.maximum(left.std(axis=0), alpha), left.copy()
    for _ in range(ROUNDS):
        _sweep(columns, left, slopes, alpha, range(columns.shape[1]))
        for _ in range(10):
            _sweep(columns, left, slopes, alpha, np.flatnonzero(slopes.any(axis=1)).tolist())
        pull = columns.T @ left / samples  # (F, G)
        off = np.where(slopes == 0, np.abs(pull) - alpha, np.abs(pull - alpha * np.sign(slopes)))
        if (off <= within).all():
            return slopes
    raise InconsistentAnswer("the sparse fit of these ablations does not settle")


def _sweep(
    columns: NDArray[np.float64],
    left: NDArray[np.float64],  # (N, G), kept up to date
    slopes: NDArray[np.float64],  # (F, G), likewise
    alpha: float,
    which: range | list[int],
) -> None:
    """Moves each slope to its best place given all others; columns have a mean square of 1, or 0 throughout."""
    for place in which:
        column = columns[:, place]
        best = column @ left / len(left) + slopes[place]
        moved = np.sign(best) * np.maximum(np.abs(best) - alpha, 0.0)
        left -= np.outer(column, moved - slopes[place])
        slopes[place] = moved
