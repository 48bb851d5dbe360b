"""Queries about explanations, in the shapes that are documented."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from storage.errors import InvalidQuery
from storage.query.schema import Explainability
from tests.storage.query.conftest import Ask
from tests.storage.query.rows import Rows, given, text_rows

INPUTS, CLASSES = ["income", "age", "city", "member"], ["a", "b", "c"]
U1 = {"property": "partner_inference_id", "comparator": "eq", "value": "u-1"}
TEXT = text_rows().model
N9 = {"property": "partner_inference_id", "comparator": "eq", "value": "n-9"}
FIRST = "00000000-0000-0000-0000-000000001388"


def explainer(*names: str) -> list[dict[str, str]]:
    return [{"property": f"explainer_{name}"} for name in names]


async def test_scores_of_an_inference(ask: Ask, rows: Rows) -> None:
    of_b = {"property": "explainer_predicted_attribute", "comparator": "eq", "value": "b"}
    lime = {"property": "explainer_algo", "comparator": "eq", "value": "lime"}
    body = {"select": explainer("attribute", "score"), "from": "enriched", "filter": [U1, of_b, lime]}
    wanted = [given(each) for each in rows.scores["lime"][1, 4:8].tolist()]
    found = await ask(body)
    assert found == [
        {"explainer_attribute": name, "explainer_score": score} for name, score in zip(INPUTS, wanted, strict=True)
    ]
    by_id = U1 | {"property": "inference_id", "value": "00000000-0000-0000-0000-0000000003e9"}
    assert await ask(body | {"filter": [by_id, of_b, lime]}) == found
    assert await ask(body | {"filter": [U1 | {"value": "nobody"}]}) == []


async def test_rows_multiply_in_a_steady_order(ask: Ask, rows: Rows) -> None:
    found = await ask({"select": explainer("algo", "predicted_attribute", "attribute", "score"), "from": "enriched"})
    wanted = [
        (algorithm, predicted, attribute, given(float(scores[row, 4 * k + m])))
        for row in range(len(rows.frame))
        for algorithm, scores in rows.scores.items()
        if not np.isinf(scores[row]).any()
        for k, predicted in enumerate(CLASSES)
        for m, attribute in enumerate(INPUTS)
    ]
    assert [tuple(row.values()) for row in found] == wanted


async def test_how_far_to_trust_a_score(ask: Ask, rows: Rows) -> None:
    lime = {"property": "explainer_algo", "comparator": "eq", "value": "lime"}
    body = {"select": explainer("score_stderr", "local_fit_r2"), "from": "enriched", "filter": [U1, lime]}
    found = await ask(body)
    assert [row["explainer_local_fit_r2"] for row in found] == [0.1] * 4 + [0.2] * 4 + [0.3] * 4
    wanted = np.abs(np.nan_to_num(rows.scores["lime"][1]))
    assert [row["explainer_score_stderr"] for row in found] == wanted.tolist()


async def test_how_many_samples_a_score_rests_on(ask: Ask) -> None:
    body = {"select": explainer("algo", "attribute", "n_samples"), "from": "enriched", "filter": [U1]}
    found = await ask(body)
    assert [(row["explainer_algo"], row["explainer_n_samples"]) for row in found] == [("lime", 502)] * 12 + [
        ("shap", None)
    ] * 12
    largest = {"function": "max", "parameters": {"property": "explainer_n_samples"}}
    assert await ask({"select": [largest], "from": "enriched"}) == [{"max": 800}]


async def test_scores_are_numbers_like_others(ask: Ask, rows: Rows) -> None:
    day = {
        "function": "roundTimestamp",
        "alias": "day",
        "parameters": {"property": "inference_timestamp", "time_interval": "day"},
    }
    body = {
        "select": [*explainer("attribute"), day, {"function": "avgAbs", "parameters": {"property": "explainer_score"}}],
        "from": "enriched",
        "group_by": [{"property": "explainer_attribute"}, {"alias": "day"}],
        "filter": [
            {"property": "explainer_algo", "comparator": "eq", "value": "shap"},
            {"property": "explainer_predicted_attribute", "comparator": "eq", "value": "a"},
        ],
    }
    found = await ask(body)
    days = rows.frame["inference_timestamp"].dt.floor("D")
    for row in found:
        inside = (days == row["day"]).to_numpy()
        scores = rows.scores["shap"][:100][inside[:100], INPUTS.index(row["explainer_attribute"])]
        assert row["avgAbs"] == pytest.approx(np.nanmean(np.abs(scores)))
    assert len(found) == 4 * days[:100].nunique()


async def test_only_a_named_score_multiplies(ask: Ask, rows: Rows) -> None:
    count: dict[str, Any] = {"select": [{"function": "count"}], "from": "enriched"}
    assert await ask(count) == [{"count": 300}]
    scored = {"property": "explainer_score", "comparator": "NotNull"}
    total = sum(int(np.isfinite(scores).sum()) for scores in rows.scores.values())
    assert await ask(count | {"filter": [scored]}) == [{"count": total}]
    assert "explainer_score" not in (await ask({"select": [{"property": "*"}], "from": "enriched", "limit": 1}))[0]
    assert await ask({"select": [{"property": "anomaly_score"}], "from": "enriched", "limit": 1}) == [
        {"anomaly_score": None}
    ]


async def test_importances_as_an_object(ask: Ask, rows: Rows) -> None:
    attributes = tuple(
        replace(each, is_positive_predicted_attribute=each.name == "b") for each in rows.model.attributes
    )
    model = replace(rows.model, attributes=attributes)
    names = ("lime_feature_importance", "lime_importance", "shap_importance")
    body = {"select": [{"property": name} for name in names], "from": "enriched"}
    found = await ask(body, model)
    for place in (0, 1, 150):
        lime = dict(zip(INPUTS, map(given, rows.scores["lime"][place, 4:8].tolist()), strict=True))
        shap = dict(zip(INPUTS, map(given, rows.scores["shap"][place, 4:8].tolist()), strict=True))
        assert found[place] == dict(zip(names, (lime, lime, shap if place < 100 else None), strict=True))
    assert len(found) == 300
    with pytest.raises(InvalidQuery, match="no positive class"):
        await ask(body)


async def test_regional_importances(ask: Ask, rows: Rows) -> None:
    young = {"property": "age", "comparator": "lt", "value": 25}
    inside = np.array([given(age) is not None and age < 25 for age in rows.frame["age"]])
    mean = np.nanmean(np.abs(rows.scores["lime"][inside, 8:]), axis=0)
    one = {
        "function": "regionalFeatureImportance",
        "parameters": {"attribute_name": "city", "predicted_attribute_name": "c"},
    }
    for source in ({}, {"from": "enriched"}, {"from": "inference"}):
        (found,) = await ask({"select": [one], "filter": [young], **source})
        assert found == {"regionalFeatureImportance": pytest.approx(mean[2])}
        every = {"function": "regionalFeatureImportances", "parameters": {"predicted_attribute_name": "c"}}
        found = await ask({"select": [every], "filter": [young], **source})
        order = np.argsort(-mean)
        assert [row["explainer_attribute"] for row in found] == [INPUTS[place] for place in order]
        assert [row["regionalFeatureImportance"] for row in found] == pytest.approx(mean[order])
    nobody = U1 | {"value": "nobody"}
    assert await ask({"select": [one | {"alias": "x"}], "filter": [nobody]}) == [{"x": None}]
    found = await ask({"select": [every | {"alias": "x"}], "filter": [nobody]})
    assert found == [{"explainer_attribute": name, "x": None} for name in INPUTS]
    last = {"select": [every], "order_by": [{"property": "explainer_attribute"}], "limit": 1}
    assert [row["explainer_attribute"] for row in await ask(last)] == ["age"]
    shap = one | {"parameters": one["parameters"] | {"explanation_algorithm": "shap"}}
    (found,) = await ask({"select": [shap]})
    assert found["regionalFeatureImportance"] == pytest.approx(np.nanmean(np.abs(rows.scores["shap"][:100, 10])))


async def test_where_nothing_was_ever_explained(ask: Ask, rows: Rows) -> None:
    never = replace(rows.model, explainability=None)
    parameters = {"attribute_name": "city", "predicted_attribute_name": "c"}
    for item in (
        {"property": "explainer_score"},
        {"property": "lime_importance"},
        {"function": "regionalFeatureImportance", "parameters": parameters},
        {"function": "regionalFeatureImportances", "parameters": {"predicted_attribute_name": "c"}},
        {"function": "nlp_explanation"},
    ):
        with pytest.raises(InvalidQuery, match="never enabled") as caught:
            await ask({"select": [item], "from": "enriched"}, never)
        assert caught.value.pointer.startswith("/select/0")
    stopped = replace(rows.model, explainability=Explainability(enabled=False, algorithm="lime"))
    assert await ask({"select": explainer("score"), "from": "enriched", "filter": [U1]}, stopped)


def token(word: str, position: int, value: float | None) -> dict[str, Any]:
    return {"token": word, "position": position, "value": value, "explanation_value": value}


def entry(predicted: str, *tokens: dict[str, Any], algorithm: str = "lime") -> dict[str, Any]:
    scores = [{"attribute_name": "note", "tokens": list(tokens)}]
    return {"algorithm": algorithm, "predicted_attribute_name": predicted, "importance_scores": scores}


WORDS = ("call", "the", "fire", "fire", "smoke")
URGENT = entry("urgent", *map(token, WORDS, range(5), (0.12, 0.0, 0.3, 0.41, None)))
CALM = entry("calm", *map(token, WORDS, range(5), (-0.12, -0.0, -0.3, -0.41, None)))


def explain(**parameters: Any) -> list[dict[str, Any]]:
    return [{"function": "nlp_explanation", "parameters": parameters}]


async def test_tokens_that_match_in_the_order_asked_for(ask: Ask) -> None:
    body = {
        "select": explain(attribute_name="note", nlp_predicted_attribute="urgent", nlp_explainer="lime"),
        "filter": [N9, {"property": "nlp_explanation.value", "comparator": "gt", "value": 0}],
        "order_by": [{"property": "nlp_explanation.value", "direction": "desc"}],
    }
    wanted = entry("urgent", token("fire", 3, 0.41), token("fire", 2, 0.3), token("call", 0, 0.12))
    for source in ({}, {"from": "enriched"}):
        assert await ask(body | source, TEXT) == [{"inference_id": FIRST, "nlp_explanation": [wanted]}]


async def test_all_tokens_of_all_classes(ask: Ask) -> None:
    found = await ask({"select": explain()}, TEXT)
    assert found == [
        {"inference_id": FIRST, "nlp_explanation": [URGENT, CALM]},
        {"inference_id": FIRST[:-1] + "9", "nlp_explanation": [entry("urgent"), entry("calm")]},
    ]
    (found,) = await ask(
        {"select": explain(nlp_explainer="shap", nlp_predicted_attribute="calm", shape="object")}, TEXT
    )
    assert found["nlp_explanation"] == entry("calm", *map(token, WORDS, range(5), [1.0] * 5), algorithm="shap")
    named = {"select": [{"property": "partner_inference_id"}, explain()[0] | {"alias": "why"}], "filter": [N9]}
    (found,) = await ask(named, TEXT)
    assert list(found) == ["inference_id", "partner_inference_id", "why"] and found["why"] == [URGENT, CALM]


@pytest.mark.parametrize(
    ("field", "comparator", "value", "places"),
    [
        ("token", "eq", "fire", [2, 3]),
        ("token", "ne", "fire", [0, 1, 4]),
        ("token", "in", ["call", "smoke"], [0, 4]),
        ("token", "like", "%e", [1, 2, 3, 4]),
        ("location", "eq", "3", [3]),
        ("location", "lt", 2, [0, 1]),
        ("value", "gte", "0.3", [2, 3]),
        ("value", "IsNull", "", [4]),
        ("value", "gt", 5, []),
    ],
)
async def test_token_filters(ask: Ask, field: str, comparator: str, value: Any, places: list[int]) -> None:
    condition = {"property": f"nlp_explanation.{field}", "comparator": comparator, "value": value}
    found = await ask({"select": explain(nlp_predicted_attribute="urgent"), "filter": [condition]}, TEXT)
    tokens = URGENT["importance_scores"][0]["tokens"]
    wanted = [{"inference_id": FIRST, "nlp_explanation": [entry("urgent", *(tokens[place] for place in places))]}]
    assert found == (wanted if places else [])


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"select": explain(attribute_name="urgent")}, "/select/0/parameters/attribute_name"),
        ({"select": explain(nlp_predicted_attribute="x")}, "/select/0/parameters/nlp_predicted_attribute"),
        ({"select": explain(nlp_explainer="magic")}, "/select/0/parameters/nlp_explainer"),
        ({"select": explain(), "order_by": [{"property": "nlp_explanation.size"}]}, "/order_by/0/property"),
        (
            {"select": explain(), "filter": [{"property": "nlp_explanation.token", "comparator": "lt", "value": "a"}]},
            "/filter/0/value",
        ),
        ({"select": [*explain(), {"function": "count"}]}, "/select/0"),
        ({"select": explain(shape="object")}, "/select/0/parameters"),
        (
            {
                "select": [{"property": "note"}],
                "filter": [{"property": "nlp_explanation.token", "comparator": "IsNull"}],
            },
            "/filter/0/property",
        ),
    ],
)
async def test_mistakes_are_named(ask: Ask, body: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidQuery) as caught:
        await ask(body, TEXT)
    assert caught.value.pointer == pointer


async def test_tokens_are_rows_of_a_corpus(ask: Ask) -> None:
    """A row for each inference, algorithm, predicted attribute and token."""
    named = [{"property": f"explainer_{name}"} for name in ("algo", "attribute", "token", "token_position", "score")]
    urgent = {"property": "explainer_predicted_attribute", "comparator": "eq", "value": "urgent"}
    lime = {"property": "explainer_algo", "comparator": "eq", "value": "lime"}
    found = await ask({"select": named, "from": "enriched", "filter": [urgent]}, TEXT)
    words = ["call", "the", "fire", "fire", "smoke"]
    assert [row["explainer_algo"] for row in found] == ["lime"] * 5 + ["shap"] * 5
    assert [(row["explainer_token"], row["explainer_token_position"]) for row in found[:5]] == [
        (word, place) for place, word in enumerate(words)
    ]
    assert [row["explainer_score"] for row in found[:5]] == [0.12, 0.0, 0.3, 0.41, None]
    assert {row["explainer_attribute"] for row in found} == {"note"}
    mean = {"function": "avg", "alias": "mean", "parameters": {"property": "explainer_score"}}
    by_token = {
        "select": [{"property": "explainer_token"}, mean, {"function": "count"}],
        "from": "enriched",
        "filter": [urgent, lime],
        "group_by": [{"property": "explainer_token"}],
        "order_by": [{"alias": "mean", "direction": "desc"}],
    }
    grouped = await ask(by_token, TEXT)
    assert [(row["explainer_token"], row["mean"], row["count"]) for row in grouped] == [
        ("fire", pytest.approx(0.355), 2),
        ("call", 0.12, 1),
        ("the", 0.0, 1),
        ("smoke", None, 1),
    ]
    assert await ask({"select": [{"function": "count"}], "from": "enriched"}, TEXT) == [{"count": 3}]


async def test_tables_have_no_tokens(ask: Ask) -> None:
    with pytest.raises(InvalidQuery, match="explainer_token"):
        await ask({"select": [{"property": "explainer_token"}], "from": "enriched"})
