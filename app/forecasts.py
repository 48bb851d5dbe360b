"""How long an answer will take, by what answers of the same model have taken since the server started."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Hashable
from typing import NamedTuple

REMEMBERED = 64
NEAREST = 5
FASTEST = {"cpu": 2e12, "cuda": 2e15}
"""Operations per second that no such device exceeds: as long as nothing was timed, work takes at least so long."""
MOST_PREDICTIONS_PER_SECOND = 1e8
"""The same of rows that a predictor is asked for."""


class Taken(NamedTuple):
    operations: float
    seconds: float


class Expected(NamedTuple):
    """Seconds of work to come; not `measured`: at least so many, since nothing like it was timed."""

    seconds: float
    measured: bool


class Rates:
    """Measured speeds; what has not been measured is not known."""

    def __init__(self) -> None:
        self._taken: dict[Hashable, deque[Taken]] = {}

    def note(self, key: Hashable, operations: float, seconds: float) -> None:
        if operations > 0 and seconds > 0:
            self._taken.setdefault(key, deque(maxlen=REMEMBERED)).append(Taken(operations, seconds))

    def seconds(self, key: Hashable, operations: float) -> float | None:
        """By the median speed of the answers whose size was nearest; None before the first."""
        known = self._taken.get(key)
        if not known or operations <= 0:
            return None
        nearest = sorted(known, key=lambda taken: abs(math.log(taken.operations / operations)))[:NEAREST]
        return operations * statistics.median(taken.seconds / taken.operations for taken in nearest)

    def expected(self, key: Hashable, alike: Hashable, operations: float, fastest: float) -> Expected:
        """As long as such work has taken. Before the first of it, as long as it takes at the highest speed of what is
        `alike`, or else at `fastest` operations a second: no less.
        """
        seconds = self.seconds(key, operations)
        if seconds is not None:
            return Expected(seconds, True)
        pace = min((taken.seconds / taken.operations for taken in self._taken.get(alike, ())), default=1 / fastest)
        return Expected(operations * pace, False)
