"""Rows of raw input as models of tables get them: numbers, categories, texts and nulls, before any encoding.

Every cell is a float64, so that masking and mixing rows are plain array operations: a number is itself, a category or
text the place of its level, a null NaN. Encoders stay inside predictors: a mask over encoded columns would make rows
that no encoder can produce.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Kind: TypeAlias = Literal["number", "integer", "boolean", "category"]
Value: TypeAlias = float | int | bool | str | None


@dataclass(frozen=True, slots=True)
class Column:
    """An input: `levels` are the values of a category in their declared order, those seen later behind them."""

    name: str
    kind: Kind = "number"
    levels: tuple[str, ...] = ()

    @property
    def is_category(self) -> bool:
        return self.kind == "category"


@dataclass(frozen=True, slots=True)
class Table:
    """n rows of M inputs."""

    columns: tuple[Column, ...]  # M
    cells: NDArray[np.float64]  # (n, M); NaN is null

    def __len__(self) -> int:
        return len(self.cells)

    def take(self, rows: NDArray[np.int_] | slice) -> Table:
        return replace(self, cells=self.cells[rows])

    def with_cells(self, cells: NDArray[np.float64]) -> Table:
        """Other rows of the same columns."""
        return replace(self, cells=cells)

    def distinct(self) -> tuple[Table, NDArray[np.int_]]:
        """Each different row once, and for every row the place of its like; equal nulls are alike."""
        if not self.cells.size:
            return self.take(slice(0, 1)), np.zeros(len(self), dtype=int)
        bits = np.ascontiguousarray(self.cells + 0.0)  # negative zero becomes zero
        keys = bits.view(np.dtype((np.void, bits.itemsize * bits.shape[1]))).ravel()
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        order = np.sort(first)  # in order of appearance
        rank = np.empty(len(first), dtype=int)
        rank[np.argsort(first)] = np.arange(len(first))
        return self.take(order), rank[inverse.ravel()]

    def values(self, column: int) -> list[Value]:
        """The cells of one column as Python values."""
        return list(self._values(column))

    def _values(self, place: int) -> Iterator[Value]:
        column = self.columns[place]
        for cell in self.cells[:, place].tolist():
            if math.isnan(cell):
                yield None
            elif column.is_category:
                yield column.levels[int(cell)]
            elif column.kind == "boolean":
                yield bool(cell)
            else:
                yield int(cell) if column.kind == "integer" and cell.is_integer() else cell


def table_of(columns: Sequence[Column], rows: Sequence[Sequence[Value]]) -> Table:
    """A table of rows in column order. A category that no level is yet becomes a level behind the others.

    Raises TypeError for a value that is not of its column's kind.
    """
    grown, cells = [], np.full((len(rows), len(columns)), np.nan)
    for place, column in enumerate(columns):
        levels = {level: index for index, level in enumerate(column.levels)}
        for index, row in enumerate(rows):
            value = row[place]
            if value is None:
                continue
            if column.is_category != isinstance(value, str):
                raise TypeError(f"column {column.name} holds {column.kind} values")
            cells[index, place] = levels.setdefault(value, len(levels)) if isinstance(value, str) else float(value)
        grown.append(replace(column, levels=tuple(levels)))
    return Table(tuple(grown), cells)
