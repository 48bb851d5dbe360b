"""Long work that tells its passes apart: a generator that pauses after each, and calls the checkpoint before each."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeAlias, TypeVar

from app.device import Priority
from app.runtime import Runtime, Spent
from explainers.decoding import outcome_of
from explainers.language_model import LanguageModel
from explainers.types import Checkpoint

Outcome = TypeVar("Outcome")

Start: TypeAlias = Callable[[Checkpoint], Generator[None, None, Outcome]]
"""Begins the work, from the start each time it is called."""


async def take_turns(
    runtime: Runtime,
    start: Start[Outcome],
    priority: Priority,
    *,
    on: LanguageModel | None = None,
    spent: Spent | None = None,
) -> Outcome:
    """The outcome of the work, done where the weights of `on` are; cancelling this stops it at its next checkpoint.

    Raises `QueueFull` at once when too much work waits already, but not once the work has begun.
    """
    return await runtime.run(lambda checkpoint: outcome_of(start(checkpoint)), priority, on=on, spent=spent)
