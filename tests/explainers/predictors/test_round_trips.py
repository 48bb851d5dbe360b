"""What was trained and saved predicts the same here: every format, nulls, categories."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from explainers.errors import InvalidRequest
from explainers.predictor import predict_distinct
from explainers.predictors.binding import TablePredictor
from explainers.table import Table, table_of
from tests.explainers.predictors.makers import LEVELS, MAKERS, MIXED, TAKE_NO_NULLS, Made

Make = Callable[[str], Made]
Bind = Callable[[str], TablePredictor]


@pytest.mark.parametrize("name", MAKERS)
def test_a_saved_model_predicts_the_same(name: str, made: Make, bound: Bind) -> None:
    file, predictor = made(name), bound(name)
    found = predict_distinct(predictor, file.table)
    np.testing.assert_allclose(found, file.expected, atol=1e-6, rtol=1e-6)
    assert (predictor.columns, predictor.outputs) == (file.schema.columns, file.schema.outputs)
    assert predictor.space == ("value" if file.schema.task == "regression" else "probability")
    assert predictor.digest == f"sha256:{hashlib.sha256(file.path.read_bytes()).hexdigest()}"


@pytest.mark.parametrize("name", MAKERS)
def test_rows_do_not_depend_on_each_other(name: str, made: Make, bound: Bind) -> None:
    predictor, table = bound(name), made(name).table
    together = predictor.predict(table.take(slice(0, 20)))
    alone = np.concatenate([predictor.predict(table.take(slice(row, row + 1))) for row in range(20)])
    np.testing.assert_allclose(alone, together, atol=1e-7)
    assert predictor.predict(table.take(slice(0, 0))).shape == (0, len(predictor.outputs))


@pytest.mark.parametrize("name", MAKERS)
def test_nulls_are_values_or_refused_by_name(name: str, made: Make, bound: Bind) -> None:
    predictor, table = bound(name), made(name).table.take(slice(0, 3))
    assert predictor.accepts_nulls == (name not in TAKE_NO_NULLS)
    holes = table.cells.copy()
    holes[1, 1] = np.nan
    if predictor.accepts_nulls:
        assert np.isfinite(predictor.predict(table.with_cells(holes))).all()
    else:
        with pytest.raises(InvalidRequest, match="takes no nulls, and column 'income' has one"):
            predictor.predict(table.with_cells(holes))


@pytest.mark.parametrize("name", ["xgboost_categories", "lightgbm_categories", "onnx_named", "skops_pipeline"])
def test_a_category_never_seen_has_an_answer_and_changes_no_other(name: str, bound: Bind) -> None:
    predictor = bound(name)
    rows = [(0.5, 0.5, "red"), (0.5, 0.5, "green"), (0.5, 0.5, "violet"), (0.5, 0.5, "blue")]
    table = table_of(MIXED, rows)
    assert table.columns[2].levels == (*LEVELS, "violet")
    found, known = predictor.predict(table), predictor.predict(table_of(MIXED, [rows[0], rows[1], rows[3]]))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[[0, 1, 3]], known, atol=1e-12)
    assert abs(found[0, 1] - found[1, 1]) > 0.01  # the colour matters


def test_the_unknown_category_of_a_pipeline_is_none_of_the_known(made: Make, bound: Bind) -> None:
    import pandas as pd

    frame = pd.DataFrame({"age": [0.5], "income": [0.5], "colour": pd.Series(["violet"], dtype=object)})
    expected = made("skops_pipeline").model.predict_proba(frame)
    found = bound("skops_pipeline").predict(table_of(MIXED, [(0.5, 0.5, "violet")]))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_rows_of_other_columns_are_refused(made: Make, bound: Bind) -> None:
    table = made("lightgbm_binary").table
    other = Table((table.columns[1], table.columns[0], table.columns[2]), table.cells)
    with pytest.raises(InvalidRequest, match="other columns"):
        bound("lightgbm_binary").predict(other)


def test_a_number_beyond_float32_is_refused_by_a_float32_model(made: Make, bound: Bind) -> None:
    table = made("onnx_matrix").table.take(slice(0, 1))
    with pytest.raises(InvalidRequest, match="does not fit"):
        bound("onnx_matrix").predict(table.with_cells(np.array([[1e300, 0, 0]])))


def test_the_declared_position_gets_the_only_column(made: Make, bound: Bind) -> None:
    from explainers.predictors.binding import bind

    file, first = made("xgboost_binary"), bound("xgboost_binary")
    swapped = bind(first.artifact, replace(file.schema, positive=0))
    np.testing.assert_array_equal(swapped.predict(file.table), first.predict(file.table)[:, ::-1])
