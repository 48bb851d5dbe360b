"""What a score means: thresholds from data that every index has, without labels.

A list score above `generic_bound` is reached by at most 5 % of questions like the calibration prompts: with M_j the
best score of the j-th of m such prompts, the bound is the ceil(.95 (m + 1))-th smallest of them (split conformal
prediction, Vovk et al. 2005), whatever their distribution. What is `medium` is higher than any calibration prompt's
score, and than 999 of 1,000 scores between two training examples whose texts have little in common; `high` are those of
them that come close to the best of the query.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from explainers.influence.metric import unit

Level: TypeAlias = Literal["high", "medium", "low", "irrelevant"]

LEVELS: tuple[Level, ...] = ("high", "medium", "low", "irrelevant")

MISTAKES = 0.05
"""Share of irrelevant questions that may get a result."""
UNRELATED = 0.999
ALIKE = 0.5
"""Cosine of two texts' tokens, weighted by how rare they are, from which on examples are not taken for unrelated."""
CLOSE = 0.9
"""Of the best score of the query, where `high` begins."""
LEAST_LIFT = 1.0
"""Nats by which fine-tuning made an answer likelier; below it, it did not make the answer."""
FEWEST_PROMPTS = math.ceil(1 / MISTAKES) - 1
"""With fewer, no score could be known to be rare."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    generic: tuple[float, ...]  # (m,), ascending: the best score of each calibration prompt
    unrelated: float

    @property
    def generic_bound(self) -> float:
        rank = math.ceil((1 - MISTAKES) * (len(self.generic) + 1))
        return self.generic[rank - 1] if rank <= len(self.generic) else math.inf

    def levels(self, scores: NDArray[np.float64]) -> list[Level]:
        """The level of each of one query's scores, all of them given together."""
        low = self.generic_bound
        medium = max(low, self.unrelated, *self.generic)
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
    column = {token: place for place, token in enumerate(counts)}
    weights = np.zeros((len(texts), len(column)))
    for row, text in enumerate(texts):
        for token in set(text):
            weights[row, column[token]] = math.log(len(texts) / counts[token])
    weights = unit(weights)
    cosines: NDArray[np.float64] = weights @ weights.T
    return cosines


def _level(score: float, low: float, medium: float, high: float) -> Level:
    if score <= low:
        return "irrelevant"
    if score <= medium:
        return "low"
    return "high" if score >= high else "medium"
