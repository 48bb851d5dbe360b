"""Similarity of gradients where what all examples agree on counts little.

With rows Phi (n, D), F = Phi^T Phi and lambda = DAMPING trace(F) / min(n, D), lengths and angles are those of the
metric A = (F + lambda I)^-1 (a damped inverse of the empirical Fisher matrix). All in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

DAMPING = 0.1


@dataclass(frozen=True)
class Metric:
    """A, by the Cholesky factor of F + lambda I."""

    factor: NDArray[np.float64]  # (D, D), lower

    @property
    def dimensions(self) -> int:
        return int(self.factor.shape[0])

    def whitened(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:  # (m, D)
        """Coordinates in which A is the plain scalar product."""
        return _solved(self.factor, rows, upper=False)

    def turned_back(self, whitened: NDArray[np.float64]) -> NDArray[np.float64]:  # (m, D)
        """A phi, of rows that are whitened already."""
        return _solved(self.factor.T, whitened, upper=True)


def _solved(factor: NDArray[np.float64], rows: NDArray[np.float64], *, upper: bool) -> NDArray[np.float64]:
    columns = torch.from_numpy(np.ascontiguousarray(rows.T))
    found: NDArray[np.float64] = torch.linalg.solve_triangular(torch.from_numpy(factor), columns, upper=upper).T.numpy()
    return found


def second_moment(rows: NDArray[np.float64]) -> NDArray[np.float64]:  # (n, D) -> (D, D)
    moment: NDArray[np.float64] = rows.T @ rows
    return moment


def metric_of(moment: NDArray[np.float64], count: int, damping: float = DAMPING) -> Metric:
    """The metric of `count` rows whose sum of outer products is `moment` (D, D)."""
    dimensions = moment.shape[0]
    trace = float(np.trace(moment))
    damped = moment + (damping * trace / max(1, min(count, dimensions)) or 1.0) * np.eye(dimensions)
    return Metric(np.linalg.cholesky(damped))


def unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:  # (..., D)
    """Each row at length one; a row of zeros stays."""
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1.0)
