"""A line through weighted samples, and how sure its slopes are: the last step of LIME."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from explainers.answers import are_opposite
from explainers.errors import InconsistentAnswer


@dataclass(frozen=True, slots=True)
class LocalFit:
    slopes: NDArray[np.float64]  # (K, M)
    errors: NDArray[np.float64]  # (K, M), standard errors of sampling
    intercepts: NDArray[np.float64]  # (K,)
    r2: NDArray[np.float64]  # (K,), weighted; NaN where the output is constant
    samples: float
    """How many equally weighted samples would say as much: (sum of w)^2 / sum of w^2."""


def fitted(
    regressors: NDArray[np.float64],  # (n, M)
    outputs: NDArray[np.float64],  # (n, K)
    kernel: NDArray[np.float64],  # (n,), the weight of one sample
    ridge: float,
    counts: NDArray[np.float64] | None = None,  # (n,), how often each sample was drawn; once without
) -> LocalFit:
    """Ridge slopes, the intercept unpenalised, with standard errors by the sandwich over draws.

    Two opposite outputs get exactly opposite slopes. Raises InconsistentAnswer for slopes that are not finite.
    """
    opposite = are_opposite(outputs)
    with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is looked at below
        fit = _fitted(regressors, outputs[:, :1] if opposite else outputs, kernel, ridge, counts)
    if not (np.isfinite(fit.slopes).all() and np.isfinite(fit.errors).all()):
        raise InconsistentAnswer("numbers too large or too far apart for a fit")
    return _mirrored(fit) if opposite else fit


def _fitted(
    regressors: NDArray[np.float64],
    outputs: NDArray[np.float64],
    kernel: NDArray[np.float64],
    ridge: float,
    counts: NDArray[np.float64] | None,
) -> LocalFit:
    weights = kernel if counts is None else kernel * counts
    total = weights.sum()
    middle, mean = weights @ regressors / total, weights @ outputs / total  # (M,), (K,)
    centred, moved = regressors - middle, outputs - mean
    weighted = centred.T * weights  # (M, n)
    reach = np.linalg.inv(weighted @ centred + ridge * np.eye(len(middle))) @ weighted  # (M, n)
    slopes = reach @ moved  # (M, K)
    left = moved - centred @ slopes  # (n, K)
    squares = left**2 if counts is None else left**2 / counts[:, None]
    spread = weights @ moved**2
    varies = np.ptp(outputs, axis=0) > 0
    r2 = np.where(varies & (spread > 0), 1 - weights @ left**2 / np.where(spread > 0, spread, 1.0), np.nan)
    return LocalFit(
        slopes.T,
        np.sqrt(reach**2 @ squares).T,
        mean - middle @ slopes,
        r2,
        float(total**2 / (weights @ kernel)),
    )


def _mirrored(fit: LocalFit) -> LocalFit:
    return LocalFit(
        np.vstack([fit.slopes, -fit.slopes]),
        np.vstack([fit.errors, fit.errors]),
        np.concatenate([fit.intercepts, 1 - fit.intercepts]),
        np.tile(fit.r2, 2),
        fit.samples,
    )
