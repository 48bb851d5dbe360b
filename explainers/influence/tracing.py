"""One question: the training pairs behind an answer, or none."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from explainers.influence.examples import Example
from explainers.influence.gradients import Projection
from explainers.influence.index import Found, Index
from explainers.influence.levels import ALIKE, LEAST_LIFT, LEVELS, Level, Thresholds
from explainers.influence.sketching import FineTune, sketching
from explainers.influence.texts import Words
from explainers.types import Checkpoint, never_stop


@dataclass(frozen=True, slots=True)
class Influence:
    """A training pair, with all that are identical to it, and what it did to an answer."""

    record: int  # the first of them
    level: Level
    score: float  # C + Hw, which orders the list
    impact: float  # about how the answer's log-probability would fall without them; comparable within one answer
    q_value: float
    group_size: int


@dataclass(frozen=True, slots=True)
class Traced:
    """`lift` is what fine-tuning added to the answer's log-probability (nats), None without a base model."""

    results: tuple[Influence, ...]
    lift: float | None


def tracing(
    tune: FineTune,
    projection: Projection,
    index: Index,
    thresholds: Thresholds,
    asked: Example,
    words: Words,
    checkpoint: Checkpoint = never_stop,
) -> Generator[None, None, Traced]:
    """All pairs that stand out for this question and answer, whose `words` they are; pauses after each pass."""
    sketches = yield from sketching(tune, [asked], projection, len(asked.ids), checkpoint)
    lift = None if sketches.lifts is None else float(sketches.lifts[0])
    if lift is not None and lift < LEAST_LIFT:
        return Traced((), lift)
    found = index.search(sketches.rows[0].astype(np.float64), sketches.hidden[0].astype(np.float64))
    return Traced(tuple(_judged(index, thresholds, found, words)), lift)


def _judged(index: Index, thresholds: Thresholds, found: Found, words: Words) -> list[Influence]:
    """By level, then score; identical pairs as one, of which the best counts, and impacts add up."""
    groups, place = np.unique(index.groups[index.records[found.rows]], return_inverse=True)
    scores = np.full(len(groups), -np.inf)
    np.maximum.at(scores, place, found.scores)
    alike = scores > thresholds.medium  # of all others nobody asks
    alike[alike] = index.likeness(words, groups[alike].tolist()) >= ALIKE
    impact = np.bincount(place, found.impact)
    sizes = np.bincount(index.groups, minlength=len(index.groups))[groups]
    levels, rare = thresholds.levels(scores, alike), thresholds.q_values(scores)
    results = [
        Influence(int(group), level, score, pull, q, size)
        for group, level, score, pull, q, size in zip(groups, levels, *_lists(scores, impact, rare, sizes), strict=True)
        if level != "irrelevant"
    ]
    return sorted(results, key=lambda result: (LEVELS.index(result.level), -result.score, result.record))


def _lists(*arrays: NDArray[np.generic]) -> list[list[float]]:
    return [array.tolist() for array in arrays]
