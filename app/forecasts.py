"""How long an answer will take, by what answers of the same model have taken since the server started."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Hashable
from typing import NamedTuple

REMEMBERED = 64
NEAREST = 5


class Taken(NamedTuple):
    operations: float
    seconds: float


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
