"""The table of algorithms for stored inferences: each is the method it names, and asks no more than it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from explainers.background import Background, background_of, summarise
from explainers.errors import InvalidRequest, MissingCapability
from explainers.loaders import load_text_classifier
from explainers.methods import integrated_gradients, lime, shapley, text_lime, text_shapley, tree_shap
from explainers.methods.lime import LimeConfig
from explainers.methods.shapley import ShapleyConfig
from explainers.methods.text_lime import TextLimeConfig
from explainers.methods.text_shapley import TextShapleyConfig
from explainers.predictors.artifact import Artifact, Signature
from explainers.predictors.binding import BoundTexts, Schema, TablePredictor, bind, bind_texts
from explainers.predictors.formats import load_artifact
from explainers.surrogates import (
    TABLE_ALGORITHMS,
    TEXT_ALGORITHMS,
    SurrogateConfig,
    predictions,
    predictions_per_row,
)
from explainers.table import Column, Table
from explainers.text_masks import TextOptions, cut
from explainers.types import Attribution, never_stop
from tests.explainers import tiny_classifiers
from tests.explainers.predictors.makers import Made, make
from tests.explainers.toy_predictors import RowFormula, WordFormula, numeric, wavy

IDS = ["u-1", "u-2", "u-3"]
TEXTS = ["Anna lives in Oslo.", "", "The key is in the red box. Ben lives in Rome, Anna lives in Oslo, the key"]
ASKED = SurrogateConfig(samples=300, seed=4)

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")


class Counted:
    """An artifact, and how many rows or texts it was asked for."""

    def __init__(self, artifact: Artifact) -> None:
        self._artifact, self.rows = artifact, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._artifact, name)

    def predict(self, table: Table) -> NDArray[np.float64]:
        self.rows += len(table)
        return self._artifact.predict(table)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make("xgboost_binary", tmp_path_factory.mktemp("trees"))


@pytest.fixture(scope="module")
def trees(file: Made) -> TablePredictor:
    return bind(load_artifact(file.path), file.schema)


@pytest.fixture(scope="module")
def background(file: Made) -> Background:
    return summarise(file.table, 10)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> BoundTexts:
    model = load_text_classifier(tiny_classifiers.save(tmp_path_factory.mktemp("texts") / "m"))
    return bind_texts(model, Schema((Column("note", "category"),), ("a", "b", "c"), "classification"))


def same(found: Sequence[Attribution], expected: Sequence[Attribution]) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.values, other.values)
        assert (one.method, one.features, one.targets) == (other.method, other.features, other.targets)


def test_tables_are_explained_by_the_methods_named(file: Made, trees: TablePredictor, background: Background) -> None:
    rows = file.table.take(slice(0, 3))
    kept: dict[int, lime.Draws] = {}
    found = {
        name: algorithm(trees, rows, IDS, background, ASKED, never_stop, kept)
        for name, algorithm in TABLE_ALGORITHMS.items()
    }
    same(found["lime"], lime.attribute(trees, rows, IDS, background, LimeConfig(300, seed=4)))
    same(found["shap"], shapley.attribute(trees, rows, IDS, background, ShapleyConfig(300, seed=4)))
    same(found["tree_shap"], tree_shap.attribute(trees, rows))
    assert kept and {name: answers[0].method for name, answers in found.items()} == {name: name for name in found}
    for answers in found.values():
        assert [answer.facts["model_digest"] for answer in answers] == [trees.digest] * 3
        np.testing.assert_array_equal([answer.facts["prediction"] for answer in answers], trees.predict(rows))


def test_texts_are_explained_by_the_methods_named(texts: BoundTexts) -> None:
    found = {
        name: algorithm(texts, TEXTS, IDS, r"\s+", ASKED, never_stop) for name, algorithm in TEXT_ALGORITHMS.items()
    }
    options = TextOptions(r"\s+")
    same(found["lime"], text_lime.attribute(texts, TEXTS, IDS, TextLimeConfig(300, 4, options)))
    same(found["shap"], text_shapley.attribute(texts, TEXTS, IDS, TextShapleyConfig(300, 4, options)))
    for text, answer in zip(TEXTS, found["integrated_gradients"], strict=True):
        plain = integrated_gradients.attribute(texts.artifact, text, cut(text, r"\s+").tokens)  # type: ignore[arg-type]
        np.testing.assert_array_equal(answer.values, plain.values)
        assert [target.text for target in answer.targets] == ["a", "b", "c"]
        assert [feature.name for feature in answer.features] == text.split()
    for answers in found.values():
        assert [answer.facts["model_digest"] for answer in answers] == [texts.digest] * 3
        np.testing.assert_allclose([answer.facts["prediction"] for answer in answers], texts.predict(TEXTS), atol=1e-6)


@pytest.mark.parametrize("algorithm", TABLE_ALGORITHMS)
def test_no_more_rows_are_asked_for_than_said(
    algorithm: str, file: Made, trees: TablePredictor, background: Background
) -> None:
    counted = Counted(trees.artifact)
    predictor = replace(trees, artifact=counted)  # type: ignore[arg-type]
    if algorithm == "tree_shap":
        predictor = trees  # whose trees are asked apart
    for rows in (1, 3):
        counted.rows = 0
        TABLE_ALGORITHMS[algorithm](
            predictor, file.table.take(slice(0, rows)), IDS[:rows], background, ASKED, never_stop, None
        )
        said = predictions(algorithm, ASKED, background, IDS[:rows])
        assert counted.rows <= said <= rows * predictions_per_row(algorithm, ASKED, background)
        assert algorithm == "tree_shap" or counted.rows > 0.5 * said
    assert {"lime": 300, "shap": 10 * 7 + 1, "tree_shap": 1}[algorithm] == predictions_per_row(
        algorithm, ASKED, background
    )


@pytest.mark.parametrize("algorithm", ["lime", "shap"])
def test_no_more_texts_are_asked_for_than_said(algorithm: str) -> None:
    for tokens in (0, 1, 4, 10, 11, 12, 40):
        model = WordFormula(lambda words: [float(len(set(words)))])
        text = " ".join(f"w{place}" for place in range(tokens))
        TEXT_ALGORITHMS[algorithm](model, [text], ["a"], r"\W+", ASKED, never_stop)
        said = predictions_per_row(algorithm, ASKED, tokens)
        assert sum(len(each) for each in model.asked) <= said
        assert said <= 2048


def test_gradients_count_their_passes() -> None:
    assert predictions_per_row("integrated_gradients", ASKED, 5) == 66
    assert predictions_per_row("integrated_gradients", ASKED, 5, outputs=3) == 194


def test_forests_that_take_no_nulls_are_explained_without_them(tmp_path: Path) -> None:
    file = make("skops_forest", tmp_path)
    predictor, background = bind(load_artifact(file.path), file.schema), background_of(file.table)
    predictor = replace(predictor, accepts_nulls=False)
    cells = file.table.cells[:2].copy()
    cells[0, 1] = np.nan
    found, plain = TABLE_ALGORITHMS["tree_shap"](
        predictor, file.table.with_cells(cells), IDS[:2], background, ASKED, never_stop, None
    )
    assert found.facts["imputed"] == ["income"] and plain.facts["imputed"] == []
    assert np.isnan(found.values).any(axis=0).tolist() == [False, True, False] and not np.isnan(plain.values).any()


def test_what_cannot_be_done_is_said(file: Made, background: Background) -> None:
    words, rows = WordFormula(lambda words: [0.0]), RowFormula(numeric("a b"), wavy)
    with pytest.raises(MissingCapability, match="PyTorch"):
        TEXT_ALGORITHMS["integrated_gradients"](words, ["a"], ["a"], r"\W+", ASKED, never_stop)
    for place in (background, 3):
        with pytest.raises(InvalidRequest, match="no algorithm 'anchors' here: lime, shap"):
            predictions_per_row("anchors", ASKED, place)
    plain = TablePredictor(Formula(rows), Schema(rows.columns, ("y",), "regression"), False)
    with pytest.raises(MissingCapability, match="model of trees"):
        few = background_of(Table(rows.columns, np.eye(2)))
        TABLE_ALGORITHMS["tree_shap"](plain, few.table, IDS[:2], few, ASKED, never_stop, None)


class Formula:
    """A formula as an artifact."""

    format, digest, signature = "formula", "sha256:formula", Signature()

    def __init__(self, model: RowFormula) -> None:
        self._model = model

    def predict(self, table: Table) -> NDArray[np.float64]:
        return self._model.predict(table)
