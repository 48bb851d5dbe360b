"""How much of a score is rounding: the numerical noise floor of deterministic methods.

The question is asked again with slightly other numbers: all factors together a few per cent larger or smaller (which
alone would cancel in the softmax), those of the damped columns once more so. What the scores truly do over such a
short way is a parabola; three times the standard deviation of what is left around it is the floor. Across prompts it
follows the error of low-precision arithmetic, of which a single standard deviation shows about a third.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from explainers.plan import Plan
from explainers.types import Attribution, Checkpoint, never_stop

SHIFTS = (-0.03, -0.02, -0.01, 0.01, 0.02, 0.03)
MULTIPLICATIVE = 0.1
"""The multiplicative form gets a tenth of that: there a common factor sharpens every softmax."""

DEVIATIONS = 3.0


@dataclass(frozen=True, slots=True)
class Noise:
    floor: NDArray[np.float64]  # (T, F), in the unit of the scores
    forwards: int


def noise_floor(
    explain: Callable[[Plan, Checkpoint], Attribution],
    asked: Plan,
    found: Attribution,
    checkpoint: Checkpoint = never_stop,
) -> Noise:
    """The floor of every score of `found`, which is what `explain` answered to `asked`."""
    shifts = np.array(SHIFTS) * (1.0 if asked.config.log_additive else MULTIPLICATIVE)
    repeats = [explain(_shifted(asked, 1 + shift), checkpoint) for shift in shifts]
    scores = np.stack([found.values, *(repeat.values for repeat in repeats)])  # (N, T, F)
    floor = DEVIATIONS * _roughness(np.log1p([0.0, *shifts]), scores.reshape(len(scores), -1))
    forwards = sum(int(repeat.facts["forwards"]) for repeat in repeats)
    return Noise(floor.reshape(found.values.shape), forwards)


def _roughness(places: NDArray[np.float64], series: NDArray[np.float64]) -> NDArray[np.float64]:  # (N,), (N, K) -> (K,)
    """Standard deviation of each series around its own parabola over `places`."""
    scaled = places / np.abs(places).max()
    parabola = np.vander(scaled, 3)
    left = series - parabola @ np.linalg.lstsq(parabola, series, rcond=None)[0]
    deviation: NDArray[np.float64] = np.sqrt((left**2).sum(axis=0) / (len(places) - parabola.shape[1]))
    return deviation


def _shifted(asked: Plan, by: float) -> Plan:
    variants = tuple(variant * np.where(variant == asked.base, by, by**2) for variant in asked.variants)
    return replace(asked, base=asked.base * by, variants=variants)
