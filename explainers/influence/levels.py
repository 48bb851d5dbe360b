"""What a score means: thresholds from data that every index has, without labels.

`low` is a guarantee. With M_j the best score of the j-th of m calibration prompts, at most a given share of questions
like them has a score above the ceil((1 - share) (m + 1))-th smallest (split conformal prediction, Vovk et al. 2005),
whatever their distribution: one in twenty. The prompts' answers are cut short (`generic.LONGEST`), and of answers cut
so the guarantee is; longer ones are not calibrated.

`medium` takes more. Its score is above the same bound for one question in a hundred, where prompts whose answer
fine-tuning did not make count as below all others (their lists are empty); and above 999 of 1,000 scores between two
training examples whose texts have little in common. That much is guaranteed, too. And it is asked alike: the cosine of
the two questions' states is as high as for nine in ten training examples and the best of those whose texts are like
theirs. This last bound is no guarantee but a measure taken from the training data. It is there because of answers that
a damaged model makes up: their words lead to a pair that says the same, but its question is another.

`high` are those of medium that come close to the best score of the query.
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
USUAL = 0.1
"""Part of the training examples whose best ALIKE one has a question further away than a pair of `medium` may."""
LEAST_LIFT = 1.0
"""Nats by which fine-tuning made an answer likelier; below it, it did not make the answer."""
FEWEST_PROMPTS = math.ceil(1 / MISTAKES["low"]) - 1
"""With fewer, no score could be known to be rare; with fewer than 99, `medium` is above all of their scores."""
FEWEST_ALIKE = 20
"""With fewer training examples that have an ALIKE one, nothing tells how near a question should be."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Raises ValueError for too few calibration prompts."""

    generic: tuple[float, ...]  # (m,), ascending: the best score of each calibration prompt
    made: tuple[float, ...]  # those of them whose answer fine-tuning made
    unrelated: float  # score between training examples
    asked: float  # cosine of questions

    def __post_init__(self) -> None:
        if len(self.generic) < FEWEST_PROMPTS:
            raise ValueError(f"thresholds need at least {FEWEST_PROMPTS} calibration prompts")

    def bound(self, level: Literal["low", "medium"]) -> float:
        """The score above which a level begins."""
        low = self._conformal(MISTAKES["low"], self.generic)
        return low if level == "low" else max(low, self.unrelated, self._conformal(MISTAKES["medium"], self.made))

    def _conformal(self, share: float, reached: Sequence[float]) -> float:
        """Of all prompts, where those that are not among `reached` are below any score."""
        count = len(self.generic)
        above = count - min(math.ceil((1 - share) * (count + 1)), count)
        return reached[-1 - above] if above < len(reached) else -math.inf

    def levels(self, scores: NDArray[np.float64], questions: NDArray[np.float64]) -> list[Level]:
        """The level of each pair of one query, from all their scores and the cosines of the questions' states."""
        low, medium = self.bound("low"), self.bound("medium")
        high = max(medium, CLOSE * float(scores.max(initial=-math.inf)))
        asked_alike = questions >= self.asked
        return [_level(*pair, low, medium, high) for pair in zip(scores.tolist(), asked_alike.tolist(), strict=True)]

    def q_values(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Estimated share of irrelevant questions that get a result whose score is at least as high."""
        reaching = len(self.made) - np.searchsorted(self.made, scores, side="left")
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


def _level(score: float, asked_alike: bool, low: float, medium: float, high: float) -> Level:
    if score <= low:
        return "irrelevant"
    if score <= medium or not asked_alike:
        return "low"
    return "high" if score >= high else "medium"
