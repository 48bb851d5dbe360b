"""Do the scores point at what the model relies on? Parts are removed, the highest score first, and the target watched.

Removing the top 1, 2, 3, ... pieces of the prompt together (factor 0 in the log-additive form, on top of the caller's
own controls) lowers the target's log-probability by a curve of drops; the same is done for a few random orders. With A
the area under the curve and A_max the area it would have if the first removal already caused the largest drop seen,

    faithfulness = (A - mean A_random) / (A_max - mean A_random).

1: the first piece is all the model relied on; 0: no better than chance; below 0: worse. All removals are variants of
one question to the engine that computes the scores themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from explainers.language_model import LanguageModel
from explainers.plan import check_finite, kept, plan
from explainers.suppression import log_probabilities
from explainers.types import AtmanConfig, Attribution, Checkpoint, Prompt, never_stop

ORDERS = 4
"""Random orders that the scores are held against."""

STEPS = 16
"""Removals per order at most: with more pieces than that, evenly many more are removed each time."""


@dataclass(frozen=True, slots=True)
class Faithfulness:
    """`score` is None where nothing tells orders apart: fewer than two pieces, or no removal that matters."""

    score: float | None
    removed: tuple[int, ...]  # K, how many pieces are removed at each step
    drops: tuple[float, ...]  # K, falls of the target's log-probability in nats, highest score first
    random_drops: tuple[float, ...]  # K, the mean over the random orders
    area: float
    random_areas: tuple[float, ...]
    largest_area: float
    forwards: int
    rows: int


def faithfulness(
    model: LanguageModel,
    prompt: Prompt,
    target: str,
    config: AtmanConfig,
    attribution: Attribution,
    seed: int,
    checkpoint: Checkpoint = never_stop,
) -> Faithfulness:
    """How well the order of `attribution`'s scores, summed over its targets, tells what the target needs.

    `attribution` answers the other arguments. `seed` decides the random orders; derive it from the request, so that
    the same request has the same answer.
    """
    asked = plan(model, prompt, target, replace(config, control_factor=0.0, target_granularity="complete"), checkpoint)
    shares = asked.shares()  # (F, S)
    totals = attribution.values.sum(axis=0)[: len(shares)]  # the pieces of the prompt come first
    ranked = np.argsort(-totals, kind="stable")
    generator = np.random.default_rng(seed)
    orders = [ranked, *(generator.permutation(len(ranked)) for _ in range(ORDERS))]
    removed = steps(len(ranked))
    variants = [asked.base * kept(shares[order[:count]]) for order in orders for count in removed]
    found = log_probabilities(model, asked.sequence, asked.base, variants, log_additive=True, checkpoint=checkpoint)
    check_finite(model, found.base, found.variants)
    drops = (found.base - found.variants).sum(axis=1).reshape(len(orders), len(removed))  # (1 + ORDERS, K)
    return _judged(drops, removed, found.forwards, found.rows)


def _judged(drops: NDArray[np.float64], removed: Sequence[int], forwards: int, rows: int) -> Faithfulness:
    areas = drops.mean(axis=1) if removed else np.zeros(len(drops))
    chance, largest = float(areas[1:].mean()), max(0.0, float(drops.max(initial=0.0)))
    tells = len(removed) > 1 and largest > chance
    return Faithfulness(
        score=float((areas[0] - chance) / (largest - chance)) if tells else None,
        removed=tuple(removed),
        drops=tuple(drops[0].tolist()),
        random_drops=tuple(drops[1:].mean(axis=0).tolist()),
        area=float(areas[0]),
        random_areas=tuple(areas[1:].tolist()),
        largest_area=largest,
        forwards=forwards,
        rows=rows,
    )


def steps(pieces: int) -> tuple[int, ...]:
    """1, 2, 3, ... pieces; of many, numbers evenly apart, the first and all always among them."""
    if pieces <= STEPS:
        return tuple(range(1, pieces + 1))
    return tuple(int(number) for number in np.linspace(1, pieces, STEPS).round())
