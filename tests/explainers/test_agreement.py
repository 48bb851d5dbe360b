"""Agreement with the field's packages on real small models; and that a wrong number is found."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from explainers import agreement, table_agreement, text_agreement
from explainers.background import Background, readied, summarise
from explainers.errors import InconsistentAnswer, InvalidRequest
from explainers.loaders import load_text_classifier
from explainers.methods import integrated_gradients, lime, shapley, text_lime, text_shapley, tree_shap
from explainers.methods.lime import LimeConfig
from explainers.methods.text_lime import TextLimeConfig
from explainers.predictors.artifact import Signature
from explainers.predictors.binding import Schema, TablePredictor, bind
from explainers.predictors.formats import load_artifact
from explainers.sequence_classifier import SequenceClassifier
from explainers.table import Column, Table
from explainers.text_masks import TextOptions, cut
from explainers.types import Attribution
from explainers.verdicts import Finding, Line, adds_up, in_errors, judged, seeded
from tests.explainers import tiny_classifiers
from tests.explainers.predictors.makers import make
from tests.explainers.toy_predictors import WordFormula, logistic, numeric

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
Trial = tuple[TablePredictor, Background, Table]
TEXTS = ["Anna lives in Oslo. The key", "", "The key is in the red box. Ben lives in Rome, Anna", "Oslo"]
WORDS = "smoke came from the old engine room and nobody called"


def lengthy(words: list[str]) -> list[float]:
    pull = sum((len(word) % 5) - 2 + 0.3 * (word[0] in "aeiou") for word in words)
    first = float(logistic(np.array(0.4 * pull + ("old" in words and "room" in words))))
    return [first, 1 - first]


def trial(name: str, folder: Path, rows: int = 3) -> Trial:
    file = make(name, folder)
    return bind(load_artifact(file.path), file.schema), summarise(file.table, 15), file.table.take(slice(0, rows))


def wide(folder: Path) -> Trial:
    """Too many columns to enumerate, one of them constant."""
    import xgboost

    cells = np.random.default_rng(0).normal(size=(300, 16))
    cells[:, 5] = 7.0
    labels = (cells[:, 0] + cells[:, 1] * cells[:, 2] - cells[:, 9] > 0).astype(int)
    xgboost.XGBClassifier(n_estimators=20, max_depth=4, n_jobs=1).fit(cells, labels).save_model(folder / "m.json")
    columns = numeric(" ".join(f"c{place}" for place in range(16)))
    schema = Schema(columns, ("no", "yes"), "classification", positive=1)
    table = Table(columns, cells)
    return bind(load_artifact(folder / "m.json"), schema), summarise(table, 20), table.take(slice(0, 2))


def verdicts(lines: Sequence[dict[str, Any]]) -> dict[str, bool | None]:
    assert all(list(line) == ["name", "passed", "value", "tolerance", "note"] for line in lines)
    return {line["name"]: line["passed"] for line in lines}


@pytest.mark.parametrize("name", ["xgboost_categories", "lightgbm_three", "onnx_values", "skops_forest"])
def test_tables_agree(name: str, tmp_path: Path) -> None:
    lines = agreement.run_table(*trial(name, tmp_path))
    found, notes = verdicts(lines), {line["name"]: line["note"] for line in lines}
    assert list(found) == list(agreement.ROW_LINES)
    silent = {line for line, passed in found.items() if passed is None}
    trees = {line for line in found if line.startswith("TreeSHAP")}
    expected = {
        "onnx_values": trees | {line for line in found if "classes" in line},
        "skops_forest": {"TreeSHAP equals shap.TreeExplainer"},
    }
    assert silent == expected.get(name, set()) and False not in found.values()
    assert all(notes[line].startswith("not compared: ") for line in silent)
    assert all(line["value"] <= line["tolerance"] for line in lines if line["passed"])


def test_sampled_shares_agree(tmp_path: Path) -> None:
    lines = {line["name"]: line for line in agreement.run_table(*wide(tmp_path))}
    assert not [line for line in lines.values() if line["passed"] is not True]
    kernel = lines["SHAP equals shap.KernelExplainer"]
    assert kernel["note"] == "in standard errors; 2 rows, 20 background rows, 2080 coalitions"
    assert 0.1 < kernel["value"] < kernel["tolerance"] < 7


def wrong(found: Sequence[Attribution], by: float = 0.1) -> list[Attribution]:
    """The largest score of the first answer off by a tenth."""
    values = found[0].values.copy()
    place = np.unravel_index(np.abs(values).argmax(), values.shape)
    values[place] *= 1 + by
    return [replace(found[0], values=values), *found[1:]]


def test_a_wrong_slope_is_found(tmp_path: Path) -> None:
    predictor, background, rows = trial("xgboost_binary", tmp_path)
    background, rows, _ = readied(background, rows, accepts_nulls=False)
    found = [lime.attribute(predictor, rows, ["a", "b", "c"], background, LimeConfig(1000, seed=s)) for s in range(8)]
    assert table_agreement.lime_agrees(predictor, background, rows, found, 1000).passed
    broken = [wrong(answers) for answers in found]
    assert not table_agreement.lime_agrees(predictor, background, rows, broken, 1000).passed
    swapped = [[replace(each, values=each.values[:, ::-1]) for each in answers] for answers in found]
    assert not table_agreement.lime_agrees(predictor, background, rows, swapped, 1000).passed


@pytest.mark.parametrize("name", ["xgboost_binary", "wide"])
def test_a_wrong_share_is_found(name: str, tmp_path: Path) -> None:
    predictor, background, rows = wide(tmp_path) if name == "wide" else trial(name, tmp_path)
    found = shapley.attribute(predictor, rows, [str(row) for row in range(len(rows))], background)
    assert table_agreement.shap_agrees(predictor, background, rows, found).passed
    assert adds_up(predictor.predict(rows), found).passed
    broken = wrong(found, 0.3 if name == "wide" else 1e-4)
    assert not table_agreement.shap_agrees(predictor, background, rows, broken).passed
    assert not adds_up(predictor.predict(rows), wrong(found, 0.01)).passed
    paths = tree_shap.attribute(predictor, rows)
    assert table_agreement.trees_agree(predictor, rows, paths) == Finding(0.0, 0.0, f"{len(rows)} rows")
    assert not table_agreement.trees_agree(predictor, rows, wrong(paths, 1e-9)).passed
    flipped = [replace(each, values=each.values[::-1]) for each in paths]
    assert not table_agreement.trees_agree(predictor, rows, flipped).passed
    first = replace(predictor, positive=0)
    assert table_agreement.trees_agree(first, rows, flipped).passed


def test_near_numbers_are_not_equal_ones() -> None:
    """Seconds since 1970: shap would take a quarter of an hour for nothing."""
    columns = numeric("a b")
    table = Table(columns, np.column_stack([1.7e9 + np.arange(0.0, 900.0, 30), np.arange(30.0)]))
    predictor = TablePredictor(Clock(), Schema(columns, ("y",), "regression"), accepts_nulls=False)
    background, row = summarise(table, 5), table.take(slice(7, 8))
    found = shapley.attribute(predictor, row, ["a"], background)
    assert abs(found[0].values[0, 0]) > 1
    assert table_agreement.shap_agrees(predictor, background, row, found).value < 1e-9


class Clock:
    """Minutes, and the other column."""

    signature, digest, format = Signature(), "sha256:clock", "formula"

    def predict(self, table: Table) -> NDArray[np.float64]:
        return np.asarray(((table.cells[:, 0] - 1.7e9) / 60 * (1 + 0.1 * table.cells[:, 1]))[:, None])


@dataclass
class Fickle:
    """An artifact whose answers drift from call to call."""

    signature: Signature = field(default_factory=Signature)
    digest: str = "sha256:fickle"
    format: str = "formula"
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def predict(self, table: Table) -> NDArray[np.float64]:
        return table.cells.sum(axis=1, keepdims=True) + 0.01 * self.random.random()


def test_a_model_that_contradicts_itself_is_found() -> None:
    columns = numeric("a b c")
    table = Table(columns, np.random.default_rng(1).normal(size=(30, 3)))
    predictor = TablePredictor(Fickle(), Schema(columns, ("y",), "regression"), accepts_nulls=False)
    found = verdicts(agreement.run_table(predictor, summarise(table, 5), table.take(slice(0, 2))))
    broken = [line for line, passed in found.items() if passed is False]
    assert {"LIME repeats itself", "SHAP repeats itself", "SHAP adds up to the prediction"} <= set(broken)


@pytest.mark.parametrize("package", ["lime.lime_tabular", "shap.utils._legacy"])
def test_a_missing_package_is_no_pass(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    lines = agreement.run_table(*trial("onnx_values", tmp_path, rows=1))
    name = package.partition(".")[0]
    missing = [line["note"] for line in lines if "installed" in line["note"]]
    assert missing == [f"not compared: {name} is not installed"]
    assert verdicts(lines)["SHAP adds up to the prediction"] is True


def test_nothing_to_explain_is_refused(tmp_path: Path) -> None:
    predictor, background, rows = trial("onnx_values", tmp_path)
    with pytest.raises(InvalidRequest, match="a row"):
        agreement.run_table(predictor, background, rows.take(slice(0, 0)))
    with pytest.raises(InvalidRequest, match="a text with a token"):
        agreement.run_texts(WordFormula(lengthy, ("yes", "no")), ["", " ... "])
    other = Table((Column("other"),), np.ones((1, 1)))
    with pytest.raises(InvalidRequest, match="other columns"):
        agreement.run_table(predictor, background, other)


def test_the_global_generator_is_left_alone(tmp_path: Path) -> None:
    predictor, background, rows = wide(tmp_path)
    found = shapley.attribute(predictor, rows, ["a", "b"], background)
    np.random.seed(5)
    expected = np.random.random(3)
    np.random.seed(5)
    table_agreement.shap_agrees(predictor, background, rows, found)
    assert np.random.random(3).tolist() == expected.tolist()
    np.random.seed(5)
    with pytest.raises(InterruptedError), seeded(1):
        raise InterruptedError
    assert np.random.random(3).tolist() == expected.tolist()


# -- texts -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> SequenceClassifier:
    return load_text_classifier(tiny_classifiers.save(tmp_path_factory.mktemp("m") / "m"))


def test_texts_agree(bert: SequenceClassifier) -> None:
    lines = agreement.run_texts(bert, TEXTS)
    found = verdicts(lines)
    assert list(found) == [
        *agreement.TEXT_LINES,
        *(f"text {n}: words deleted | replaced by UNKWORDZ" for n in (1, 2, 3)),
    ]
    assert [found[name] for name in agreement.TEXT_LINES] == [True] * 10
    for line in lines[10:]:
        assert line["passed"] is None and -1 <= line["value"] <= 1 and line["note"].startswith("for LABEL_")
    assert lines[-1]["note"].count("|") == 1 and "Oslo" in lines[-1]["note"]  # its one token, both ways


def test_models_without_gradients_say_so() -> None:
    found = agreement.run_texts(WordFormula(lengthy, ("yes", "no")), [WORDS, "old room"])
    silent = [line for line in found[:10] if line["passed"] is None]
    assert [line["note"] for line in silent] == ["not compared: the model is not one that PyTorch runs"] * 2
    assert [line["passed"] for line in found if line not in silent][:8] == [True] * 8
    short = verdicts(agreement.run_texts(WordFormula(lengthy, ("yes", "no")), ["old room"]))
    assert short["LIME equals the lime package, words deleted"] is None


def test_wrong_scores_of_tokens_are_found() -> None:
    model, options = WordFormula(lengthy, ("yes", "no")), TextOptions()
    found = [text_lime.attribute(model, [WORDS], ["a"], TextLimeConfig(400, seed, options)) for seed in range(6)]
    assert text_agreement.lime_agrees(model, [WORDS], found, options, 400).passed
    assert not text_agreement.lime_agrees(model, [WORDS], [wrong(each) for each in found], options, 400).passed
    replacing = replace(options, removal="placeholder")
    assert not text_agreement.lime_agrees(model, [WORDS], found, replacing, 400).passed
    short = "smoke came from the old room"
    (shares,) = text_shapley.attribute(model, [short], ["a"])
    assert text_agreement.shap_agrees(model, short, shares).value < 1e-12
    assert not text_agreement.shap_agrees(model, short, wrong([shares], 1e-3)[0]).passed


def test_wrong_gradients_are_found(bert: SequenceClassifier) -> None:
    text, outputs = TEXTS[0], bert.predict(TEXTS[:1])
    found = [integrated_gradients.attribute(bert, text, cut(text, r"\W+").tokens)]
    assert text_agreement.gradients_agree(bert, [text], found).passed
    assert text_agreement.gradients_add_up(outputs, found).passed
    assert not text_agreement.gradients_agree(bert, [text], wrong(found, 1e-3)).passed
    moved = [replace(found[0], values=found[0].values + 0.02)]
    assert not text_agreement.gradients_add_up(outputs, moved).passed


# -- verdicts ----------------------------------------------------------------------------------------------------------


def test_what_is_no_number_never_passes() -> None:
    two, ones = np.array([1.0, 2.0]), np.ones(2)
    assert not Finding(float("nan"), 1.0).passed and Finding(1.0, 1.0).passed
    for theirs in (np.array([np.nan, 2.0]), np.ones(3)):
        assert not in_errors(two, theirs, np.ones(len(theirs))).passed
    assert in_errors(two, two + 4 * ones, ones).passed and not in_errors(two, two + 6 * ones, ones).passed
    assert in_errors(two, two + 1e-10, 0 * ones).passed and not in_errors(two, two + 1e-6, 0 * ones).passed


def test_lines_say_why() -> None:
    def broken() -> Finding:
        raise InconsistentAnswer("scores miss the output")

    def refused() -> Finding:
        raise InvalidRequest("no trees")

    assert judged("a", broken) == Line("a", False, None, None, "scores miss the output")
    assert judged("a", refused) == Line("a", None, None, None, "not compared: no trees")
    assert judged("a", lambda: Finding(2.0, 1.0, "b")) == Line("a", False, 2.0, 1.0, "b")
