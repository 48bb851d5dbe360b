"""One line of a check: what was compared, how far apart it was found, how far apart it may be."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from explainers.answers import SAME_OUTPUT
from explainers.errors import InconsistentAnswer, InvalidRequest, MissingCapability
from explainers.types import Attribution

CHANCE = 1e-6
"""Of a false alarm, for all numbers of one comparison together, where what is compared is random."""

ROUNDING = 1e-9
"""A difference that does not count where errors are measured, relative to the largest number: the solvers' rounding."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A difference and what it may be; the note says what of."""

    value: float
    tolerance: float
    note: str = ""

    @property
    def passed(self) -> bool:
        """NaN never does."""
        return bool(self.value <= self.tolerance)


@dataclass(frozen=True, slots=True)
class Line:
    """`passed` is None where nothing was judged; the note then says why."""

    name: str
    passed: bool | None
    value: float | None
    tolerance: float | None
    note: str


def judged(name: str, compare: Callable[[], Finding]) -> Line:
    """The line of a comparison; one that cannot be made says why, one that breaks a law on the way has failed."""
    try:
        found = compare()
    except InvalidRequest as error:
        return Line(name, None, None, None, f"not compared: {error}")
    except InconsistentAnswer as error:
        return Line(name, False, None, None, str(error))
    return Line(name, found.passed, found.value, found.tolerance, found.note)


def gap(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    """The largest difference; infinite where a number is not finite on both sides, or shapes differ."""
    if ours.shape != theirs.shape:
        return float("inf")
    apart = np.abs(ours - theirs)
    return float(apart.max(initial=0.0)) if np.isfinite(apart).all() else float("inf")


def in_errors(
    ours: NDArray[np.float64],
    theirs: NDArray[np.float64],
    errors: NDArray[np.float64],  # of the difference
    note: str = "",
) -> Finding:
    """The largest difference in standard errors, allowed to be what so many random numbers reach once in a million."""
    told = f"in standard errors; {note}"
    if not np.isfinite(gap(ours, theirs)):
        return Finding(float("inf"), 0.0, told)
    rounding = ROUNDING * max(np.abs(ours).max(initial=0.0), np.abs(theirs).max(initial=0.0))
    apart = (np.abs(ours - theirs) - rounding).clip(min=0)
    counted = np.divide(apart, errors, out=np.where(apart > 0, np.inf, 0.0), where=errors > 0)
    allowed = NormalDist().inv_cdf(1 - CHANCE / (2 * max(1, ours.size)))
    return Finding(float(counted.max(initial=0.0)), allowed, told)


def adds_up(outputs: NDArray[np.float64], found: Sequence[Attribution]) -> Finding:  # (n, K)
    """Scores and base value, against outputs that were predicted apart."""
    sums = np.stack([answer.values.sum(axis=1) + np.asarray(answer.base_values) for answer in found])
    return Finding(gap(sums, outputs), SAME_OUTPUT * max(1.0, float(np.abs(outputs).max(initial=0.0))))


def classes_cancel(found: Sequence[Attribution], tolerance: float) -> Finding:
    """Where classes are shares of one, what one of them gains the others lose."""
    together = np.concatenate([answer.values.sum(axis=0) for answer in found])
    return Finding(gap(together, np.zeros_like(together)), tolerance)


def repeats(found: Sequence[Attribution], again: Sequence[Attribution]) -> Finding:
    """The same question once more: the same numbers, to the last bit."""
    return Finding(max(gap(a.values, b.values) for a, b in zip(found, again, strict=True)), 0.0)


def package(name: str) -> Any:
    """A package to compare with, which nothing else needs. Raises MissingCapability where it is not installed."""
    try:
        with warnings_ignored():
            return importlib.import_module(name)
    except ImportError as error:
        raise MissingCapability(f"{name.partition('.')[0]} is not installed") from error


@contextmanager
def warnings_ignored() -> Iterator[None]:
    """What packages say of each other is not the user's business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """numpy's global generator from a seed, and afterwards as it was: there are packages that draw from it."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
