"""Mean average precision of object detections, from boxes in tables of numbers.

As in Everingham et al., The PASCAL Visual Object Classes Challenge: a Retrospective, 2015, section 4: detections in the
order of their confidence claim the boxes of the ground truth, and the area under the precision-recall curve, made
monotone, is summed over all its points. Here a detection claims the free box with the largest overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from storage.errors import InvalidQuery

MOST_PAIRS = 1_000_000
"""Of a detection and a box of the same row and class; all of them are held in memory."""
Numbers: TypeAlias = NDArray[np.float64]
Places: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Boxes:
    """B boxes of many rows, in the order of rows."""

    rows: Places  # (B,)
    classes: Numbers  # (B,)
    confidences: Numbers  # (B,)
    corners: Numbers  # (B, 4): left, top, right, bottom

    def ordered(self, order: Places) -> Boxes:
        return Boxes(self.rows[order], self.classes[order], self.confidences[order], self.corners[order])


def mean_average_precision(detected: Boxes, true: Boxes, threshold: float) -> float | None:
    """The mean over the classes that have ground truth; None without any.

    A detection may claim a box whose overlap with it (intersection over union) is at least `threshold`. Of equal
    confidence, the earlier row comes first. Raises InvalidQuery for more than MOST_PAIRS pairs that might match.
    """
    detected = detected.ordered(np.argsort(-detected.confidences, kind="stable"))
    hits = matched(detected, true, threshold)
    classes, counts = np.unique(true.classes, return_counts=True)
    found = [_area(hits[detected.classes == each], int(n)) for each, n in zip(classes, counts, strict=True)]
    return float(np.mean(found)) if found else None


def matched(detected: Boxes, true: Boxes, threshold: float) -> NDArray[np.bool_]:  # (D,)
    """Whether each detection claims a box, when they choose one after the other."""
    hits, free = np.zeros(len(detected.rows), bool), np.ones(len(true.rows), bool)
    claims, wanted, turns = _pairs(detected, true, threshold)  # (P,) each
    bounds = np.flatnonzero(np.diff(turns, prepend=-1, append=-1))
    for start, stop in pairwise(bounds):
        # Of each row and class there is one detection a turn, so that claims of one turn never meet.
        here = np.arange(start, stop)[free[wanted[start:stop]]]
        chosen, first = np.unique(claims[here], return_index=True)
        hits[chosen], free[wanted[here[first]]] = True, False
    return hits


def _pairs(detected: Boxes, true: Boxes, threshold: float) -> tuple[Places, Places, Places]:
    """Detections and the boxes that they may claim, the best first, with the turn of each detection; by turn."""
    groups, others = _groups(detected, true)
    by_group = np.argsort(others, kind="stable")
    starts, stops = (np.searchsorted(others[by_group], groups, side) for side in ("left", "right"))
    counts = stops - starts  # (D,)
    if counts.sum() > MOST_PAIRS:
        raise InvalidQuery(f"more than {MOST_PAIRS} pairs of boxes might match: filter more")
    claims = np.repeat(np.arange(len(groups)), counts)
    within = np.arange(len(claims)) - np.repeat(np.cumsum(counts) - counts, counts)
    wanted = by_group[np.repeat(starts, counts) + within]
    overlaps = overlap(detected.corners[claims], true.corners[wanted])
    near = np.flatnonzero(overlaps >= threshold)
    claims, wanted, overlaps = claims[near], wanted[near], overlaps[near]
    turns = _turns(groups)[claims]
    order = np.lexsort((wanted, -overlaps, claims, turns))
    return claims[order], wanted[order], turns[order]


def _groups(detected: Boxes, true: Boxes) -> tuple[Places, Places]:
    """A number for each row and class, the same on both sides."""
    rows = np.concatenate([detected.rows, true.rows])
    _, classes = np.unique(np.concatenate([detected.classes, true.classes]), return_inverse=True)
    numbers = rows * (len(classes) + 1) + classes
    return numbers[: len(detected.rows)], numbers[len(detected.rows) :]


def _turns(groups: Places) -> Places:
    """How many of the same group come before each."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    turns = np.empty_like(groups)
    turns[order] = np.arange(len(groups)) - np.searchsorted(ordered, ordered, "left")
    return turns


def overlap(one: Numbers, other: Numbers) -> Numbers:  # (P, 4), (P, 4) -> (P,)
    """Intersection over union; 0 for boxes without an area."""
    sides = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])
    shared = np.prod(np.maximum(sides, 0.0), axis=1)
    areas = [np.prod(each[:, 2:] - each[:, :2], axis=1) for each in (one, other)]
    union = areas[0] + areas[1] - shared
    found: Numbers = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return found


def _area(hits: NDArray[np.bool_], boxes: int) -> float:
    """Under the monotone precision-recall curve of one class, whose detections come by confidence."""
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[hits].sum() / boxes)
