"""scikit-learn models in .skops files, each in a process of its own with hard limits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from explainers.confined.child_process import ChildProcess, Limits
from explainers.errors import PredictorFailed, UnreadableModel
from explainers.predictors.artifact import Contributions, Signature, library
from explainers.predictors.contents import Content
from explainers.table import Table

CHILD = "explainers.predictors.skops_child"
OUTPUTS: Mapping[str, Literal["margin", "probability", "value"]] = {
    "margin": "margin",
    "probability": "probability",
    "value": "value",
}


@dataclass(frozen=True, slots=True)
class SkopsModel:
    """Any thread may call; rows and answers travel through a pipe."""

    process: ChildProcess
    signature: Signature
    digest: str
    format: str = "skops"

    def predict(self, table: Table) -> NDArray[np.float64]:  # (n, M) -> (n, K)
        return self._ask("predict", table, "found")[1][0]

    def contributions(self, table: Table) -> Contributions:
        """By `shap.TreeExplainer` beside the model. Raises MissingCapability where the model is not one of trees."""
        answer, (values, base, margins) = self._ask("contributions", table, "values", "base", "margins")
        return Contributions(values, base, margins, OUTPUTS[answer.get("output", "")], {"engine": "shap"})

    def _ask(self, ask: str, table: Table, *names: str) -> tuple[dict[str, Any], list[NDArray[np.float64]]]:
        header = {
            "ask": ask,
            "rows": len(table),
            "width": len(table.columns),
            "names": [column.name for column in table.columns],
            "levels": [list(column.levels) if column.is_category else None for column in table.columns],
        }
        answer, numbers = self.process.call(header, np.ascontiguousarray(table.cells, dtype="<f8").tobytes())
        arrays = _unpacked(answer.get("arrays"), numbers, names)
        if any(len(array) != len(table) for name, array in zip(names, arrays, strict=True) if name != "base"):
            raise PredictorFailed("the model's process answered with another number of rows")
        return answer, arrays


def load(content: Content, limits: Limits | None = None) -> SkopsModel:
    """Raises UnreadableModel, PredictorFailed, MissingCapability without the library."""
    for name in ("skops", "sklearn"):
        library(name)
    if not content.data.startswith(b"PK"):
        raise UnreadableModel(f"{content.name} is no .skops file")
    process = ChildProcess(CHILD, content.data, limits or Limits(), "the scikit-learn model")
    facts = process.start()
    classes = facts.get("classes")
    width, names = facts.get("width"), facts.get("names")
    signature = Signature(
        width=width,
        inputs=tuple(names) if names else None,
        strings=True,
        outputs=len(classes) if classes and facts["classifier"] else None,
        classes=tuple(classes) if classes else None,
        space="probability" if facts["classifier"] else "value",
        exclusive=not facts["several"],
    )
    return SkopsModel(process, signature, content.digest)


def _unpacked(shapes: Any, numbers: bytes, names: tuple[str, ...]) -> list[NDArray[np.float64]]:
    """Arrays by their shapes, held against the bytes that came."""
    if not isinstance(shapes, dict) or tuple(shapes) != names:
        raise PredictorFailed("the model's process answered something else")
    if sum(math.prod(shape) for shape in shapes.values()) * 8 != len(numbers):
        raise PredictorFailed("the model's process answered another size than it said")
    found, place = [], 0
    for shape in shapes.values():
        count = math.prod(shape)
        found.append(np.frombuffer(numbers, dtype="<f8", count=count, offset=place).reshape(shape).astype(np.float64))
        place += count * 8
    return found
