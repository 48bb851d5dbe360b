"""What explains rows needs of a model: a batch function from raw rows, or from texts, to outputs.

Outputs are what the model is registered to predict: class probabilities or values, never labels. A classifier of two
classes that gives one column is completed with the other class by whoever binds it to a schema.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from explainers.table import Column, Table
from explainers.types import Checkpoint, never_stop

Space: TypeAlias = Literal["probability", "value", "margin"]
"""What outputs are: shares of classes, predicted values, or scores before the link function."""


class Predictor(Protocol):
    """A model of table rows.

    `digest` names its exact file; `accepts_nulls` says whether a null is a value like any other.
    """

    @property
    def columns(self) -> tuple[Column, ...]: ...  # M

    @property
    def outputs(self) -> tuple[str, ...]: ...  # K

    @property
    def space(self) -> Space: ...

    @property
    def accepts_nulls(self) -> bool: ...

    @property
    def digest(self) -> str: ...

    def predict(self, table: Table) -> NDArray[np.float64]:  # (n, M) -> (n, K)
        """Blocks until done; called with many rows at once, never one by one."""


class TextPredictor(Protocol):
    """A classifier of texts."""

    @property
    def outputs(self) -> tuple[str, ...]: ...  # K

    @property
    def space(self) -> Space: ...

    @property
    def digest(self) -> str: ...

    def predict(self, texts: Sequence[str]) -> NDArray[np.float64]:  # n -> (n, K)
        """Blocks until done; called with many texts at once."""


ROW_BYTES = 64 * 2**20
"""At most so many bytes of cells go into one call."""


def predict_distinct(predictor: Predictor, table: Table, checkpoint: Checkpoint = never_stop) -> NDArray[np.float64]:
    """Outputs of all rows, (n, K), each different row predicted once, in blocks of bounded size."""
    rows, places = table.distinct()
    size = max(1, ROW_BYTES // (8 * max(1, table.cells.shape[1])))
    blocks = []
    for start in range(0, len(rows), size):
        checkpoint()
        blocks.append(predictor.predict(rows.take(slice(start, start + size))))
    found: NDArray[np.float64] = np.concatenate(blocks)[places] if blocks else np.zeros((0, len(predictor.outputs)))
    return found
