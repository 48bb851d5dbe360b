"""The space in which training examples and questions are compared: one for gradients, one for hidden states.

C is the cosine of two gradients under the metric of the training gradients, Hw that of two hidden states (unit length,
less the training mean) under the metric of theirs. `C + Hw` says which examples state the answer, `C max(Hw, 0)` what
removing an example would change.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from explainers.influence.metric import Metric, metric_of, second_moment, unit


@dataclass(frozen=True)
class Space:
    gradients: Metric  # of D dimensions
    mean: NDArray[np.float64]  # (d,), of the hidden states at unit length
    states: Metric  # of d dimensions

    def lengths(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:  # (n, D) -> (n,)
        """sqrt(phi A phi) of each row."""
        found: NDArray[np.float64] = np.linalg.norm(self.gradients.whitened(rows), axis=1)
        return found

    def places(self, hidden: NDArray[np.float64]) -> NDArray[np.float64]:  # (n, d) -> (n, d)
        """Unit vectors whose scalar products are Hw."""
        return unit(self.states.whitened(unit(hidden) - self.mean))

    def directions(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:  # (m, D) -> (m, D)
        """A phi over its length: its product with a training row, over that row's length, is C."""
        return self.gradients.turned_back(unit(self.gradients.whitened(rows)))


def space_of(rows: NDArray[np.float64], hidden: NDArray[np.float64]) -> Space:
    """Of training rows (n, D) and hidden states (n, d)."""
    centred = unit(hidden)
    mean = centred.mean(axis=0)
    centred = centred - mean
    return Space(
        metric_of(second_moment(rows), len(rows)),
        mean,
        metric_of(second_moment(centred), len(rows)),
    )


@dataclass(frozen=True, slots=True)
class Scores:
    """Of m questions against n training rows."""

    cosines: NDArray[np.float64]  # (m, n), C
    states: NDArray[np.float64]  # (m, n), Hw

    @property
    def list(self) -> NDArray[np.float64]:
        return self.cosines + self.states

    @property
    def impact(self) -> NDArray[np.float64]:
        return self.cosines * np.maximum(self.states, 0)


def scores(
    space: Space,
    rows: NDArray[np.float64],  # (n, D)
    hidden: NDArray[np.float64],  # (n, d)
    asked_rows: NDArray[np.float64],  # (m, D)
    asked_hidden: NDArray[np.float64],  # (m, d)
) -> Scores:
    """All scores at once, in memory."""
    lengths = space.lengths(rows)
    lengths = np.where(lengths > 0, lengths, 1.0)
    return Scores(
        space.directions(asked_rows) @ (rows / lengths[:, None]).T,
        space.places(asked_hidden) @ space.places(hidden).T,
    )
