"""Predictors of every format as their owners register them: a file, a definition, rows, and what is said directly."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import xgboost
from numpy.typing import NDArray
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType, Int64TensorType
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from explainers.background import summarise
from explainers.predictors.binding import Schema, TablePredictor, bind
from explainers.predictors.formats import load_artifact
from explainers.surrogates import TABLE_ALGORITHMS, SurrogateConfig
from explainers.table import Column, Kind, Table, Value, table_of
from explainers.types import Attribution, never_stop
from tests.app.predictors import WHEN
from tests.explainers.predictors import makers
from tests.explainers.predictors.makers import MIXED, make, saved

SAMPLES = 300
TYPES: dict[Kind, str] = {"number": "FLOAT", "integer": "INTEGER", "boolean": "BOOLEAN", "category": "STRING"}
COUNTED = (Column("age", "integer"), Column("member", "boolean"), Column("income"))


@dataclass(frozen=True)
class Case:
    """A file and how it is declared; `single`: only the positive one of its two outputs."""

    path: Path
    schema: Schema
    reference: tuple[tuple[Value, ...], ...]
    rows: tuple[tuple[Value, ...], ...]
    single: bool = False
    classes: tuple[str, ...] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.schema.columns)

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.bound.outputs

    @cached_property
    def bound(self) -> TablePredictor:
        if not self.single:
            return bind(load_artifact(self.path), self.schema)
        both = replace(self.schema, outputs=("yes", "not_yes"), positive=0)
        return bind(load_artifact(self.path), both)

    def definition(self, name: str) -> dict[str, Any]:
        """Attributes in another order than their positions."""
        inputs = [declared(column, place) for place, column in enumerate(self.schema.columns)]
        outputs = [
            {"name": output, "value_type": "FLOAT", "stage": "PREDICTED_VALUE", "position": place}
            | ({"is_positive_predicted_attribute": True} if place == self.schema.positive and not self.single else {})
            | ({} if self.classes is None else {"gt_class_link": self.classes[place]})
            for place, output in enumerate(self.schema.outputs)
        ]
        kinds = {"classification": "MULTICLASS", "multilabel": "MULTILABEL", "regression": "REGRESSION"}
        whole = {"partner_model_id": name, "input_type": "TABULAR", "output_type": kinds[self.schema.task]}
        return whole | {"attributes": [*outputs[::-1], *inputs[::-1]]}

    def given(self, rows: Sequence[tuple[Value, ...]]) -> list[dict[str, Value]]:
        return [dict(zip(self.names[::-1], row[::-1], strict=True)) for row in rows]

    def records(self) -> list[dict[str, Any]]:
        """Inferences with what the model says of them; nulls are imputed where it takes none."""
        found = self.direct("lime")
        return [
            {
                "partner_inference_id": id,
                "inference_timestamp": WHEN,
                "inference_data": row | dict(zip(self.schema.outputs, answer.facts["prediction"], strict=False)),
            }
            for id, row, answer in zip(self.ids, self.given(self.rows), found, strict=True)
        ]

    @property
    def ids(self) -> list[str]:
        return [f"u-{place}" for place in range(len(self.rows))]

    def direct(self, algorithm: str) -> tuple[Attribution, ...]:
        """The library's own answers, without a server."""
        background = summarise(table_of(self.schema.columns, self.reference))
        rows = table_of(self.schema.columns, self.rows)
        config = SurrogateConfig(SAMPLES)
        return TABLE_ALGORITHMS[algorithm](self.bound, rows, self.ids, background, config, never_stop, None)


def declared(column: Column, place: int) -> dict[str, Any]:
    attribute = {"name": column.name, "value_type": TYPES[column.kind], "stage": "PIPELINE_INPUT", "position": place}
    levels = [{"value": level} for level in column.levels]
    return attribute | ({"categorical": True, "categories": levels} if levels else {})


def values(table: Table, start: int, stop: int) -> tuple[tuple[Value, ...], ...]:
    part = table.take(slice(start, stop))
    return tuple(zip(*(part.values(place) for place in range(len(table.columns))), strict=True))


def made(name: str, folder: Path) -> Case:
    """A file of the format's own tests."""
    found = make(name, folder)
    return Case(found.path, found.schema, values(found.table, 0, 60), values(found.table, 60, 72))


def undeclared(name: str, folder: Path) -> Case:
    """Texts that are no declared categories, among them some that the reference set lacks."""
    found = made(name, folder)
    columns = tuple(replace(column, levels=()) for column in MIXED)
    strange = tuple((*row[:2], "violet") for row in found.rows[:2])
    return replace(found, schema=replace(found.schema, columns=columns), rows=(*strange, *found.rows[2:]))


