"""Models that are a formula: what they say of a row is known, and the same whatever rows come with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from explainers.predictor import Space
from explainers.table import Column, Table

Formula = Callable[[NDArray[np.float64]], NDArray[np.float64]]  # (n, M) -> (n, K)


def numeric(names: str) -> tuple[Column, ...]:
    return tuple(Column(name) for name in names.split())


@dataclass
class RowFormula:
    columns: tuple[Column, ...]
    formula: Formula
    outputs: tuple[str, ...] = ("y",)
    space: Space = "value"
    accepts_nulls: bool = True
    digest: str = "sha256:formula"
    asked: list[int] = field(default_factory=list)

    def predict(self, table: Table) -> NDArray[np.float64]:
        self.asked.append(len(table))
        return self.formula(table.cells)


def two_classes(chance: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Formula:
    """A classifier from the chance (n,) of the first class."""

    def formula(cells: NDArray[np.float64]) -> NDArray[np.float64]:
        first = chance(cells)
        return np.stack([first, 1 - first], axis=1)

    return formula


def logistic(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-scores))


def wavy(cells: NDArray[np.float64]) -> NDArray[np.float64]:  # (n, M) -> (n, 1)
    """Curved, with interactions, every column different; column by column, so that the last bit holds in any batch."""
    total = np.zeros(len(cells))
    for place, column in enumerate(cells.T):
        total = total + np.sin(column * (1 + 0.1 * place)) + 0.3 * column * cells[:, (place + 1) % cells.shape[1]]
    return np.tanh(total / 3)[:, None]


@dataclass
class WordFormula:
    """Scores a text by the words that are left of it."""

    formula: Callable[[list[str]], Sequence[float]]
    outputs: tuple[str, ...] = ("y",)
    space: Space = "probability"
    digest: str = "sha256:words"
    asked: list[list[str]] = field(default_factory=list)

    def predict(self, texts: Sequence[str]) -> NDArray[np.float64]:
        self.asked.append(list(texts))
        return np.array([self.formula(re.findall(r"\w+", text)) for text in texts], dtype=float).reshape(len(texts), -1)
