"""An artifact and a declared schema make a predictor, once both say the same.

What the file says of itself is compared with what is declared, and a row is tried; every difference is told by the
column or class it is about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from explainers.errors import InvalidRequest, MissingCapability, PredictorFailed
from explainers.predictor import Space
from explainers.predictors.artifact import Artifact, Signature, TextArtifact
from explainers.table import Column, Table

Task: TypeAlias = Literal["classification", "multilabel", "regression"]
TRIED_TEXT = "a text"
SLACK = 1e-4
"""Shares of float32 models add up to one within this."""
YES = (("0", "1"), ("False", "True"), ("false", "true"))


class Mismatch(InvalidRequest):
    """Schema and artifact differ."""


@dataclass(frozen=True, slots=True)
class Schema:
    """What a model is declared to read and to predict."""

    columns: tuple[Column, ...]  # M, by position; a category's levels as declared
    outputs: tuple[str, ...]  # K, by position
    task: Task
    classes: tuple[str, ...] | None = None  # K, the class value behind each output, where declared
    positive: int | None = None
    """Of two outputs, the one that a model with a single output column predicts."""


class _Declared:
    """What every bound model says of itself by its schema and its file."""

    __slots__ = ()
    artifact: Artifact | TextArtifact
    schema: Schema

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.schema.outputs

    @property
    def space(self) -> Space:
        return "value" if self.schema.task == "regression" else "probability"

    @property
    def digest(self) -> str:
        return self.artifact.digest


@dataclass(frozen=True, slots=True)
class TablePredictor(_Declared):
    """A bound model: `Predictor`, and the artifact behind it."""

    artifact: Artifact
    schema: Schema
    accepts_nulls: bool
    positive: int | None = None
    """The output that the artifact's only column is; the other one is its complement."""
    levels: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """By place, of the categories whose levels the artifact knows by name: its own order of them."""

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.schema.columns

    def predict(self, table: Table) -> NDArray[np.float64]:  # (n, M) -> (n, K)
        """Raises InvalidRequest for rows that the model refuses, PredictorFailed for answers that are no numbers."""
        if not len(table):  # which not every format's library takes
            return np.zeros((0, len(self.outputs)))
        found = _completed(self.artifact.predict(self.prepared(table)), self.positive)
        if found.shape != (len(table), len(self.outputs)):
            raise PredictorFailed(f"the model gave {found.shape[-1]} outputs; {len(self.outputs)} are declared")
        if not np.isfinite(found).all():
            raise PredictorFailed("the model's outputs are not all finite numbers")
        return found

    def prepared(self, table: Table) -> Table:
        """The rows as the artifact may see them. Raises InvalidRequest for other columns or nulls it cannot take."""
        if [column.name for column in table.columns] != [column.name for column in self.columns]:
            raise InvalidRequest("the rows have other columns than the model")
        empty = np.isnan(table.cells).any(axis=0)
        if empty.any() and not self.accepts_nulls:
            raise InvalidRequest(
                f"the model takes no nulls, and column {table.columns[int(empty.argmax())].name!r} has one"
            )
        return _renumbered(table, self.levels)


@dataclass(frozen=True, slots=True)
class BoundTexts(_Declared):
    """A bound classifier of texts: `TextPredictor`, and the artifact behind it."""

    artifact: TextArtifact
    schema: Schema
    positive: int | None = None

    def predict(self, texts: Sequence[str]) -> NDArray[np.float64]:  # n -> (n, K)
        """Raises InvalidRequest for texts that the model refuses, PredictorFailed for answers that are no numbers."""
        if not texts:
            return np.zeros((0, len(self.outputs)))
        found = _completed(self.artifact.predict_texts(list(texts)), self.positive)
        if found.shape != (len(texts), len(self.outputs)) or not np.isfinite(found).all():
            raise PredictorFailed(f"the model did not give {len(self.outputs)} finite numbers per text")
        return found


def _completed(found: NDArray[np.float64], positive: int | None) -> NDArray[np.float64]:
    """Both columns of a classifier that gives one of them."""
    if positive is None or found.shape[1:] != (1,):
        return found
    pair = [1.0 - found[:, 0], found[:, 0]]
    return np.stack(pair if positive == 1 else pair[::-1], axis=1)


def _renumbered(table: Table, known: Mapping[int, tuple[str, ...]]) -> Table:
    """With the levels of some categories in that order, whatever theirs is; others stay behind them."""
    other = [place for place, levels in known.items() if table.columns[place].levels[: len(levels)] != levels]
    if not other:
        return table
    columns, cells = list(table.columns), table.cells.copy()
    for place in other:
        numbers = {level: number for number, level in enumerate(known[place])}
        moved = np.array([numbers.setdefault(level, len(numbers)) for level in columns[place].levels], dtype=float)
        seen = ~np.isnan(cells[:, place])
        cells[seen, place] = moved[cells[seen, place].astype(int)]
        columns[place] = replace(columns[place], levels=tuple(numbers))
    return Table(tuple(columns), cells)


