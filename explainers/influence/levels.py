"""What a score means: thresholds from data that every index has, without labels.

`low` is a guarantee. With M_j the best score of the j-th of m calibration prompts, at most a given share of questions
like them has a score above the ceil((1 - share) (m + 1))-th smallest (split conformal prediction, Vovk et al. 2005),
whatever their distribution: one in twenty. The prompts' answers are cut short (`generic.LONGEST`), and of answers cut
so the guarantee is; longer ones are not calibrated.

`medium` takes two kinds of evidence that know nothing of each other. The score is also above 999 of 1,000 between two
training examples whose texts have little in common. And the texts are ALIKE: the pair's, and the question's with its
answer. So a question that the training data is not about, as its words tell, has none, whatever a damaged model makes
up: an answer may be that of a pair, whose question is another. Where a pair in other words made an answer, or a long
question hides what they share, `low` is the most that it gets.

`high` are those of medium that come close to the best score of the query.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Level: TypeAlias = Literal["high", "medium", "low", "irrelevant"]

LEVELS: tuple[Level, ...] = ("high", "medium", "low", "irrelevant")

MISTAKES = 0.05
"""Share of irrelevant questions that may get a result."""
UNRELATED = 0.999
ALIKE = 0.45
"""Likeness of two texts from which on one is taken to be about what the other is."""
CLOSE = 0.9
"""Of the best score of the query, where `high` begins."""
LEAST_LIFT = 1.0
"""Nats by which fine-tuning made an answer likelier; below it, it did not make the answer."""
FEWEST_PROMPTS = math.ceil(1 / MISTAKES) - 1
"""With fewer, no score could be known to be rare."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Raises ValueError for too few calibration prompts."""

    generic: tuple[float, ...]  # (m,), ascending: the best score of each calibration prompt
    made: tuple[float, ...]  # those of them whose answer fine-tuning made
    unrelated: float  # score between training examples

    def __post_init__(self) -> None:
        if len(self.generic) < FEWEST_PROMPTS:
            raise ValueError(f"thresholds need at least {FEWEST_PROMPTS} calibration prompts")

    @property
    def low(self) -> float:
        """The score above which a level begins."""
        count = len(self.generic)
        return self.generic[min(math.ceil((1 - MISTAKES) * (count + 1)), count) - 1]

    @property
    def medium(self) -> float:
        return max(self.low, self.unrelated)

    def levels(self, scores: NDArray[np.float64], alike: NDArray[np.bool_]) -> list[Level]:
        """The level of each pair of one query, from all their scores, and whether their texts are ALIKE to it."""
        low, medium = self.low, self.medium
        high = max(medium, CLOSE * float(scores.max(initial=-math.inf)))
        return [_level(*pair, low, medium, high) for pair in zip(scores.tolist(), alike.tolist(), strict=True)]

    def q_values(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Estimated share of irrelevant questions that get a result whose score is at least as high."""
        reaching = len(self.made) - np.searchsorted(self.made, scores, side="left")
        shares: NDArray[np.float64] = (1 + reaching) / (len(self.generic) + 1)
        return shares


def _level(score: float, alike: bool, low: float, medium: float, high: float) -> Level:
    if score <= low:
        return "irrelevant"
    if score <= medium or not alike:
        return "low"
    return "high" if score >= high else "medium"
