"""The space in which training examples and questions are compared: one for gradients, one for each hidden state.

C is the cosine of two gradients under the metric of the training gradients. Hw is the mean of two cosines, of the
states of the question and of the answer (at unit length, less the training mean), each under the metric of its own.
`C + Hw` says which examples state the answer, `C max(Hw, 0)` what removing an example would change.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from explainers.influence.metric import Metric, unit

SAME = 1e-7
"""A state this near to the mean differs from it by rounding, which has no direction."""


@dataclass(frozen=True)
class Space:
    gradients: Metric  # of D dimensions
    means: NDArray[np.float64]  # (2, d), of the hidden states at unit length
    states: tuple[Metric, Metric]  # of d dimensions each

    @property
    def width(self) -> int:
        """Numbers of a place."""
        return self.means.size

    def places(self, hidden: NDArray[np.float64]) -> NDArray[np.float64]:  # (n, 2, d) -> (n, 2 d)
        """Vectors whose scalar products are Hw."""
        centred = unit(hidden) - self.means
        centred[np.linalg.norm(centred, axis=-1) < SAME] = 0.0
        parts = [unit(metric.whitened(centred[:, number])) for number, metric in enumerate(self.states)]
        places: NDArray[np.float64] = np.concatenate(parts, axis=1) / np.sqrt(len(parts))
        return places

    def directions(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:  # (m, D) -> (m, D)
        """A phi over its length: its product with a training row, over that row's length, is C."""
        return self.gradients.turned_back(unit(self.gradients.whitened(rows)))


def nearness(places: NDArray[np.float32], other: NDArray[np.floating]) -> NDArray[np.float64]:  # (n,) or (n, m)
    """Hw of places (n, 2 d) with one other (2 d,) or several (m, 2 d).

    Multiplied in 32 bits, as places are kept: a copy of all of them in 64 bits would cost more than all else.
    """
    found: NDArray[np.float32] = (torch.from_numpy(places) @ torch.as_tensor(other.T, dtype=torch.float32)).numpy()
    return found.astype(np.float64)
