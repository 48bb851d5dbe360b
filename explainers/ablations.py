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

STEPS = 100
"""So many for each part, many times what a fit takes."""

SLACK = 1e-9
"""How far, per deviation of the outcome, a solution may be from the conditions of the optimum."""

DEPENDENT = 1e-8
"""A column this near to others, in squares of its length, is made of them."""


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

    Minimises, for each outcome, the squares left / 2N + alpha * sum of |standardised slopes|, exactly: by feature-sign
    search (Lee et al. 2006, section 3). Raises InconsistentAnswer where that does not settle.
    """
    deviations = kept.std(axis=0)
    columns = (kept - kept.mean(axis=0)) / np.where(deviations > 0, deviations, 1.0)
    moved = outcomes - outcomes.mean(axis=0)
    found = np.stack([_Search(columns, outcome, alpha).slopes() for outcome in moved.T])
    return SparseFit(found / np.where(deviations > 0, deviations, 1.0), found, deviations)


class _Search:
    """The sparse slopes of one outcome, by the set of columns in use and the signs of their slopes.

    A set with signs is a problem without corners: its solution is one linear system. Where a slope would change its
    sign on the way there, the way ends and its column goes; where all have arrived, the column that pulls most comes.
    """

    def __init__(self, columns: NDArray[np.float64], outcome: NDArray[np.float64], alpha: float) -> None:
        self.columns, self.alpha, self.samples = columns, alpha, len(columns)  # (N, F)
        self.outcome = outcome  # (N,)
        self.within = SLACK * max(float(outcome.std()), alpha)
        self.places: list[int] = []  # of the columns in use
        self.used = columns[:, :0]  # (N, U)
        self.signs = np.zeros(0)  # (U,)
        self.own = np.zeros(0)  # (U,), their slopes
        self.inverse = np.zeros((0, 0))  # (U, U), of their products

    def slopes(self) -> NDArray[np.float64]:  # (F,)
        steps = STEPS * (1 + self.columns.shape[1])
        while (column := self._most_wanted()) is not None and steps > 0:
            self._add(*column)
            steps -= 1
            while steps > 0 and not self._settled():
                steps -= 1
        if steps <= 0:
            raise InconsistentAnswer("the sparse fit of these ablations does not settle")
        found = np.zeros(self.columns.shape[1])
        found[self.places] = self.own
        return found

    def _most_wanted(self) -> tuple[int, float] | None:
        """The column not in use that pulls more than it costs, and most, and which way; None at the optimum."""
        pull = (self.outcome - self.used @ self.own) @ self.columns / self.samples
        pull[self.places] = 0.0
        column = int(np.abs(pull).argmax())
        return (column, float(np.sign(pull[column]))) if abs(pull[column]) > self.alpha + self.within else None

    def _add(self, column: int, sign: float) -> None:
        """Takes a column into use; one that is made of those in use takes the place of one of them.

        Slopes can be shifted to that without a change to what is left of the outcome, and with less to pay.
        """
        new, slope = self.columns[:, column], 0.0
        shared, square = new @ self.used / self.samples, float(new @ new) / self.samples
        made = self.inverse @ shared  # of the others
        if square - shared @ made < DEPENDENT * square:
            slope = sign * self._go(-sign * made, np.inf)
            shared = new @ self.used / self.samples
            made = self.inverse @ shared
        edge = np.append(-made, 1.0)
        self.inverse = np.pad(self.inverse, (0, 1)) + np.outer(edge, edge) / (square - shared @ made)
        self.places.append(column)
        self.used = self.columns[:, self.places]
        self.signs, self.own = np.append(self.signs, sign), np.append(self.own, slope)

    def _settled(self) -> bool:
        """Goes to the solution for the columns in use and their signs; False where one of them went on the way."""
        wanted = self.outcome @ self.used / self.samples - self.alpha * self.signs
        best = self.inverse @ wanted
        best += self.inverse @ (wanted - (self.used @ best) @ self.used / self.samples)  # what the inverse has lost
        return self._go(best - self.own, 1.0) == 1.0

    def _go(self, way: NDArray[np.float64], longest: float) -> float:
        """Moves the slopes along `way`, up to the first that comes to zero: that one is in use no more. How far."""
        against = way * self.signs < 0
        reached = np.where(against, -self.own / np.where(against, way, 1.0), np.inf)
        far = float(min(longest, reached.min(initial=np.inf)))
        if not np.isfinite(far):  # what is paid would fall below zero
            raise InconsistentAnswer("the sparse fit of these ablations does not settle")
        self.own = self.own + far * way
        if far < longest:
            self._drop(int(reached.argmin()))
        return far

    def _drop(self, which: int) -> None:
        row = self.inverse[which]
        rest = self.inverse - np.outer(row, row) / row[which]
        self.inverse = np.delete(np.delete(rest, which, axis=0), which, axis=1)
        del self.places[which]
        self.used = self.columns[:, self.places]
        self.own, self.signs = np.delete(self.own, which), np.delete(self.signs, which)