def bind(artifact: Artifact, schema: Schema) -> TablePredictor:
    """Raises Mismatch (an InvalidRequest) that says which column or class differs, expected and found."""
    said = artifact.signature
    _check_schema(schema)
    _check_inputs(schema.columns, said)
    _check_categories(schema.columns, said)
    if said.space is not None and (said.space == "value") != (schema.task == "regression"):
        raise Mismatch(f"the schema declares {schema.task}; the artifact predicts {_PREDICTS[said.space]}")
    tried = _tried(artifact, schema)
    positive = _positive(schema, tried.shape[1])
    _check_outputs(schema, said, tried.shape[1], positive)
    levels = _levels(schema.columns, said)
    predictor = TablePredictor(artifact, schema, said.accepts_nulls is True, positive, levels)
    _check_shares(schema, said, predictor.predict(_zeros(schema)))
    return replace(predictor, accepts_nulls=_accepts_nulls(predictor))


def bind_texts(artifact: TextArtifact, schema: Schema) -> BoundTexts:
    """As `bind`, for a classifier of texts: `schema.columns` is its one text attribute."""
    said = artifact.signature
    _check_schema(schema)
    if len(schema.columns) != 1:
        raise Mismatch(f"a classifier of texts reads one attribute; the schema has {len(schema.columns)}")
    if said.space is not None and (said.space == "value") != (schema.task == "regression"):
        raise Mismatch(f"the schema declares {schema.task}; the artifact predicts {_PREDICTS[said.space]}")
    try:
        tried = artifact.predict_texts([TRIED_TEXT])
    except (InvalidRequest, PredictorFailed) as error:
        raise Mismatch(f"the artifact fails on a text: {error}") from error
    positive = _positive(schema, tried.shape[1])
    _check_outputs(_labelled(schema, said), said, tried.shape[1], positive)
    bound = BoundTexts(artifact, schema, positive)
    _check_shares(schema, said, bound.predict([TRIED_TEXT]))
    return bound


_PREDICTS = {"value": "values, not class probabilities", "probability": "class probabilities, not values"}


def _check_schema(schema: Schema) -> None:
    if not schema.columns or not schema.outputs:
        raise Mismatch("the schema needs at least one input column and one output")
    if schema.classes is not None and len(schema.classes) != len(schema.outputs):
        raise Mismatch(f"the schema has {len(schema.outputs)} outputs and {len(schema.classes)} classes")
    if schema.positive is not None and not 0 <= schema.positive < len(schema.outputs):
        raise Mismatch(f"there is no output at position {schema.positive}, which is declared positive")


def _check_inputs(columns: Sequence[Column], said: Signature) -> None:
    names = [column.name for column in columns]
    if said.inputs is not None and said.by_name:
        _check_same("input column", sorted(names), sorted(said.inputs))
    elif said.inputs is not None:
        if set(said.inputs) == set(names) and list(said.inputs) != names:
            place = next(place for place, name in enumerate(names) if name != said.inputs[place])
            raise Mismatch(
                f"input columns are in another order: at position {place} the schema has {names[place]!r}, "
                f"the artifact {said.inputs[place]!r}"
            )
        _check_same("input column", names, list(said.inputs))
    if said.width is not None and said.width != len(names):
        raise Mismatch(f"the schema has {len(names)} input columns, the artifact {said.width}")


def _check_same(what: str, declared: Sequence[str], found: Sequence[str]) -> None:
    missing = [name for name in declared if name not in set(found)]
    strange = [name for name in found if name not in set(declared)]
    parts = []
    if missing:
        parts.append(f"{what} {missing[0]!r} of the schema is not in the artifact")
    if strange:
        parts.append(f"{what} {strange[0]!r} of the artifact is not in the schema")
    if parts or len(declared) != len(found):
        counts = f"the schema has {len(declared)}, the artifact {len(found)}"
        raise Mismatch(f"{'; '.join(parts) or what + 's differ in number'} ({counts})")


def _places(columns: Sequence[Column], said: Signature) -> list[int]:  # M
    """Where the artifact has each column."""
    places = {name: place for place, name in enumerate(said.inputs or ())} if said.by_name else {}
    return [places.get(column.name, position) for position, column in enumerate(columns)]


def _levels(columns: Sequence[Column], said: Signature) -> dict[int, tuple[str, ...]]:
    stored = [(said.categories or {}).get(place) for place in _places(columns, said)]
    return {position: levels for position, levels in enumerate(stored) if levels is not None}


