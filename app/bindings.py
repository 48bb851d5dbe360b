"""What a monitored model's definition means to a predictor: columns, outputs, rows; and binding the two together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from app.definitions import Attribute, OutputType
from app.rows import Layout
from explainers.errors import InvalidRequest, MissingCapability
from explainers.loaders import Model
from explainers.predictors.artifact import Artifact, TextArtifact
from explainers.predictors.binding import BoundTexts, Schema, TablePredictor, Task, bind, bind_texts
from explainers.table import Column, Kind, Table
from storage.cells import Cells

Predictor: TypeAlias = TablePredictor | BoundTexts

TASKS: dict[OutputType, Task] = {
    "MULTICLASS": "classification",
    "MULTILABEL": "multilabel",
    "REGRESSION": "regression",
}
DELIMITER = r"\W+"
COLUMNS: dict[str, Kind] = {"FLOAT": "number", "INTEGER": "integer", "BOOLEAN": "boolean", "STRING": "category"}


@dataclass(frozen=True, slots=True)
class Reading:
    """How the rows of a definition are read as a model's inputs and outputs."""

    layout: Layout
    schema: Schema
    inputs: tuple[Attribute, ...]  # M, by position
    outputs: tuple[Attribute, ...]  # K, by position

    @property
    def is_text(self) -> bool:
        return self.layout.definition.input_type == "NLP"

    @property
    def delimiter(self) -> str:
        """Between the tokens of a text."""
        return str(self.layout.definition.details.get("text_delimiter", DELIMITER))

    def cells(self, rows: Sequence[Any]) -> Cells:
        """The values of n stored rows, each with its `numbers` and `texts`."""
        numbers = np.array([row.numbers for row in rows], dtype=np.float64).reshape(len(rows), self.layout.numbers)
        return Cells(numbers, tuple([row.texts[slot] for row in rows] for slot in range(self.layout.texts)))

    def table(self, cells: Cells, columns: Sequence[Column]) -> Table:
        """The inputs of n rows."""
        found = np.full((len(cells), len(self.inputs)), np.nan)
        grown = []
        for place, (column, attribute) in enumerate(zip(columns, self.inputs, strict=True)):
            slot = self.layout.places[attribute.name].slot
            if attribute.is_number:
                found[:, place] = cells.numbers[:, slot]
                grown.append(column)
            else:
                levels = {level: index for index, level in enumerate(column.levels)}
                texts = cells.texts[slot]
                found[:, place] = [np.nan if each is None else levels.setdefault(each, len(levels)) for each in texts]
                grown.append(replace(column, levels=tuple(levels)))
        return Table(tuple(grown), found)

    def texts(self, cells: Cells) -> list[str]:
        """The text of n rows; what is null is empty."""
        slot = self.layout.places[self.inputs[0].name].slot
        return [text or "" for text in cells.texts[slot]]

    def predicted(self, cells: Cells) -> NDArray[np.float64]:  # (n, K)
        """The outputs that came with n rows; NaN where there was none."""
        slots = [self.layout.places[attribute.name].slot for attribute in self.outputs]
        found: NDArray[np.float64] = cells.numbers[:, slots]
        return found


def reading_of(layout: Layout) -> Reading:
    """Raises MissingCapability for a model of a kind that is kept but cannot be explained."""
    definition = layout.definition
    task = TASKS.get(definition.output_type)
    if task is None or definition.input_type not in ("TABULAR", "NLP"):
        raise MissingCapability(
            "TABULAR and NLP models of MULTICLASS, MULTILABEL or REGRESSION can be explained; this one is "
            f"{definition.input_type}, {definition.output_type}"
        )
    inputs, outputs = definition.of_stage("PIPELINE_INPUT"), definition.of_stage("PREDICTED_VALUE")
    if any(not attribute.is_number for attribute in outputs):
        raise MissingCapability("the predicted values of a model that is explained are numbers")
    columns = (text_column(inputs),) if definition.input_type == "NLP" else tuple(column_of(each) for each in inputs)
    names = tuple(attribute.name for attribute in outputs)
    schema = Schema(columns, names, task, classes_of(outputs, task), positive_of(outputs))
    return Reading(layout, schema, inputs, outputs)


def text_column(inputs: Sequence[Attribute]) -> Column:
    if len(inputs) != 1 or inputs[0].value_type != "UNSTRUCTURED_TEXT":
        raise MissingCapability("an NLP model that is explained has one input, of type UNSTRUCTURED_TEXT")
    return Column(inputs[0].name, "category")


def column_of(attribute: Attribute) -> Column:
    kind = COLUMNS.get(attribute.value_type)
    if kind is None:
        raise MissingCapability(f"input '{attribute.name}' is {attribute.value_type}, which no predictor takes")
    categories = attribute.details.get("categories", ()) if kind == "category" else ()
    return Column(attribute.name, kind, tuple(str(category["value"]) for category in categories))


def classes_of(outputs: Sequence[Attribute], task: Task) -> tuple[str, ...] | None:
    links = [attribute.gt_class_link for attribute in outputs]
    if task != "classification" or None in links:
        return None
    return tuple(str(link) for link in links)


def positive_of(outputs: Sequence[Attribute]) -> int | None:
    """The output that is declared positive, or the one that was declared when the other follows from it."""
    marked = [place for place, attribute in enumerate(outputs) if attribute.positive]
    declared = [place for place, attribute in enumerate(outputs) if not attribute.implicit]
    if marked:
        return marked[0]
    return declared[0] if len(declared) == 1 and len(outputs) == 2 else None


def bound(model: Model, reading: Reading) -> Predictor:
    """Blocks: a row is tried. Raises Mismatch, which says what differs, MissingCapability for another kind of model."""
    if reading.is_text:
        if not isinstance(model, TextArtifact):
            raise InvalidRequest("the definition is of an NLP model; the registered one does not read texts")
        return bind_texts(model, reading.schema)
    if isinstance(model, TextArtifact) or not isinstance(model, Artifact):
        raise InvalidRequest("the definition is of a TABULAR model; the registered one does not read rows")
    return bind(model, reading.schema)
