"""What answering a plan will take, counted before anything is run.

Counts of passes and rows follow from the plan. Bytes and arithmetic are estimates from the sizes of the model: of the
linear layers (two operations per weight and row), of attention (rows times columns) and of the logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from explainers.faithfulness import ORDERS, steps
from explainers.noise import SHIFTS
from explainers.plan import Plan
from explainers.types import AblationConfig, ScreenedConfig

ROWS_AT_ONCE = 1024
"""About as many rows make one pass of several chunks."""


@dataclass(frozen=True, slots=True)
class Cost:
    """`bytes` is the memory beyond the weights, `operations` the floating-point arithmetic; both estimated."""

    forwards: int
    backwards: int
    rows: int
    bytes: int
    operations: float


def cost(asked: Plan, *, gradient: bool, exact: bool, evaluate: bool = False, uncertainty: bool = False) -> Cost:
    """Of a method that runs a `gradient`, `exact` passes for its chunks, or both (then only for some of them).

    An upper bound where what is run depends on what is found: which chunks are exact, and in which order they are
    removed.
    """
    positions, chunks = asked.sequence.positions, list(_rows_of_chunks(asked))
    if gradient and exact:
        count = asked.config.exact if isinstance(asked.config, ScreenedConfig) else ScreenedConfig().exact
        chunks = sorted(chunks, reverse=True)[:count]
    if isinstance(asked.config, AblationConfig):
        chunks = [positions] * asked.config.samples if asked.chunks else []
    targets = len(asked.sequence.target) if asked.by_target_token else 1
    forwards, backwards, rows = 0, 0, 0
    if gradient:
        forwards, backwards, rows = 1, targets, positions
    if exact:
        forwards, rows = forwards + 1 + _packed(chunks), rows + positions + sum(chunks)
    # Samples have standard errors of their own; all other methods answer again for each shift.
    times = 1 + (len(SHIFTS) if uncertainty and not isinstance(asked.config, AblationConfig) else 0)
    forwards, backwards, rows = forwards * times, backwards * times, rows * times
    if evaluate:
        pieces = sum(chunk.feature.item < asked.items for chunk in asked.chunks)
        removals = [positions] * (len(steps(pieces)) * (1 + ORDERS))
        forwards, rows = forwards + 1 + _packed(removals), rows + positions + sum(removals)
    done = rows + positions * backwards
    return Cost(forwards, backwards, rows, _bytes(asked, chunks, gradient), _operations(asked, done))


def _rows_of_chunks(asked: Plan) -> Iterable[int]:
    """For each chunk that changes anything, the rows from the first changed column on."""
    for variant in asked.variants:
        changed = np.flatnonzero(variant != asked.base)
        if changed.size:
            yield asked.sequence.positions - int(changed[0])


def _packed(rows: Sequence[int]) -> int:
    """Passes that segments of so many rows make, as many to a pass as fit."""
    passes, room = 0, 0
    for size in sorted(rows):
        if size > room:
            passes, room = passes + 1, ROWS_AT_ONCE
        room -= size
    return passes


def _operations(asked: Plan, rows: int) -> float:
    sizes = asked.model.sizes
    attention = 4.0 * sizes.layers * sizes.width * asked.sequence.positions
    scored = len(asked.sequence.target) * (1 + len(asked.variants))
    return rows * (2.0 * sizes.weights + attention) + 2.0 * scored * sizes.width * sizes.vocabulary


def _bytes(asked: Plan, chunks: Sequence[int], gradient: bool) -> int:
    """Keys and values of all layers, masks, and what one pass holds at a time; for a gradient, in all layers."""
    sizes, positions = asked.model.sizes, asked.sequence.positions
    recorded = 2 * sizes.layers * positions * sizes.keys * sizes.itemsize
    rows = max([positions, min(ROWS_AT_ONCE, sum(chunks))])
    active = rows * sizes.width * 12 * sizes.itemsize * (sizes.layers if gradient else 1)
    scores = rows * positions * 4
    logits: int = len(asked.sequence.target) * sizes.vocabulary * 8 * max(1, rows // positions)
    return recorded + active + scores + logits
