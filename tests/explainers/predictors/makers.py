"""Small models of every format, trained here, with what their own library predicts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import skops.io
import xgboost
from numpy.typing import NDArray
from skl2onnx import convert_sklearn, to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier, RandomForestRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from explainers.predictors.binding import Schema
from explainers.table import Column, Table

LEVELS = ("red", "green", "blue")
NUMBERS = (Column("age"), Column("income"), Column("score"))
MIXED = (*NUMBERS[:2], Column("colour", "category", LEVELS))
BINARY = Schema(NUMBERS, ("no", "yes"), "classification", positive=1)
THREE = Schema(NUMBERS, ("a", "b", "c"), "classification")
VALUE = Schema(NUMBERS, ("price",), "regression")
COLOURED = Schema(MIXED, ("no", "yes"), "classification", positive=1)


@dataclass(frozen=True)
class Made:
    """A file, its schema, rows of it, and what the model that was saved says of these rows."""

    path: Path
    schema: Schema
    table: Table
    expected: NDArray[np.float64]
    model: Any


def numbers(rows: int = 150, nulls: bool = False) -> NDArray[np.float64]:
    cells = np.random.default_rng(7).normal(size=(rows, 3)).astype(np.float32).astype(np.float64)
    if nulls:
        cells[::5, 0], cells[::7, 1] = np.nan, np.nan
    return cells


def classes(cells: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    total = np.nan_to_num(cells[:, 0] + cells[:, 1] ** 2 - cells[:, 2])
    return np.searchsorted(np.quantile(total, np.arange(1, count) / count), total)


def coloured(rows: int = 150) -> tuple[Table, pd.DataFrame, NDArray[np.int64]]:
    cells = numbers(rows, nulls=True)
    codes = np.random.default_rng(3).integers(0, 3, rows)
    cells[:, 2] = codes
    cells[::11, 2] = np.nan
    labels = (np.nan_to_num(cells[:, 0]) + (codes == 1) * 2 - (codes == 0) > 0.3).astype(int)
    kinds = pd.Categorical.from_codes(np.nan_to_num(cells[:, 2], nan=-1).astype(int), list(LEVELS))
    frame = pd.DataFrame({"age": cells[:, 0], "income": cells[:, 1], "colour": kinds})
    return Table(MIXED, cells), frame, labels


def pair(positive: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([1 - positive, positive], axis=1).astype(np.float64)


def xgboost_binary(folder: Path, ending: str = ".json") -> Made:
    cells = numbers(nulls=True)
    model = xgboost.XGBClassifier(n_estimators=30, max_depth=4, n_jobs=1).fit(cells, classes(cells, 2))
    model.save_model(path := folder / f"model{ending}")
    return Made(path, BINARY, Table(NUMBERS, cells), model.predict_proba(cells), model)


def xgboost_ubj(folder: Path) -> Made:
    return xgboost_binary(folder, ".ubj")


def xgboost_early_stopped(folder: Path) -> Made:
    cells = numbers(300)
    noisy = (cells[:, 0] + np.random.default_rng(1).normal(size=300) > 0).astype(int)
    model = xgboost.XGBClassifier(n_estimators=60, early_stopping_rounds=3, n_jobs=1)
    model.fit(cells[:150], noisy[:150], eval_set=[(cells[150:], noisy[150:])], verbose=False)
    assert model.best_iteration + 1 < model.get_booster().num_boosted_rounds()
    model.save_model(path := folder / "model.json")
    return Made(path, BINARY, Table(NUMBERS, cells), model.predict_proba(cells), model)


def xgboost_softmax(folder: Path) -> Made:
    cells = numbers()
    model = xgboost.XGBClassifier(objective="multi:softmax", n_estimators=9, n_jobs=1).fit(cells, classes(cells, 3))
    expected = model.predict_proba(cells)
    model.get_booster().set_param({"objective": "multi:softmax"})
    model.get_booster().save_model(path := folder / "model.ubj")
    return Made(path, THREE, Table(NUMBERS, cells), expected, model)


def xgboost_dart(folder: Path) -> Made:
    cells = numbers()
    model = xgboost.XGBRegressor(booster="dart", rate_drop=0.3, n_estimators=12, n_jobs=1).fit(cells, cells.sum(axis=1))
    model.save_model(path := folder / "model.json")
    return Made(path, VALUE, Table(NUMBERS, cells), model.predict(cells)[:, None], model)


def xgboost_categories(folder: Path) -> Made:
    table, frame, labels = coloured()
    model = xgboost.XGBClassifier(n_estimators=25, max_depth=4, enable_categorical=True, n_jobs=1).fit(frame, labels)
    model.save_model(path := folder / "model.json")
    return Made(path, COLOURED, table, model.predict_proba(frame), model)


def lightgbm_binary(folder: Path) -> Made:
    cells = numbers(nulls=True)
    data = lightgbm.Dataset(cells, classes(cells, 2))
    model = lightgbm.train({"objective": "binary", "verbosity": -1, "min_data_in_leaf": 5, "num_threads": 1}, data, 30)
    model.save_model(path := folder / "model.txt")
    return Made(path, BINARY, Table(NUMBERS, cells), pair(model.predict(cells)), model)


def lightgbm_three(folder: Path) -> Made:
    cells = numbers()
    settings = {"objective": "multiclass", "num_class": 3, "verbosity": -1, "num_threads": 1}
    model = lightgbm.train(settings, lightgbm.Dataset(cells, classes(cells, 3)), 10)
    model.save_model(path := folder / "model.txt")
    return Made(path, THREE, Table(NUMBERS, cells), model.predict(cells), model)


def lightgbm_categories(folder: Path) -> Made:
    table, frame, labels = coloured()
    small = {"min_data_in_leaf": 5, "min_data_per_group": 5, "cat_smooth": 1, "max_cat_to_onehot": 1}
    settings = {"objective": "binary", "verbosity": -1, "num_threads": 1, **small}
    model = lightgbm.train(settings, lightgbm.Dataset(frame, labels), 25)
    model.save_model(path := folder / "model.txt")
    assert "num_cat=1" in path.read_text()
    return Made(path, COLOURED, table, pair(model.predict(frame)), model)


def onnx_matrix(folder: Path) -> Made:
    cells = numbers()
    model = LogisticRegression().fit(cells, classes(cells, 3))
    onnx = to_onnx(model, cells[:1].astype(np.float32), options={"zipmap": False})
    (path := folder / "model.onnx").write_bytes(onnx.SerializeToString())
    return Made(path, THREE, Table(NUMBERS, cells), model.predict_proba(cells), model)


def onnx_values(folder: Path) -> Made:
    cells = numbers()
    model = LinearRegression().fit(cells, cells @ np.array([1.0, -2.0, 3.0]))
    (path := folder / "model.onnx").write_bytes(to_onnx(model, cells[:1].astype(np.float32)).SerializeToString())
    return Made(path, VALUE, Table(NUMBERS, cells), model.predict(cells)[:, None], model)


def mixed_pipeline(frame: pd.DataFrame, labels: NDArray[np.int64]) -> Any:
    encoded = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), ["age", "income"]),
            ("words", OneHotEncoder(handle_unknown="ignore"), ["colour"]),
        ]
    )
    return make_pipeline(encoded, LogisticRegression()).fit(frame, labels)


def onnx_named(folder: Path) -> Made:
    """One input per attribute, not in the order of the schema; texts for the category; no nulls in it."""
    table, frame, labels = coloured()
    keep = ~np.isnan(table.cells).any(axis=1)
    frame, labels = frame[keep].astype({"colour": object}), labels[keep]
    model = mixed_pipeline(frame, labels)
    single = {"age": FloatTensorType([None, 1]), "income": FloatTensorType([None, 1])}
    declared = [("colour", StringTensorType([None, 1])), *single.items()]
    onnx = convert_sklearn(model, initial_types=declared, options={"zipmap": False}, target_opset=17)
    (path := folder / "model.onnx").write_bytes(onnx.SerializeToString())
    return Made(path, COLOURED, Table(MIXED, table.cells[keep]), model.predict_proba(frame), model)


def saved(model: Any, folder: Path) -> Path:
    skops.io.dump(model, path := folder / "model.skops")
    return path


def skops_forest(folder: Path) -> Made:
    cells = numbers()
    model = RandomForestClassifier(10, n_jobs=-1, random_state=0).fit(cells, classes(cells, 3))
    return Made(saved(model, folder), THREE, Table(NUMBERS, cells), model.predict_proba(cells), model)


def skops_pipeline(folder: Path) -> Made:
    """Trained on a frame with texts and nulls."""
    table, frame, labels = coloured()
    frame = frame.astype({"colour": object})
    model = mixed_pipeline(frame, labels)
    return Made(saved(model, folder), COLOURED, table, model.predict_proba(frame), model)


def skops_boosted(folder: Path) -> Made:
    cells = numbers(nulls=True)
    model = HistGradientBoostingClassifier(max_iter=10).fit(cells, classes(cells, 2))
    return Made(saved(model, folder), BINARY, Table(NUMBERS, cells), model.predict_proba(cells), model)


def skops_values(folder: Path) -> Made:
    cells = numbers()
    model = RandomForestRegressor(5, random_state=0).fit(cells, cells.sum(axis=1))
    return Made(saved(model, folder), VALUE, Table(NUMBERS, cells), model.predict(cells)[:, None], model)


MAKERS: dict[str, Callable[[Path], Made]] = {
    maker.__name__: maker
    for maker in (
        xgboost_binary,
        xgboost_ubj,
        xgboost_early_stopped,
        xgboost_softmax,
        xgboost_dart,
        xgboost_categories,
        lightgbm_binary,
        lightgbm_three,
        lightgbm_categories,
        onnx_matrix,
        onnx_values,
        onnx_named,
        skops_forest,
        skops_pipeline,
        skops_boosted,
        skops_values,
    )
}
TAKE_NO_NULLS = {"onnx_matrix", "onnx_values", "onnx_named"}


def make(name: str, folder: Path) -> Made:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that train and convert
        return MAKERS[name](folder)