def _check_categories(columns: Sequence[Column], said: Signature) -> None:
    for column, place in zip(columns, _places(columns, said), strict=True):
        if said.categories is None:
            if column.is_category and not said.strings:
                raise Mismatch(f"column {column.name!r} is a category in the schema; the artifact takes numbers only")
            continue
        if column.is_category and place not in said.categories:
            if not said.strings and _unused(said, place):
                continue
            raise Mismatch(f"column {column.name!r} is a category in the schema and a number in the artifact")
        if not column.is_category and place in said.categories:
            raise Mismatch(f"column {column.name!r} is a {column.kind} in the schema and a category in the artifact")
        if column.is_category and not column.levels and not said.strings:
            raise Mismatch(f"column {column.name!r} is numbered by the artifact: declare its categories, in that order")
        _check_levels(column, said.categories.get(place))


def _unused(said: Signature, place: int) -> bool:
    return said.unused is not None and place in said.unused


def _check_levels(column: Column, stored: tuple[str, ...] | None) -> None:
    """In any order: rows are handed over by the names of their levels."""
    if stored is None or sorted(stored) == sorted(column.levels):
        return
    place = next(
        (place for place, pair in enumerate(zip(column.levels, stored, strict=False)) if pair[0] != pair[1]),
        min(len(column.levels), len(stored)),
    )
    expected, found = (repr(names[place]) if place < len(names) else "none" for names in (column.levels, stored))
    raise Mismatch(
        f"categories of column {column.name!r} differ at position {place}: the schema has {expected}, "
        f"the artifact {found}"
    )


def _tried(artifact: Artifact, schema: Schema) -> NDArray[np.float64]:  # (1, K of the artifact)
    try:
        return artifact.predict(_zeros(schema))
    except (InvalidRequest, PredictorFailed) as error:
        raise Mismatch(f"the artifact fails on a row of the declared columns: {error}") from error


def _zeros(schema: Schema) -> Table:
    """A row that every model of this schema can read: zeros and first categories."""
    columns = tuple(
        replace(column, levels=column.levels or ("",)) if column.is_category else column for column in schema.columns
    )
    return Table(columns, np.zeros((1, len(columns))))


def _positive(schema: Schema, width: int) -> int | None:
    """Which of two outputs a single column is; None when nothing has to be completed."""
    if width != 1 or len(schema.outputs) != 2 or schema.task != "classification":
        return None
    if schema.positive is not None:
        return schema.positive
    for no, yes in YES:
        if schema.classes is not None and set(schema.classes) == {no, yes}:
            return schema.classes.index(yes)
    raise Mismatch("the artifact gives one column for two outputs: declare which of them is the positive one")


def _check_outputs(schema: Schema, said: Signature, width: int, positive: int | None) -> None:
    if positive is None and width != len(schema.outputs):
        raise Mismatch(f"the schema has {len(schema.outputs)} outputs {list(schema.outputs)}, the artifact {width}")
    if said.classes is None or schema.task == "regression" or positive is not None:
        return
    declared = schema.classes
    if declared is None and set(said.classes) == set(schema.outputs):
        declared = schema.outputs  # outputs named as the classes must lie as they do
    if declared is not None and tuple(declared) != said.classes:
        place = next(place for place, pair in enumerate(zip(declared, said.classes, strict=True)) if pair[0] != pair[1])
        raise Mismatch(
            f"classes differ at position {place}: the schema has {declared[place]!r}, "
            f"the artifact {said.classes[place]!r}"
        )


def _labelled(schema: Schema, said: Signature) -> Schema:
    """With the labels of a classifier of texts in place of their numbers there, which truths are mostly kept as."""
    labels = {str(number): label for number, label in enumerate(said.classes or ())}
    declared = schema.classes or ()
    if set(declared) != set(labels) or set(declared) == set(labels.values()):
        return schema
    return replace(schema, classes=tuple(labels[number] for number in declared))


def _check_shares(schema: Schema, said: Signature, found: NDArray[np.float64]) -> None:
    if schema.task == "regression":
        return
    if found.min() < -SLACK or found.max() > 1 + SLACK:
        raise Mismatch("the artifact's outputs are not probabilities: they leave 0..1")
    several = schema.task == "classification" and len(schema.outputs) > 1
    if several and (said.exclusive is False or abs(found.sum() - 1) > SLACK):
        raise Mismatch("the artifact's class probabilities are not shares of one: declare it as multi-label")


def _accepts_nulls(predictor: TablePredictor) -> bool:
    """What the artifact says; where it says nothing, whether it answers a null in each column with a number."""
    said = predictor.artifact.signature.accepts_nulls
    if said is not None:
        return said
    row = _zeros(predictor.schema)
    holes = np.zeros((len(row.columns), len(row.columns)))
    np.fill_diagonal(holes, np.nan)
    try:
        found = predictor.artifact.predict(row.with_cells(holes))
    except (InvalidRequest, PredictorFailed, MissingCapability):
        return False
    return bool(np.isfinite(found).all())
