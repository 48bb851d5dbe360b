"""Figures of merit. Scores are (Q, n): a row per query, a column per training pair, higher = more influential.

Where scores are equal, a fixed random order decides, so that no method gains by the order of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
DRAWS = 500
"""Resamples of a bootstrap."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its standard errors: over queries, and over retrainings where there were some."""

    value: float
    over_queries: float
    over_retrainings: float | None = None


def ranks(scores: Floats) -> NDArray[np.int_]:  # (Q, n)
    """Place of each pair in each query's list, from 1."""
    ties = np.random.default_rng(0).permutation(scores.shape[1])
    order = np.array([np.lexsort((ties, -row)) for row in scores])
    found = np.empty_like(order)
    np.put_along_axis(found, order, np.arange(1, scores.shape[1] + 1)[None], axis=1)
    return found


def reciprocal_ranks(scores: Floats, relevant: Flags) -> Floats:  # (Q,)
    """1 / rank of the first relevant pair."""
    return np.asarray(1.0 / np.where(relevant, ranks(scores), np.inf).min(1))


def recalls(scores: Floats, relevant: Flags, top: int = 10) -> Floats:  # (Q,)
    """Relevant pairs among the first `top`, of those that could be there."""
    found = ((ranks(scores) <= top) & relevant).sum(1)
    return np.asarray(found / np.minimum(top, relevant.sum(1)))


def r_precisions(scores: Floats, relevant: Flags) -> Floats:  # (Q,)
    """Share of relevant pairs among the first R, where R is how many there are."""
    many = relevant.sum(1)
    return np.asarray(((ranks(scores) <= many[:, None]) & relevant).sum(1) / many)


def shares_at_top(scores: Floats, marked: Flags, top: int = 5) -> Floats:  # (Q,)
    """Share of the marked pairs (n,) among the first `top`."""
    return np.asarray(((ranks(scores) <= top) & marked).sum(1) / top)


def areas(scores: Floats, relevant: Flags) -> Floats:  # (Q,)
    """Pair-level AUC: how often a relevant pair scores higher than another one, ties counted half."""
    places, many = rankdata(scores, axis=1), relevant.sum(1)
    others = scores.shape[1] - many
    return np.asarray(((places * relevant).sum(1) - many * (many + 1) / 2) / (many * others))


def correlations(one: Floats, two: Floats) -> Floats:  # (Q,)
    """Spearman's, column by column of two (R, Q); 0 where one of them is constant."""
    places = [rankdata(each, axis=0) - (len(each) + 1) / 2 for each in (one, two)]
    norms = np.sqrt((places[0] ** 2).sum(0) * (places[1] ** 2).sum(0))
    return np.divide((places[0] * places[1]).sum(0), norms, out=np.zeros(one.shape[1]), where=norms > 0)


def datamodelling(scores: Floats, held: Flags, losses: Floats) -> Estimate:
    """LDS: how well sums of scores over subsets `held` (R, n) foretell minus the queries' losses (R, Q)."""
    foretold = held.astype(float) @ scores.T  # (R, Q)
    each = correlations(foretold, -losses)
    again = _over_rows(len(held), lambda rows: float(correlations(foretold[rows], -losses[rows]).mean()))
    return Estimate(float(each.mean()), standard_error(each), again)


def agreement(losses: Floats) -> Estimate:
    """Mean rank correlation of the losses (runs, R, Q) after two runs on the same subset."""
    each = _pairwise(losses).mean(0)
    spread = _over_rows(losses.shape[1], lambda rows: float(_pairwise(losses[:, rows]).mean()))
    return Estimate(float(each.mean()), standard_error(each), spread)


def ceiling(losses: Floats) -> float:
    """About the LDS of a perfect forecast of the mean of the runs, losses (runs, R, Q).

    The root of the mean's reliability, which is that of one run stepped up by the formula of Spearman and Brown.
    """
    alike, runs = max(0.0, float(_pairwise(losses).mean())), len(losses)
    return float(np.sqrt(runs * alike / (1 + (runs - 1) * alike)))


def _pairwise(losses: Floats) -> Floats:  # (P, Q)
    """Rank correlation over subsets of each two runs."""
    return np.array([correlations(one, two) for one, two in combinations(losses, 2)])


def standard_error(each: Floats) -> float:
    """Of the mean, by bootstrap over queries."""
    return _over_rows(len(each), lambda rows: float(each[rows].mean()))


def estimate(each: Floats) -> Estimate:
    return Estimate(float(each.mean()), standard_error(each))


def _over_rows(count: int, mean: Callable[[NDArray[np.int_]], float]) -> float:
    draw = np.random.default_rng(0)
    return float(np.std([mean(draw.integers(count, size=count)) for _ in range(DRAWS)], ddof=1))


def removals(scores: Floats, share: float = 0.01) -> Sequence[NDArray[np.int_]]:
    """For each query the pairs that stand first in its list, this share of all."""
    most = max(1, round(share * scores.shape[1]))
    return [np.flatnonzero(row <= most) for row in ranks(scores)]


def empty_rate(lists: Sequence[int]) -> float:
    """Share of queries with no result at all, from the length of each list."""
    return float(np.mean(np.array(lists) == 0))
