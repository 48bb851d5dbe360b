"""How far two histograms over the same bins are apart. Natural logarithms; empty bins get a share of 1e-6.

Sources: Lin 1991 (Jensen-Shannon), Yurdakul and Naranjo 2020 (population stability index).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Shares: TypeAlias = NDArray[np.float64]  # (..., bins)

EMPTY = 1e-6
SPLITS, LEVEL, SEED = 500, 0.95, 7


def shares(counts: NDArray[np.float64]) -> Shares:  # (..., bins), none of them without any count
    part = counts / counts.sum(axis=-1, keepdims=True)
    return np.where(counts == 0, EMPTY, part)


def stability_index(p: Shares, q: Shares) -> NDArray[np.float64]:  # (...)
    return np.asarray(np.sum((p - q) * np.log(p / q), axis=-1))


def kullback_leibler(p: Shares, q: Shares) -> NDArray[np.float64]:  # (...)
    return np.asarray(np.sum(p * np.log(p / q), axis=-1))


def jensen_shannon(p: Shares, q: Shares) -> NDArray[np.float64]:  # (...)
    middle = (p + q) / 2
    return (kullback_leibler(p, middle) + kullback_leibler(q, middle)) / 2


def hellinger(p: Shares, q: Shares) -> NDArray[np.float64]:  # (...)
    return np.asarray(np.linalg.norm(np.sqrt(p) - np.sqrt(q), axis=-1) / np.sqrt(2))


DIVERGENCES: Mapping[str, Callable[[Shares, Shares], NDArray[np.float64]]] = {
    "PSI": stability_index,
    "KLDivergence": kullback_leibler,
    "JSDivergence": jensen_shannon,
    "HellingerDistance": hellinger,
}
"""By name: of the shares of base and target."""


def thresholds(counts: NDArray[np.int64]) -> dict[str, float] | None:  # (bins,)
    """What chance alone seldom exceeds: each divergence between random halves of the rows, its 95 % quantile.

    Over 500 splits, drawn from a fixed seed; None for fewer than two rows.
    """
    total = int(counts.sum())
    if total < 2:
        return None
    generator = np.random.default_rng(SEED)
    first = generator.multivariate_hypergeometric(counts, total // 2, SPLITS, method="marginals")  # (splits, bins)
    p, q = shares(first.astype(float)), shares((counts - first).astype(float))
    return {name: float(np.quantile(of(p, q), LEVEL)) for name, of in DIVERGENCES.items()}
