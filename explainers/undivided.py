"""Stretches of work in the middle of which no other work may touch a model.

Hooks, the choice of attention, frozen weights: what is done to a shared model for one pass would act on the passes of
others too. Every context manager that does such a thing is therefore `undivided`, and whoever lets pieces of work take
turns on one device asks `is_undivided` before it lets go of one in its middle.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_UNDIVIDED: ContextVar[bool] = ContextVar("undivided", default=False)


@contextmanager
def undivided() -> Iterator[None]:
    """Inside, a checkpoint may stop the work of this thread but never lets other work in between."""
    token = _UNDIVIDED.set(True)
    try:
        yield
    finally:
        _UNDIVIDED.reset(token)


def is_undivided() -> bool:
    """Whether this thread is inside such a stretch."""
    return _UNDIVIDED.get()
