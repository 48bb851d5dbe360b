"""LIME and Shapley values of texts: tokens, short texts above all, and agreement with the field's package."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from explainers import text_masks
from explainers.errors import InconsistentAnswer, InvalidRequest
from explainers.methods import text_lime, text_shapley
from explainers.methods.text_lime import TextLimeConfig
from explainers.methods.text_shapley import TextShapleyConfig
from explainers.text_masks import TextOptions, cut, predict_texts
from explainers.types import Attribution
from tests.explainers.toy_predictors import WordFormula, logistic

LONG = "smoke came from the old engine room and nobody called the fire brigade until much later in the night"
DELIMITERS = (r"\W+", r"\s+", ",", ",+", r"\|", r"\|+")


def planted(words: list[str]) -> list[float]:
    """0.15 without `good`, 0.85 with it."""
    return [0.85 if "good" in words else 0.15]


def lengthy(words: list[str]) -> list[float]:
    """Two classes from words that pull more or less by their letters, with an interaction."""
    pull = sum((len(word) % 5) - 2 + 0.3 * (word[0] in "aeiou") for word in words)
    first = float(logistic(np.array(0.4 * pull + ("fire" in words and "brigade" in words))))
    return [first, 1 - first]


def lime(model: Any, text: str, id: str = "a", **options: Any) -> Attribution:
    return text_lime.attribute(model, [text], [id], TextLimeConfig(**options))[0]


def shap(model: Any, text: str, id: str = "a", **options: Any) -> Attribution:
    return text_shapley.attribute(model, [text], [id], TextShapleyConfig(**options))[0]


@given(st.text(st.sampled_from("ab ,|é\n.")), st.sampled_from(DELIMITERS), st.randoms())
def test_pieces_of_a_text(text: str, delimiter: str, random: Any) -> None:
    pieces = cut(text, delimiter)
    words = [feature.name for feature in pieces.features]
    assert words == [word for word in re.split(delimiter, text) if word]
    keep = [random.random() < 0.5 for _ in words]
    masks = np.array([keep, [True] * len(words), [False] * len(words)], dtype=bool)
    some, whole, none = pieces.without(masks, TextOptions())
    assert whole == text and not [word for word in re.split(delimiter, none) if word]
    assert [word for word in re.split(delimiter, some) if word] == [
        w for w, kept in zip(words, keep, strict=True) if kept
    ]
    instead = pieces.without(masks[:1], TextOptions(removal="placeholder", placeholder="X"))[0]
    assert len(cut(instead, delimiter).tokens) == len(words)


def test_places_of_tokens() -> None:
    features = cut("Fire, fire!", r"\W+").features
    assert [(f.name, f.place.start, f.place.stop) for f in features] == [("Fire", 0, 4), ("fire", 6, 10)]  # type: ignore[union-attr]
    with pytest.raises(InvalidRequest, match="regular expression"):
        cut("a", "(")
    with pytest.raises(InvalidRequest, match="1001 tokens"):
        cut("a " * 1001, r"\s+")


@pytest.mark.parametrize("method", [lime, shap])
@pytest.mark.parametrize("samples", [200, 2000, 5000])
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 8, 12])
def test_short_texts_keep_their_effect(method: Any, samples: int, tokens: int) -> None:
    text = " ".join(["good", *(f"w{place}" for place in range(tokens - 1))])
    found = method(WordFormula(planted), text, samples=samples)
    assert found.values[0, 0] == pytest.approx(0.70, abs=0.01 if tokens > 10 else 1e-4)
    np.testing.assert_allclose(found.values[0, 1:], 0, atol=0.01)
    assert found.facts["exact"] is (tokens <= 10 or (method is shap and samples == 5000))


@pytest.mark.parametrize("method", [lime, shap])
@pytest.mark.parametrize("text", ["", " ...  "])
def test_empty_texts(method: Any, text: str) -> None:
    found = method(WordFormula(lengthy, ("yes", "no")), text)
    assert found.features == () and found.values.shape == (2, 0) == found.uncertainty.shape
    assert found.facts["prediction"] == lengthy([])
    assert method is lime or found.base_values.tolist() == lengthy([])


@pytest.mark.parametrize("text", ["good or bad", LONG])
def test_shares_add_up_and_classes_are_opposites(text: str) -> None:
    model = WordFormula(lengthy, ("yes", "no"))
    fair, slopes = shap(model, text), lime(model, text)
    assert fair.base_values is not None and fair.uncertainty is not None and slopes.uncertainty is not None
    np.testing.assert_allclose(fair.values.sum(axis=1) + fair.base_values, lengthy(text.split()), rtol=1e-9)
    for found in (fair, slopes):
        assert (found.values[0] == -found.values[1]).all()
        assert found.uncertainty is not None and found.uncertainty.any() == (text == LONG)
        assert found.facts["exact"] == (text != LONG) and found.facts["n_samples"] > 0


def test_equal_words_in_equal_places_have_equal_shares() -> None:
    model = WordFormula(lambda words: [float(words.count("fire") ** 2 + words.count("the"))])
    found = shap(model, "fire the fire")
    assert found.values[0] == pytest.approx([2, 1, 2])
    assert [feature.name for feature in found.features] == ["fire", "the", "fire"]


@pytest.mark.parametrize("method", [text_lime, text_shapley])
def test_company_does_not_matter(method: Any) -> None:
    model, texts, ids = WordFormula(lengthy, ("yes", "no")), [LONG, "good or bad", ""], ["a", "b", "c"]
    whole = method.attribute(model, texts, ids)
    for text, id, found in zip(texts, ids, whole, strict=True):
        again = method.attribute(model, [text], [id])[0]
        assert again.values.tobytes() == found.values.tobytes() and again.facts == found.facts
    assert method.attribute(model, [LONG], ["z"])[0].values.tobytes() != whole[0].values.tobytes()
    assert method.attribute(model, ["good or bad"], ["z"])[0].values.tobytes() == whole[1].values.tobytes()


@pytest.mark.parametrize(("method", "samples"), [(lime, 400), (shap, 400)])
def test_standard_errors_are_those_of_repeats(method: Any, samples: int) -> None:
    model = WordFormula(lengthy, ("yes", "no"))
    runs = [method(model, " ".join(LONG.split()[:14]), str(run), samples=samples) for run in range(60)]
    spread = np.std([run.values[0] for run in runs], axis=0, ddof=1)
    told = np.sqrt(np.mean([run.uncertainty[0] ** 2 for run in runs], axis=0))
    assert 0.85 < np.median(told / spread) < 1.15


def test_what_becomes_of_removed_words() -> None:
    model = WordFormula(lambda words: [float(words.count("UNKWORDZ"))])
    assert shap(model, "a b").values.tolist() == [[0, 0]]
    options = TextOptions(removal="placeholder")
    found = shap(model, "a b", options=options)
    assert found.values[0] == pytest.approx([-1, -1]) and found.facts["placeholder"] == "UNKWORDZ"
    assert lime(model, "a b", options=options).values[0] == pytest.approx([-1, -1], abs=1e-4)


def test_each_different_text_is_asked_once_the_shortest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    model = WordFormula(lambda words: [float(len(words))])
    found = predict_texts(model, ["a b c", "a", "a b", "a b c", ""])
    assert found[:, 0].tolist() == [3, 1, 2, 3, 0] and model.asked == [["", "a", "a b", "a b c"]]
    monkeypatch.setattr(text_masks, "TEXTS_AT_ONCE", 3)
    assert predict_texts(model, ["a b c", "a", "a b", "a b c", ""]).tolist() == found.tolist()
    assert predict_texts(model, []).shape == (0, 1)
    with pytest.raises(InconsistentAnswer):
        predict_texts(WordFormula(lambda words: [float("inf")]), ["a"])


def test_work_can_be_stopped() -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    for method in (text_lime, text_shapley):
        with pytest.raises(Stop):
            method.attribute(WordFormula(planted), ["good"], ["a"], checkpoint=stop)


@pytest.mark.parametrize("words", [6, 9, 14])
def test_agreement_with_the_package(words: int) -> None:
    """Means over seeds, token by token, within three standard errors and what the package's own ridge of 1 bends."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = pytest.importorskip("lime.lime_text")
    text = " ".join(dict.fromkeys(LONG.split()[: words + 1]))
    text = " ".join(text.split()[:words])
    model = WordFormula(lengthy, ("yes", "no"), "probability")
    theirs = []
    for seed in range(10):
        explainer = package.LimeTextExplainer(feature_selection="none", random_state=seed)
        told = explainer.explain_instance(text, model.predict, labels=(0,), num_features=words, num_samples=2000)
        order = dict(told.local_exp[0])
        theirs.append([order[place] for place in range(words)])
    ours = [lime(model, text, str(seed)) for seed in range(10)]
    assert [feature.name for feature in ours[0].features] == text.split()
    found = [each.values[0] for each in ours]
    errors = np.sqrt((np.var(theirs, axis=0, ddof=1) + np.var(found, axis=0, ddof=1)) / 10)
    gap = np.abs(np.mean(found, axis=0) - np.mean(theirs, axis=0))
    assert (gap < 3 * errors + 0.03 * np.abs(theirs).max()).all()
