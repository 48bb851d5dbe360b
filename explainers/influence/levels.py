"""What a score means: thresholds from data that every index has, without labels.

Above a conformal bound at most a given share of questions like the calibration prompts has any score: with M_j the best
score of the j-th of m such prompts it is the ceil((1 - share) (m + 1))-th smallest of them (split conformal prediction,
Vovk et al. 2005), whatever their distribution. `low` is above the bound for one question in twenty. `medium` is above
that for one in a hundred, and above 999 of 1,000 scores between two training examples whose texts have little in
common. `high` are those of them that come close to the best of the query.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Level: TypeAlias = Literal["high", "medium", "low", "irrelevant"]

LEVELS: tuple[Level, ...] = ("high", "medium", "low", "irrelevant")

MISTAKES = {"low": 0.05, "medium": 0.01}
"""Share of irrelevant questions that may get a result of that level or a higher one."""
UNRELATED = 0.999
ALIKE = 0.5
"""Cosine of two texts' tokens, weighted by how rare they are, from which on examples are not taken for unrelated."""
CLOSE = 0.9
"""Of the best score of the query, where `high` begins."""
LEAST_LIFT = 1.0
"""Nats by which fine-tuning made an answer likelier; below it, it did not make the answer."""
FEWEST_PROMPTS = math.ceil(1 / MISTAKES["low"]) - 1
"""With fewer, no score could be known to be rare; with fewer than 99, `medium` is above all of their scores."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Raises ValueError for too few calibration prompts."""

    generic: tuple[float, ...]  # (m,), ascending: the best score of each calibration prompt
    unrelated: float

    def __post_init__(self) -> None:
        if len(self.generic) < FEWEST_PROMPTS:
            raise ValueError(f"thresholds need at least {FEWEST_PROMPTS} calibration prompts")

    def bound(self, level: Literal["low", "medium"]) -> float:
        """Where a level begins."""
        if level == "medium":
            return max(self.unrelated, self._conformal(MISTAKES["medium"]))
        return self._conformal(MISTAKES["low"])

    def _conformal(self, share: float) -> float:
        rank = math.ceil((1 - share) * (len(self.generic) + 1))
        return self.generic[min(rank, len(self.generic)) - 1]

    def levels(self, scores: NDArray[np.float64]) -> list[Level]:
        """The level of each of one query's scores, all of them given together."""
        low, medium = self.bound("low"), self.bound("medium")
        high = max(medium, CLOSE * float(scores.max(initial=-math.inf)))
        return [_level(score, low, medium, high) for score in scores.tolist()]

    def q_values(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Estimated share of irrelevant questions whose best score is at least as high."""
        reaching = len(self.generic) - np.searchsorted(self.generic, scores, side="left")
        shares: NDArray[np.float64] = (1 + reaching) / (len(self.generic) + 1)
        return shares


def likeness(texts: Sequence[Collection[int]]) -> NDArray[np.float64]:  # (n, n)
    """Cosines of texts as sets of tokens, each with the logarithm of its rarity as its weight."""
    counts = Counter(token for text in texts for token in set(text))
    # What only one text has makes no product and adds to its length alone: of long texts that is most.
    column = {token: place for place, token in enumerate(token for token, count in counts.items() if count > 1)}
    weights = np.zeros((len(texts), len(column)), dtype=np.float32)
    squares = np.zeros(len(texts))
    for row, text in enumerate(texts):
        for token in set(text):
            weight = math.log(len(texts) / counts[token])
            squares[row] += weight**2
            if token in column:
                weights[row, column[token]] = weight
    lengths = np.sqrt(np.where(squares > 0, squares, 1.0))
    cosines: NDArray[np.float64] = (weights @ weights.T).astype(np.float64) / np.outer(lengths, lengths)
    return cosines


def _level(score: float, low: float, medium: float, high: float) -> Level:
    if score <= low:
        return "irrelevant"
    if score <= medium:
        return "low"
    return "high" if score >= high else "medium"
