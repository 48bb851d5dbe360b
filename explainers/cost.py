"""What answering a plan will take, counted before anything is run; and what completing or reading a prompt will.

Counts of passes and rows follow from the plan. Bytes and arithmetic are estimates from the sizes of the model: of the
linear layers (two operations per weight and row), of attention (rows times columns) and of the logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from explainers.decoding import CompletionConfig, encoded, most_generated
from explainers.faithfulness import ORDERS, STEPS, steps
from explainers.language_model import LanguageModel
from explainers.noise import SHIFTS
from explainers.plan import Plan
from explainers.types import AblationConfig, Prompt, ScreenedConfig

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
    scored = len(asked.sequence.target) * (1 + len(asked.variants))
    return arithmetic(asked.model, rows, asked.sequence.positions, scored)


def arithmetic(model: LanguageModel, rows: int, columns: int, scored: int) -> float:
    """Operations of so many rows that attend to `columns` each, and of logits at the `scored` ones."""
    sizes = model.sizes
    attention = 4.0 * sizes.layers * sizes.width * columns
    return rows * (2.0 * sizes.weights + attention) + 2.0 * scored * sizes.width * sizes.vocabulary


def most_arithmetic(
    model: LanguageModel, chunks: int, *, gradient: bool, evaluate: bool = False, uncertainty: bool = False
) -> float:
    """Operations that no explanation of so many chunks (or in so many samples) exceeds, whatever the prompt."""
    positions = model.context_length
    passes = (1 + len(SHIFTS) * uncertainty) * (1 + chunks + (1 + positions) * gradient)
    rows = positions * (passes + (1 + STEPS * (1 + ORDERS)) * evaluate)
    return arithmetic(model, rows, positions, rows)


def completion_cost(model: LanguageModel, prompt: Prompt, config: CompletionConfig) -> tuple[int, Cost]:
    """Tokens of the prompt and of all candidates, and what they take at most; raises what completing would raise."""
    sequence = encoded(model, prompt)
    return generation_cost(model, sequence.positions, most_generated(model, sequence, config), candidates(config))


def candidates(config: CompletionConfig) -> int:
    return config.best_of or config.n


def generation_cost(model: LanguageModel, positions: int, tokens: int, branches: int) -> tuple[int, Cost]:
    """The same for so many positions of a prompt, behind which each branch reads so many tokens."""
    generated, columns = tokens * branches, positions + tokens
    size = kept_bytes(model, positions + generated) + columns * columns * model.layers
    operations = arithmetic(model, positions + generated, columns, generated)
    return positions + generated, Cost(max(1, tokens), 0, positions + generated, size, operations)


def reading_cost(model: LanguageModel, positions: int, target: int, times: int) -> Cost:
    """Of reading so many positions, with a target, so many times: an upper bound where beginnings are shared."""
    rows = positions * times
    passes = 1 + -(-rows // ROWS_AT_ONCE)
    size = kept_bytes(model, positions + min(rows, ROWS_AT_ONCE))
    return Cost(passes, 0, rows, size, arithmetic(model, rows, positions, target * times))


def kept_bytes(model: LanguageModel, rows: int) -> int:
    """Keys and values of all layers for so many rows, and what one pass over them holds at a time."""
    sizes = model.sizes
    return rows * (2 * sizes.layers * sizes.keys * sizes.itemsize + sizes.bytes_per_row)


def _bytes(asked: Plan, chunks: Sequence[int], gradient: bool) -> int:
    """Keys and values of all layers, masks, and what one pass holds at a time; for a gradient, in all layers."""
    sizes, positions = asked.model.sizes, asked.sequence.positions
    recorded = 2 * sizes.layers * positions * sizes.keys * sizes.itemsize
    rows = max([positions, min(ROWS_AT_ONCE, sum(chunks))])
    active = rows * sizes.width * 12 * sizes.itemsize * (sizes.layers if gradient else 1)
    scores = rows * positions * 4
    logits: int = len(asked.sequence.target) * sizes.vocabulary * 8 * max(1, rows // positions)
    return recorded + active + scores + logits
