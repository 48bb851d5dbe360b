"""TreeSHAP: shap's own numbers, additivity, opposite classes, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from explainers.errors import InvalidRequest, MissingCapability
from explainers.methods import tree_shap
from explainers.predictors.artifact import Contributions
from explainers.predictors.binding import TablePredictor, bind
from explainers.types import Feature, Target
from tests.explainers.predictors.makers import Made

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
Make = Callable[[str], Made]
Bind = Callable[[str], TablePredictor]
TREES = ["xgboost_binary", "xgboost_softmax", "xgboost_dart", "lightgbm_binary", "lightgbm_three"]
FORESTS = ["skops_forest", "skops_values", "skops_boosted"]


def shap_values(model: Any, rows: Any) -> tuple[Any, Any]:
    import shap

    explainer = shap.TreeExplainer(model, feature_perturbation="tree_path_dependent")
    values = np.asarray(explainer.shap_values(rows, check_additivity=False), dtype=float)
    return values, np.atleast_1d(np.asarray(explainer.expected_value, dtype=float))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", TREES + FORESTS)
def test_numbers_are_those_of_shap(name: str, made: Make, bound: Bind) -> None:
    file, predictor = made(name), bound(name)
    rows = file.table.take(slice(0, 12))
    found = tree_shap.attribute(predictor, rows)
    values, base = shap_values(file.model, rows.cells)
    values = values.reshape(len(rows), 3, -1).transpose(0, 2, 1)  # (n, G, M)
    assert len(found) == len(rows)
    for row, attribution in enumerate(found):
        groups = values.shape[1]
        shown = attribution.values if groups == len(predictor.outputs) else attribution.values[[-1]]
        assert attribution.base_values is not None
        np.testing.assert_allclose(shown, values[row], atol=1e-9, rtol=0)
        np.testing.assert_allclose(attribution.base_values[-groups:], base, atol=1e-9, rtol=0)
        assert attribution.features == tuple(Feature(column.name, 0, i) for i, column in enumerate(rows.columns))
        assert attribution.targets == tuple(Target(output) for output in predictor.outputs)
        assert attribution.facts["game"] == "path_dependent"
        assert attribution.facts["output"] == {"skops_forest": "probability", "skops_values": "value"}.get(
            name, "margin"
        )


@pytest.mark.parametrize("name", ["xgboost_categories", "lightgbm_categories"])
def test_categories_and_nulls_add_up_to_the_log_odds(name: str, made: Make, bound: Bind) -> None:
    table, predictor = made(name).table, bound(name)
    predicted = predictor.predict(table)
    for row, attribution in enumerate(tree_shap.attribute(predictor, table)):
        assert attribution.base_values is not None
        log_odds = np.log(predicted[row, 1] / predicted[row, 0])
        assert attribution.values[1].sum() + attribution.base_values[1] == pytest.approx(
            log_odds, abs=1e-4
        )  # of float32 shares
        np.testing.assert_array_equal(attribution.values[0], -attribution.values[1])
        assert attribution.facts["additivity_error"] < 1e-5


def test_probabilities_of_a_forest_are_what_is_shared_out(made: Make, bound: Bind) -> None:
    file = made("skops_forest")
    for row, attribution in enumerate(tree_shap.attribute(bound("skops_forest"), file.table.take(slice(0, 5)))):
        assert attribution.base_values is not None
        together = attribution.values.sum(axis=1) + attribution.base_values
        np.testing.assert_allclose(together, file.expected[row], atol=1e-12)
        np.testing.assert_allclose(attribution.values.sum(axis=0), 0, atol=1e-9)


def test_the_declared_positive_output_has_the_margin(made: Make, bound: Bind) -> None:
    table, second = made("lightgbm_binary").table.take(slice(0, 3)), bound("lightgbm_binary")
    first = bind(second.artifact, replace(second.schema, positive=0))
    for a, b in zip(tree_shap.attribute(first, table), tree_shap.attribute(second, table), strict=True):
        np.testing.assert_array_equal(a.values, b.values[::-1])


def test_rows_alone_and_together_are_alike(made: Make, bound: Bind) -> None:
    table, predictor = made("xgboost_binary").table.take(slice(0, 6)), bound("xgboost_binary")
    together = tree_shap.attribute(predictor, table)
    for row in range(6):
        (alone,) = tree_shap.attribute(predictor, table.take(slice(row, row + 1)))
        np.testing.assert_array_equal(alone.values, together[row].values)
    assert tree_shap.attribute(predictor, table.take(slice(0, 0))) == ()


@pytest.mark.parametrize("name", ["onnx_matrix", "skops_pipeline"])
def test_other_models_are_refused(name: str, made: Make, bound: Bind) -> None:
    with pytest.raises(MissingCapability, match=r"model of trees|no tree model"):
        tree_shap.attribute(bound(name), made(name).table.take(slice(0, 2)))


def test_what_does_not_add_up_is_an_error() -> None:
    values, base = np.ones((2, 1, 3)), np.zeros(1)
    good = Contributions(values, base, np.full((2, 1), 3.0), "margin")
    assert tree_shap._checked(good).tolist() == [0, 0]
    for margins in (np.array([[3.0], [3.001]]), np.array([[3.0], [np.nan]])):
        with pytest.raises(MissingCapability, match="miss the model's margin"):
            tree_shap._checked(replace(good, margins=margins))


def test_work_can_be_stopped(made: Make, bound: Bind) -> None:
    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        tree_shap.attribute(bound("xgboost_binary"), made("xgboost_binary").table, stop)


def test_other_columns_are_refused(made: Make, bound: Bind) -> None:
    with pytest.raises(InvalidRequest, match="other columns"):
        tree_shap.attribute(bound("xgboost_binary"), made("xgboost_categories").table)
