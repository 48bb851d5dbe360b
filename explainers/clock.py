"""Seconds of work, without the pauses in which other work had the device.

Pieces of work take turns at their checkpoints. What an answer says it took, what a key pays and what the next one of
its kind is expected to take is the time of the piece itself, however many others there were.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_pauses = threading.local()


def working() -> float:
    """Seconds on a clock of this thread that stands still while its work is paused; only differences say something."""
    return time.perf_counter() - _so_far()


@contextmanager
def pausing() -> Iterator[None]:
    """The thread's clock stands still inside."""
    began = time.perf_counter()
    try:
        yield
    finally:
        _pauses.seconds = _so_far() + time.perf_counter() - began


def _so_far() -> float:
    seconds: float = getattr(_pauses, "seconds", 0.0)
    return seconds
