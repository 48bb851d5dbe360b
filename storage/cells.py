"""Values of attributes as rows keep them: an array of numbers and one of texts, a place for each slot of the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import InvalidValue
from storage.monitored_tables import MonitoredAttribute
from storage.staging import FLOATS, TEXTS, Column
from storage.values import json_text

TIMESTAMP = "TIMESTAMP"


@dataclass(frozen=True, slots=True)
class Cells:
    """n rows of a model."""

    numbers: NDArray[np.float64]  # (n, number slots); NaN is null
    texts: tuple[Sequence[str | None], ...]  # text slots, n each

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, rows: slice) -> Cells:
        return Cells(self.numbers[rows], tuple(column[rows] for column in self.texts))

    def columns(self) -> dict[str, Column]:
        """For staging."""
        rows = list(zip(*self.texts, strict=True)) if self.texts else [()] * len(self)
        return {"numbers": Column(FLOATS, self.numbers), "texts": Column(TEXTS, rows)}


def cells_of(attributes: Sequence[MonitoredAttribute], columns: Mapping[str, Any], rows: int) -> Cells:
    """The rows that are given as one column for each attribute; an attribute without column is null throughout.

    A column is an array or sequence: numbers, booleans, times (datetime64 or datetimes in UTC without zone), or texts,
    of which those that are no `str` are stored as JSON. Integers beyond 2^53 lose their last digits. Raises
    InvalidValue for a column of no attribute, of another length, or with values of another kind.
    """
    if unknown := set(columns) - {attribute.name for attribute in attributes}:
        raise InvalidValue(f"{len(unknown)} columns are of no attribute of the model")
    numbers = np.full((rows, count_of(attributes, "number")), np.nan)
    texts: list[Sequence[str | None]] = [[None] * rows] * count_of(attributes, "text")
    for attribute in attributes:
        if (column := columns.get(attribute.name)) is None:
            continue
        if len(column) != rows:
            raise InvalidValue(f"the column of attribute {attribute.name} has another length")
        if attribute.slot_kind == "number":
            numbers[:, attribute.slot - 1] = _numbers(attribute, column)
        else:
            texts[attribute.slot - 1] = [_text(value) for value in column]
    return Cells(numbers, tuple(texts))


def count_of(attributes: Iterable[MonitoredAttribute], slot_kind: str) -> int:
    """How many slots of that kind the rows of a model have."""
    return sum(attribute.slot_kind == slot_kind for attribute in attributes)


def _numbers(attribute: MonitoredAttribute, column: Any) -> NDArray[np.float64]:  # (n,)
    values = np.asarray(column)
    try:
        if values.dtype.kind in "SU" or (values.dtype.kind == "O" and any(isinstance(each, str) for each in values)):
            raise TypeError("text")  # which numpy would read
        if attribute.value_type == TIMESTAMP:
            return _microseconds(values.astype("datetime64[us]"))
        return values.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        raise InvalidValue(f"attribute {attribute.name} holds values of type {attribute.value_type}") from None


def _microseconds(moments: NDArray[np.datetime64]) -> NDArray[np.float64]:  # (n,)
    return np.where(np.isnat(moments), np.nan, moments.astype(np.int64).astype(np.float64))


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json_text(value)
