"""How surprising a difference of two samples is: natural logarithms of p-values, which themselves can underflow.

Sources: Press et al., Numerical Recipes, 6.2 (incomplete gamma function); Kim and Jennrich 1973 (exact two-sample
Kolmogorov-Smirnov); Smirnov 1948 with the correction of Stephens 1970 (large samples).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

EXACT = 250_000
"""Up to so many pairs of values the Kolmogorov-Smirnov test is exact, which takes some 0.1 s."""
PRECISION, STEPS, TINY = 1e-15, 100_000, 1e-300
LARGE_TERM = 40.0
"""Terms of Kolmogorov's series below exp(-40) of the first change nothing."""


def chi_squared(counts: NDArray[np.float64]) -> float:  # (2, categories)
    """Homogeneity of two rows of counts, without continuity correction. Columns of zeros do not count."""
    seen = counts[:, counts.sum(axis=0) > 0]
    expected = seen.sum(axis=1, keepdims=True) * seen.sum(axis=0, keepdims=True) / seen.sum()
    statistic = float(((seen - expected) ** 2 / expected).sum())
    return 0.0 if seen.shape[1] < 2 else log_chi_squared(statistic, seen.shape[1] - 1)


def log_chi_squared(statistic: float, freedom: int) -> float:
    """Of a value at least as large."""
    a, x = freedom / 2, statistic / 2
    if x <= 0:
        return 0.0
    front = a * math.log(x) - x - math.lgamma(a)
    if x < a + 1:
        return math.log1p(-min(math.exp(front) * _series(a, x), 1.0 - 1e-16))
    return front + math.log(_fraction(a, x))


def _series(a: float, x: float) -> float:
    """The lower incomplete gamma function, without its front factor."""
    term = total = 1 / a
    for step in range(1, STEPS):
        term *= x / (a + step)
        total += term
        if term < total * PRECISION:
            break
    return total


def _fraction(a: float, x: float) -> float:
    """The upper one, as a continued fraction by Lentz's method."""
    b = x + 1 - a
    c, d = 1 / TINY, 1 / b
    value = d
    for step in range(1, STEPS):
        factor = -step * (step - a)
        b += 2
        d = 1 / (factor * d + b or TINY)
        c = b + factor / c or TINY
        value *= c * d
        if abs(c * d - 1) < PRECISION:
            break
    return value


def kolmogorov_smirnov(distance: float, n: int, m: int) -> float:
    """Of a distance at least as large between the distribution functions of n and m values; both at least 1."""
    if distance <= 0:
        return 0.0
    return _exact(distance, n, m) if n * m <= EXACT else _limit(distance, n, m)


def _exact(distance: float, n: int, m: int) -> float:
    """Over all orders of the two samples, by the share of paths in an n x m grid that leave the band.

    `share[i]` is the logarithm of that share of paths to (i, k - i), diagonal by diagonal; distances are compared as
    whole numbers, in units of 1 / lcm(n, m).
    """
    unit = math.lcm(n, m)
    least, up, right = round(distance * unit), unit // n, unit // m
    places = np.arange(n + 1)
    share = np.full(n + 1, -np.inf)  # (n + 1,)
    with np.errstate(divide="ignore"):
        for k in range(1, n + m + 1):
            others = k - places
            below = np.concatenate(([-np.inf], share[:-1])) + np.log(places / k)
            beside = share + np.log(np.maximum(others, 0) / k)
            share = np.logaddexp(below, beside)
            inside = (others >= 0) & (others <= m)
            left = inside & (np.abs(places * up - others * right) >= least)
            share = np.where(left, 0.0, np.where(inside, share, -np.inf))
    return float(min(share[n], 0.0))


def _limit(distance: float, n: int, m: int) -> float:
    """Kolmogorov's distribution."""
    root = math.sqrt(n * m / (n + m))
    x = distance * (root + 0.12 + 0.11 / root)
    if x < 0.2:
        return 0.0  # 1 to more than ten digits
    terms = range(1, 1 + math.ceil(math.sqrt(1 + LARGE_TERM / (2 * x * x))))
    alternating = sum((-1) ** (k - 1) * math.exp(-2 * (k * k - 1) * x * x) for k in terms)
    return min(math.log(2 * alternating) - 2 * x * x, 0.0)