def with_strange(name: str, folder: Path) -> Case:
    """Declared categories, and rows with others."""
    found = made(name, folder)
    return replace(found, rows=(*((*row[:2], "violet") for row in found.rows[:2]), *found.rows[2:]))


def single(folder: Path) -> Case:
    found = made("xgboost_binary", folder)
    schema = replace(found.schema, outputs=("yes",), positive=None)
    return replace(found, schema=schema, single=True)


def by_class(folder: Path) -> Case:
    """Which output is the positive one follows from its class; it comes first."""
    found = made("lightgbm_binary", folder)
    schema = replace(found.schema, outputs=("yes", "no"), classes=("1", "0"), positive=None)
    return replace(found, schema=schema, classes=("1", "0"))


def counted(rows: int = 90) -> NDArray[np.float64]:
    random = np.random.default_rng(11)
    return np.stack(
        [random.integers(18, 80, rows), random.integers(0, 2, rows), random.normal(size=rows).round(3)], axis=1
    ).astype(float)


def labels(cells: NDArray[np.float64]) -> NDArray[np.int64]:
    return (cells[:, 0] / 20 - 2 * cells[:, 1] + cells[:, 2] > 1.5).astype(int)


def of_counted(path: Path, outputs: tuple[str, ...] = ("no", "yes"), **more: Any) -> Case:
    table = Table(COUNTED, counted())
    schema = Schema(COUNTED, outputs, **({"task": "classification", "positive": 1} | more))
    return Case(path, schema, values(table, 0, 60), values(table, 60, 72))


def lightgbm_counted(folder: Path) -> Case:
    cells = counted()
    frame = pd.DataFrame({"age": cells[:, 0].astype(int), "member": cells[:, 1].astype(bool), "income": cells[:, 2]})
    settings = {"objective": "binary", "verbosity": -1, "min_data_in_leaf": 5, "num_threads": 1}
    model = lightgbm.train(settings, lightgbm.Dataset(frame, labels(cells)), 20)
    model.save_model(path := folder / "model.txt")
    return of_counted(path)


def onnx_counted(folder: Path) -> Case:
    """Integers, booleans and floats, each an input of its own."""
    cells = counted()
    frame = pd.DataFrame({"age": cells[:, 0].astype(int), "member": cells[:, 1].astype(bool), "income": cells[:, 2]})
    encoded = ColumnTransformer([("all", "passthrough", ["age", "income"]), ("flag", OneHotEncoder(), ["member"])])
    model = make_pipeline(encoded, LogisticRegression(max_iter=1000)).fit(frame.astype({"member": int}), labels(cells))
    kinds = [("age", Int64TensorType([None, 1])), ("member", Int64TensorType([None, 1]))]
    whole = convert_sklearn(
        model,
        initial_types=[*kinds, ("income", FloatTensorType([None, 1]))],
        options={"zipmap": False},
        target_opset=17,
    )
    (path := folder / "model.onnx").write_bytes(whole.SerializeToString())
    return of_counted(path)


def xgboost_labels(folder: Path) -> Case:
    cells = counted()
    several = np.stack([labels(cells), (cells[:, 2] > 0).astype(int), (cells[:, 0] > 50).astype(int)], axis=1)
    model = xgboost.XGBClassifier(n_estimators=10, max_depth=3, n_jobs=1).fit(cells, several)
    model.save_model(path := folder / "model.ubj")
    return of_counted(path, ("buys", "earns", "old"), task="multilabel", positive=None)


def skops_labels(folder: Path) -> Case:
    cells = counted()
    several = np.stack([labels(cells), (cells[:, 2] > 0).astype(int)], axis=1)
    path = saved(RandomForestClassifier(8, random_state=0).fit(cells, several), folder)
    return of_counted(path, ("buys", "earns"), task="multilabel", positive=None)


FORMATS = [name for name in makers.MAKERS if name not in ("xgboost_early_stopped", "xgboost_softmax", "xgboost_dart")]
CASES: dict[str, Callable[[Path], Case]] = {
    **{name: (lambda folder, name=name: made(name, folder)) for name in FORMATS},  # type: ignore[misc]
    "xgboost_strange": lambda folder: with_strange("xgboost_categories", folder),
    "lightgbm_strange": lambda folder: with_strange("lightgbm_categories", folder),
    "onnx_undeclared": lambda folder: undeclared("onnx_named", folder),
    "skops_undeclared": lambda folder: undeclared("skops_pipeline", folder),
    "single": single,
    "by_class": by_class,
    "lightgbm_counted": lightgbm_counted,
    "onnx_counted": onnx_counted,
    "xgboost_labels": xgboost_labels,
    "skops_labels": skops_labels,
}


def case(name: str, folder: Path) -> Case:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that train and convert
        return CASES[name](folder)
