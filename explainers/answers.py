"""What all surrogates say alike: features and targets of an answer, its numbers as JSON, and the laws it must obey."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from explainers.errors import InconsistentAnswer
from explainers.table import Column
from explainers.types import Feature, Target

ADDITIVITY = 1e-9
"""How far scores and base value may miss the output, relative to the largest of them: rounding, no more."""

SAME_OUTPUT = 1e-5
"""How far two runs of one model may differ on a row, absolutely and relatively: float32 and batch shapes."""

OPPOSITE = 5e-7
"""How far two outputs may miss the sum of 1 and still be taken for p and 1 - p, which they then become: float32."""

DECIMALS = 6
"""Rounding of stored predictions is seen up to here; finer is within `SAME_OUTPUT`."""

FLOAT32 = 1e-7
"""A decimal number kept in float32 is off by less, relatively."""

Numbers: TypeAlias = list[float | None]


def features_of(columns: Sequence[Column]) -> tuple[Feature, ...]:
    return tuple(Feature(column.name, 0, place) for place, column in enumerate(columns))


def targets_of(outputs: Sequence[str]) -> tuple[Target, ...]:
    return tuple(Target(output) for output in outputs)


def numbers(values: NDArray[np.float64]) -> Numbers:  # (n,)
    """As JSON has them: None for NaN."""
    return [None if np.isnan(value) else float(value) for value in values]


def array(values: Sequence[float | None]) -> NDArray[np.float64]:  # (n,)
    """The inverse of `numbers`."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def are_opposite(outputs: NDArray[np.float64]) -> bool:  # (n, K)
    """Whether there are two outputs, everywhere p and 1 - p. What is linear in outputs is then solved once."""
    return outputs.shape[1] == 2 and bool((np.abs(outputs.sum(axis=1) - 1) <= OPPOSITE).all())


def check_outputs(outputs: NDArray[np.float64], rows: int, names: Sequence[str]) -> None:
    """Raises InconsistentAnswer unless there is a finite number for each row and each of the outputs `names`."""
    if outputs.shape != (rows, len(names)):
        raise InconsistentAnswer(f"the model gave outputs of shape {outputs.shape}, not {(rows, len(names))}")
    if not np.isfinite(outputs).all():
        raise InconsistentAnswer("the model gave an output that is not finite")


def check_additive(
    values: NDArray[np.float64],  # (K, M)
    base: NDArray[np.float64],  # (K,)
    output: NDArray[np.float64],  # (K,)
    tolerance: float = ADDITIVITY,
) -> None:
    """Raises InconsistentAnswer unless scores and base value add up to the output."""
    scale = np.maximum(np.abs(values).max(axis=1, initial=0.0), np.maximum(np.abs(base), np.abs(output)))
    missed = np.abs(values.sum(axis=1) + base - output)
    if not (missed <= tolerance * scale).all():  # NaN too
        raise InconsistentAnswer(f"scores and base value miss the output by {missed.max():.3g}")


def check_unchanged(found: NDArray[np.float64], stored: NDArray[np.float64]) -> None:  # (n, K), (n, K); NaN = unknown
    """Raises InconsistentAnswer where a model no longer predicts what was stored for a row."""
    agrees = unchanged(found, stored)
    if not agrees.all():
        gap = np.nanmax(np.abs(found - stored)[~agrees])
        raise InconsistentAnswer(f"the model predicts something else than what is stored: {gap:.3g} apart")


def unchanged(found: NDArray[np.float64], stored: NDArray[np.float64]) -> NDArray[np.bool_]:  # 2 x (n, K) -> (n,)
    """For each row whether the model still predicts what is stored; NaN in `stored` is unknown.

    A row that was rounded when it was written may miss half a unit of its last decimal more.
    """
    allowed = SAME_OUTPUT * (1 + np.abs(stored)) + _rounding(stored)[:, None]
    agrees = (np.abs(found - stored) <= allowed) | np.isnan(stored)
    return np.asarray(agrees.all(axis=1))


def _rounding(stored: NDArray[np.float64]) -> NDArray[np.float64]:  # (n, K) -> (n,)
    """Half a unit of the last decimal that a row is written with, 0 beyond `DECIMALS`.

    Zeros at the end are not written: of a row's numbers, the one with most decimals says how all were rounded.
    """
    halves = np.zeros(len(stored))
    for decimals in range(DECIMALS, -1, -1):
        units = stored * 10.0**decimals
        written = np.abs(units - np.rint(units)) <= FLOAT32 * np.maximum(1, np.abs(units))
        halves[(written | np.isnan(stored)).all(axis=1)] = 0.5 / 10.0**decimals
    return halves
