"""A schema and an artifact that differ are told apart by the column or class, expected and found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skl2onnx import to_onnx
from sklearn.linear_model import LogisticRegression

from explainers.errors import UnreadableModel
from explainers.methods.tree_shap import attribute
from explainers.predictors.binding import Mismatch, Schema, TablePredictor, bind
from explainers.predictors.formats import FORMATS, load_artifact
from explainers.table import Column, Table
from tests.explainers.predictors.makers import (
    BINARY,
    COLOURED,
    LEVELS,
    MIXED,
    NUMBERS,
    THREE,
    VALUE,
    classes,
    numbers,
)

Bind = Callable[[str], TablePredictor]
AGE, INCOME, COLOUR = MIXED


def renamed(schema: Schema, *names: str) -> Schema:
    pairs = zip(schema.columns, names, strict=True)
    return replace(schema, columns=tuple(replace(column, name=name) for column, name in pairs))


def levelled(*levels: str) -> Schema:
    return replace(COLOURED, columns=(AGE, INCOME, replace(COLOUR, levels=levels)))


MISMATCHES: dict[str, tuple[str, Schema, str]] = {
    "too few columns": (
        "xgboost_binary",
        replace(BINARY, columns=NUMBERS[:2]),
        "the schema has 2 input columns, the artifact 3",
    ),
    "order": (
        "lightgbm_categories",
        replace(COLOURED, columns=(INCOME, AGE, COLOUR)),
        "another order: at position 0 the schema has 'income', the artifact 'age'",
    ),
    "name": (
        "xgboost_categories",
        renamed(COLOURED, "age", "wealth", "colour"),
        "column 'wealth' of the schema is not in the artifact; input column 'income' of the artifact is not in the",
    ),
    "name of a named input": (
        "onnx_named",
        renamed(COLOURED, "age", "income", "hue"),
        "column 'hue' of the schema is not in the artifact; input column 'colour' of the artifact is not in the",
    ),
    "number of named inputs": (
        "onnx_named",
        replace(COLOURED, columns=(*MIXED, Column("size"))),
        "column 'size' of the schema is not in the artifact (the schema has 4, the artifact 3)",
    ),
    "category for a number": (
        "xgboost_categories",
        replace(COLOURED, columns=(AGE, replace(INCOME, kind="category"), COLOUR)),
        "column 'income' is a category in the schema and a number in the artifact",
    ),
    "number for a category": (
        "lightgbm_categories",
        replace(COLOURED, columns=(AGE, INCOME, Column("colour"))),
        "column 'colour' is a number in the schema and a category in the artifact",
    ),
    "number for a text": (
        "onnx_named",
        replace(COLOURED, columns=(AGE, INCOME, Column("colour", "integer"))),
        "column 'colour' is a integer in the schema and a category in the artifact",
    ),
    "category in a matrix": (
        "onnx_matrix",
        replace(THREE, columns=(*NUMBERS[:2], replace(COLOUR, name="score"))),
        "column 'score' is a category in the schema and a number in the artifact",
    ),
    "category for a booster of numbers": (
        "xgboost_binary",
        replace(BINARY, columns=(*NUMBERS[:2], replace(COLOUR, name="score"))),
        "column 'score' is a category in the schema; the artifact takes numbers only",
    ),
    "another category": (
        "xgboost_categories",
        levelled("red", "pink", "blue"),
        "categories of column 'colour' differ at position 1: the schema has 'pink', the artifact 'green'",
    ),
    "category too few": (
        "lightgbm_categories",
        levelled("red", "green"),
        "categories of column 'colour' differ at position 2: the schema has none, the artifact 'blue'",
    ),
    "category too many": (
        "lightgbm_categories",
        levelled(*LEVELS, "pink"),
        "categories of column 'colour' differ at position 3: the schema has 'pink', the artifact none",
    ),
    "values for classes": (
        "xgboost_dart",
        BINARY,
        "the schema declares classification; the artifact predicts values, not class probabilities",
    ),
    "classes for values": (
        "skops_forest",
        VALUE,
        "the schema declares regression; the artifact predicts class probabilities, not values",
    ),
    "number of outputs": (
        "lightgbm_three",
        BINARY,
        "the schema has 2 outputs ['no', 'yes'], the artifact 3",
    ),
    "too many outputs": (
        "xgboost_binary",
        THREE,
        "the schema has 3 outputs ['a', 'b', 'c'], the artifact 1",
    ),
    "class": (
        "skops_forest",
        replace(THREE, classes=("0", "2", "1")),
        "classes differ at position 1: the schema has '2', the artifact '1'",
    ),
    "class of a converted model": (
        "onnx_matrix",
        replace(THREE, classes=("0", "1", "3")),
        "classes differ at position 2: the schema has '3', the artifact '2'",
    ),
    "outputs named as classes": (
        "skops_forest",
        replace(THREE, outputs=("2", "1", "0")),
        "classes differ at position 0: the schema has '2', the artifact '0'",
    ),
    "positive class": (
        "xgboost_binary",
        replace(BINARY, positive=None),
        "gives one column for two outputs: declare which of them is the positive one",
    ),
    "no outputs": ("xgboost_binary", replace(BINARY, outputs=()), "at least one input column and one output"),
    "classes for outputs": (
        "xgboost_binary",
        replace(BINARY, classes=("1",)),
        "the schema has 2 outputs and 1 classes",
    ),
    "positive nowhere": ("xgboost_binary", replace(BINARY, positive=2), "no output at position 2"),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_a_mismatch_is_told(case: str, bound: Bind) -> None:
    name, schema, words = MISMATCHES[case]
    with pytest.raises(Mismatch) as caught:
        bind(bound(name).artifact, schema)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["xgboost_categories", "lightgbm_categories"])
def test_categories_may_be_declared_in_any_order(bound: Bind, name: str) -> None:
    usual, table = bound(name), Table((AGE, INCOME, replace(COLOUR, levels=(*LEVELS, "pink"))), numbers(40))
    table.cells[:, 2] = [np.nan, 0, 1, 2, 3] * 8
    order = ("blue", "red", "green", "pink")
    other = bind(usual.artifact, levelled(*order[:3]))
    cells = table.cells.copy()
    cells[:, 2] = [np.nan, *(order.index(level) for level in (*LEVELS, "pink"))] * 8
    moved = Table((AGE, INCOME, replace(COLOUR, levels=order)), cells)
    given = moved.cells.copy()
    expected = usual.predict(table)
    assert len(np.unique(expected.round(6), axis=0)) > 5
    for rows in (moved, table):  # whatever order the rows themselves come in
        np.testing.assert_array_equal(other.predict(rows), expected)
        np.testing.assert_array_equal(usual.predict(rows), expected)
    np.testing.assert_array_equal(moved.cells, given)
    pairs = zip(attribute(other, moved), attribute(usual, table), strict=True)
    assert all((ours.values == theirs.values).all() for ours, theirs in pairs)


def test_declared_classes_say_which_is_positive(bound: Bind) -> None:
    artifact, table = bound("lightgbm_binary").artifact, numbers(5)
    rows = bind(artifact, BINARY)
    for declared, column in ((("0", "1"), 1), (("True", "False"), 0)):
        schema = replace(BINARY, positive=None, classes=declared)
        found = bind(artifact, schema)
        assert found.positive == column
    assert rows.positive == 1 and table.shape == (5, 3)


def test_one_declared_output_of_two_classes_is_the_column_itself(bound: Bind) -> None:
    found = bind(bound("lightgbm_binary").artifact, replace(BINARY, outputs=("yes",), positive=None))
    assert found.outputs == ("yes",)


def test_a_zipmap_is_refused_with_the_remedy(tmp_path: Path) -> None:
    model = LogisticRegression().fit(numbers(), classes(numbers(), 2))
    (path := tmp_path / "m.onnx").write_bytes(to_onnx(model, numbers(1).astype(np.float32)).SerializeToString())
    with pytest.raises(UnreadableModel, match="'zipmap': False"):
        load_artifact(path)


def test_raw_scores_are_no_probabilities(tmp_path: Path) -> None:
    model = LogisticRegression().fit(numbers(), classes(numbers(), 3))
    options: Any = {"zipmap": False, "raw_scores": True}
    onnx = to_onnx(model, numbers(1).astype(np.float32), options={id(model): options})
    (path := tmp_path / "m.onnx").write_bytes(onnx.SerializeToString())
    with pytest.raises(Mismatch, match=r"leave 0..1|not shares of one"):
        bind(load_artifact(path), THREE)


def test_independent_labels_are_multi_label(tmp_path: Path) -> None:
    import lightgbm

    cells = numbers()
    settings = {"objective": "multiclassova", "num_class": 3, "verbosity": -1, "num_threads": 1}
    lightgbm.train(settings, lightgbm.Dataset(cells, classes(cells, 3)), 3).save_model(path := tmp_path / "m.txt")
    artifact = load_artifact(path)
    with pytest.raises(Mismatch, match="declare it as multi-label"):
        bind(artifact, THREE)
    assert bind(artifact, replace(THREE, task="multilabel")).outputs == ("a", "b", "c")


def test_a_name_without_a_format_is_refused(tmp_path: Path) -> None:
    (path := tmp_path / "model.bin").write_bytes(b"tree\n")
    with pytest.raises(UnreadableModel, match=r"\.onnx, \.json, \.ubj, \.txt, \.skops"):
        load_artifact(path)
    assert set(FORMATS) == {".onnx", ".json", ".ubj", ".txt", ".skops"}
