"""Every function beside pandas, numpy and scikit-learn, on random rows with nulls."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from storage.query.functions import FUNCTIONS
from storage.query.typed import iso
from tests.storage.query.conftest import Ask
from tests.storage.query.rows import Rows
from tests.storage.query.test_lists import RANKED

Expect = Callable[[pd.DataFrame], Any]
THRESHOLDS = [1500, 2000.5, 2500]


def present(frame: pd.DataFrame, name: str) -> pd.Series:
    return frame[name].dropna().astype(float)


def pairs(frame: pd.DataFrame, predicted: str = "a", truth: str = "gt_a") -> tuple[np.ndarray, np.ndarray]:
    both = frame[[predicted, truth]].dropna().astype(float)
    return both[predicted].to_numpy(), both[truth].to_numpy()


def binary(frame: pd.DataFrame, threshold: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction as 0 and 1."""
    predicted, truth = pairs(frame)
    return truth.astype(int), (predicted >= threshold).astype(int)


def against_all(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    rows = frame[frame["klass"].notna() & frame[["a", "b", "c"]].notna().any(axis=1)]
    winner = rows[["a", "b", "c"]].astype(float).fillna(-1).to_numpy().argmax(axis=1)
    return (rows["klass"].astype(int) == 2).astype(int).to_numpy(), (winner == 1).astype(int)


def matrix(truth: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    tn, fp, fn, tp = metrics.confusion_matrix(truth, predicted).ravel()
    return {"true_positive": tp, "false_positive": fp, "true_negative": tn, "false_negative": fn}


def rates(truth: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    return {
        "true_positive_rate": metrics.recall_score(truth, predicted),
        "false_positive_rate": 1 - metrics.recall_score(truth, predicted, pos_label=0),
        "true_negative_rate": metrics.recall_score(truth, predicted, pos_label=0),
        "false_negative_rate": 1 - metrics.recall_score(truth, predicted),
        "accuracy_rate": metrics.accuracy_score(truth, predicted),
        "balanced_accuracy_rate": metrics.balanced_accuracy_score(truth, predicted),
        "precision": metrics.precision_score(truth, predicted),
        "f1": metrics.f1_score(truth, predicted),
    }


def histogram(frame: pd.DataFrame) -> list[dict[str, Any]]:
    counts, edges = np.histogram(present(frame, "income"), bins=7)
    return [
        {"lower": lower, "upper": upper, "count": count}
        for lower, upper, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]


def between(frame: pd.DataFrame) -> list[dict[str, Any]]:
    places = np.digitize(present(frame, "income"), THRESHOLDS)
    counts = np.bincount(places, minlength=4)
    return [
        {"upper": 1500.0, "count": counts[0]},
        {"lower": 1500.0, "upper": 2000.5, "count": counts[1]},
        {"lower": 2000.5, "upper": 2500.0, "count": counts[2]},
        {"lower": 2500.0, "count": counts[3]},
    ]


def accuracy(frame: pd.DataFrame) -> float:
    rows = frame[frame["klass"].notna() & frame[["a", "b", "c"]].notna().any(axis=1)]
    winner = rows[["a", "b", "c"]].astype(float).fillna(-1).to_numpy().argmax(axis=1) + 1
    return metrics.accuracy_score(rows["klass"].astype(int), winner)


def region(frame: pd.DataFrame, place: int = 5) -> float:
    return float(np.nanmean(np.abs(frame.attrs["lime"][:, place])))


INCOME = {"property": "income"}
A = {"predicted_property": "a"}
B = {"predicted_property": "b"}
TRUTH = {"predicted_property": "a", "ground_truth_property": "truth"}
GT = {"comparator": "gt", "value": 2000}

AGGREGATES: list[tuple[str, dict[str, Any], Expect]] = [
    ("avg", INCOME, lambda f: present(f, "income").mean()),
    ("avg", {"property": "member"}, lambda f: present(f, "member").mean()),
    ("avgAbs", {"property": "truth"}, lambda f: present(f, "truth").abs().mean()),
    ("sum", INCOME, lambda f: present(f, "income").sum()),
    ("sum", {"property": "age"}, lambda f: int(present(f, "age").sum())),
    ("variance", INCOME, lambda f: present(f, "income").var()),
    ("stdDev", INCOME, lambda f: present(f, "income").std()),
    ("max", INCOME, lambda f: present(f, "income").max()),
    ("min", {"property": "age"}, lambda f: int(present(f, "age").min())),
    ("max", {"property": "city"}, lambda f: max(f["city"].dropna())),
    ("min", {"property": "since"}, lambda f: iso(f["since"].dropna().min().to_pydatetime())),
    ("max", {"property": "inference_timestamp"}, lambda f: iso(f["inference_timestamp"].max().to_pydatetime())),
    ("count", {}, len),
    ("countIf", INCOME | GT, lambda f: int((present(f, "income") > 2000).sum())),
    (
        "countIf",
        {"property": "city", "comparator": "in", "value": ["Zug", None]},
        lambda f: int((f["city"].isna() | (f["city"] == "Zug")).sum()),
    ),
    ("countIf", {"property": "city", "comparator": "IsNull"}, lambda f: int(f["city"].isna().sum())),
    ("rate", INCOME | GT, lambda f: (present(f, "income") > 2000).sum() / len(f)),
    ("rate", {"property": "member", "comparator": "eq", "value": True}, lambda f: (f["member"] == True).mean()),  # noqa: E712
    ("categoriesCount", {"property": "city"}, lambda f: f["city"].nunique()),
    ("distribution", INCOME | {"num_bins": 7}, histogram),
    ("distribution", INCOME | {"bin_thresholds": THRESHOLDS}, between),
    ("quantile", INCOME | {"level": 0.37}, lambda f: present(f, "income").quantile(0.37)),
    (
        "deciles",
        INCOME,
        lambda f: dict(
            zip(
                ["min", *(f"q{i}" for i in range(1, 10)), "max"],
                np.quantile(present(f, "income"), np.arange(11) / 10),
                strict=True,
            )
        ),
    ),
    (
        "argMax",
        {"argument": "partner_inference_id", "value": "age"},
        lambda f: f.loc[present(f, "age").idxmax(), "partner_inference_id"],
    ),
    ("argMin", {"argument": "city", "value": "income"}, lambda f: none(f.loc[present(f, "income").idxmin(), "city"])),
    (
        "anyIf",
        {"result": "partner_inference_id", "property": "income"} | GT,
        lambda f: f[f["income"].astype(float) > 2000]["partner_inference_id"].iloc[0],
    ),
    ("anyIf", {"result": "age", "property": "income", "comparator": "gt", "value": 1e9}, lambda f: None),
    ("binsToQuantiles", INCOME | {"num_bins": 4}, lambda f: list(np.quantile(present(f, "income"), [0.25, 0.5, 0.75]))),
    ("rmse", TRUTH, lambda f: math.sqrt(metrics.mean_squared_error(*pairs(f, "truth", "a")))),
    ("mae", TRUTH, lambda f: metrics.mean_absolute_error(*pairs(f, "truth", "a"))),
    (
        "mae",
        TRUTH | {"aggregation": "max", "normalizationMin": 1, "normalizationMax": 3},
        lambda f: np.abs(np.subtract(*pairs(f, "truth", "a"))).max() / 2,
    ),
    ("rSquared", TRUTH, lambda f: metrics.r2_score(*pairs(f, "truth", "a"))),
    ("auc", A, lambda f: metrics.roc_auc_score(*reversed(pairs(f)))),
    ("auc", A | {"threshold": 0.9}, lambda f: metrics.roc_auc_score(*reversed(pairs(f)))),
    ("rmse", TRUTH | {"threshold": 0.9}, lambda f: math.sqrt(metrics.mean_squared_error(*pairs(f, "truth", "a")))),
    ("confusionMatrix", A, lambda f: matrix(*binary(f))),
    ("confusionMatrix", A | {"threshold": 0.8}, lambda f: matrix(*binary(f, 0.8))),
    ("confusionMatrix", A | {"ground_truth_property": "klass"}, lambda f: matrix(*binary(f))),
    ("confusionMatrixRate", A, lambda f: rates(*binary(f))),
    ("truePositiveRate", A, lambda f: rates(*binary(f))["true_positive_rate"]),
    ("falsePositiveRate", A, lambda f: rates(*binary(f))["false_positive_rate"]),
    ("trueNegativeRate", A, lambda f: rates(*binary(f))["true_negative_rate"]),
    ("falseNegativeRate", A, lambda f: rates(*binary(f))["false_negative_rate"]),
    ("accuracyRate", A, lambda f: rates(*binary(f))["accuracy_rate"]),
    ("balancedAccuracyRate", A, lambda f: rates(*binary(f))["balanced_accuracy_rate"]),
    ("f1", A, lambda f: rates(*binary(f))["f1"]),
    ("sensitivity", A, lambda f: rates(*binary(f))["true_positive_rate"]),
    ("specificity", A, lambda f: rates(*binary(f))["true_negative_rate"]),
    ("precision", A, lambda f: rates(*binary(f))["precision"]),
    ("recall", A | {"threshold": 0.8}, lambda f: rates(*binary(f, 0.8))["true_positive_rate"]),
    ("accuracyRateMulticlass", {}, accuracy),
    ("accuracyRateMulticlass", B, lambda f: rates(*against_all(f))["accuracy_rate"]),
    ("confusionMatrixMulticlass", B, lambda f: matrix(*against_all(f))),
    ("confusionMatrixRateMulticlass", B, lambda f: rates(*against_all(f))),
    ("truePositiveRateMulticlass", B, lambda f: rates(*against_all(f))["true_positive_rate"]),
    ("falsePositiveRateMulticlass", B, lambda f: rates(*against_all(f))["false_positive_rate"]),
    ("trueNegativeRateMulticlass", B, lambda f: rates(*against_all(f))["true_negative_rate"]),
    ("falseNegativeRateMulticlass", B, lambda f: rates(*against_all(f))["false_negative_rate"]),
    ("accuracyRateMulticlass", {"threshold": 0.9}, accuracy),
    ("falseNegativeRateMulticlass", B | {"threshold": 0.9}, lambda f: rates(*against_all(f))["false_negative_rate"]),
    ("regionalFeatureImportance", {"attribute_name": "age", "predicted_attribute_name": "b"}, region),
]


def none(value: Any) -> Any:
    return None if value is None or value is pd.NaT or (isinstance(value, float) and math.isnan(value)) else value


def same(found: Any, wanted: Any) -> None:
    """Alike to rounding; types and nulls are exact."""
    wanted = wanted.item() if isinstance(wanted, np.generic) else wanted
    match wanted:
        case dict():
            assert found.keys() == wanted.keys()
            for key, value in wanted.items():
                same(found[key], value)
        case list():
            assert len(found) == len(wanted)
            for one, other in zip(found, wanted, strict=True):
                same(one, other)
        case float():
            assert found == pytest.approx(wanted, rel=1e-9, abs=1e-12)
        case _:
            assert type(found) is type(wanted) and found == wanted


@pytest.mark.parametrize(("function", "parameters", "expected"), AGGREGATES)
async def test_aggregates(ask: Ask, rows: Rows, function: str, parameters: dict[str, Any], expected: Expect) -> None:
    rows.frame.attrs["lime"] = rows.scores["lime"]
    found = await ask({"select": [{"function": function, "parameters": parameters, "alias": "x"}]})
    same(found, [{"x": expected(rows.frame)}])
    empty = await ask(
        {
            "select": [{"function": function, "parameters": parameters}],
            "filter": [{"property": "partner_inference_id", "comparator": "eq", "value": "nobody"}],
        }
    )
    (nothing,) = empty
    assert nothing[function] in (None, 0) or set(nothing[function].values()) in ({0}, {None})
    assert (nothing[function] == 0) == (function in {"count", "countIf", "categoriesCount"})


GROUPABLE = [case for case in AGGREGATES if case[0] != "regionalFeatureImportance" and case[1].get("value") != 1e9]


@pytest.mark.parametrize(("function", "parameters", "expected"), GROUPABLE)
async def test_aggregates_of_groups(
    ask: Ask, rows: Rows, function: str, parameters: dict[str, Any], expected: Expect
) -> None:
    body = {
        "select": [{"property": "batch_id"}, {"function": function, "parameters": parameters}],
        "group_by": [{"property": "batch_id"}],
    }
    found = {row["batch_id"]: row[function] for row in await ask(body)}
    frame = rows.frame
    for batch in ("b1", "b2", None):
        part = frame[frame["batch_id"].isna()] if batch is None else frame[frame["batch_id"] == batch]
        same(found[batch], expected(part))


def every(frame: pd.DataFrame, compute: Callable[[Any], Any]) -> list[Any]:
    return [none(compute(row)) for row in frame.to_dict("records")]


def maybe(compute: Callable[..., Any], *names: str) -> Expect:
    """Row by row; null where one of the columns is."""

    def expect(frame: pd.DataFrame) -> list[Any]:
        def one(row: dict[str, Any]) -> Any:
            values = [none(row[name]) for name in names]
            return None if None in values else compute(*values)

        return [one(row) for row in frame.to_dict("records")]

    return expect


def months(start: Any, end: Any) -> int:
    """Whole months, toward zero."""
    if end < start:
        return -months(end, start)
    whole = (end.year - start.year) * 12 + end.month - start.month
    first, last = ((each.day, each.time()) for each in (start, end))
    return whole - (last < first)


def first_largest(row: dict[str, Any]) -> str | None:
    values = {name: none(row[name]) for name in ("b", "a", "c")}
    known = {name: value for name, value in values.items() if value is not None}
    return max(known, key=lambda name: known[name]) if known else None


def truth_value(value: Any) -> bool:
    return none(value) is not None and value != 0


def nested(function: str, left: Any, right: Any) -> dict[str, Any]:
    return {"nested_function": {"function": function, "parameters": {"left": left, "right": right}}}


def mitigated(row: dict[str, Any]) -> int | None:
    city, member, prediction = (none(row[name]) for name in ("city", "member", "a"))
    least = 0.2 if city == "Zug" and member is False else 0.7 if member else None
    return None if least is None or prediction is None else int(prediction >= least)


def group(threshold: float, **values: Any) -> dict[str, Any]:
    conditions = [{"property": name, "comparator": "eq", "value": value} for name, value in values.items()]
    return {"conditions": conditions, "threshold": threshold}


GROUPS = [group(0.2, city="Zug", member=False), group(0.7, member=True)]
SIDES = {"left": "income", "right": "age"}
SINCE = {"start_date": "since", "end_date": "inference_timestamp"}
ROWS: list[tuple[str, dict[str, Any], Expect]] = [
    *(
        (
            "roundTimestamp",
            {"property": "inference_timestamp", "time_interval": unit},
            lambda f, unit=unit: [floor(x, unit) for x in f["inference_timestamp"]],
        )
        for unit in ("second", "minute", "hour", "day", "month", "year")
    ),
    ("roundTimestamp", {"property": "since", "time_interval": "year"}, maybe(lambda x: floor(x, "year"), "since")),
    ("add", SIDES, maybe(lambda x, y: float(x + y), "income", "age")),
    ("add", {"left": "age", "right": 2}, maybe(lambda x: x + 2, "age")),
    ("subtract", SIDES, maybe(lambda x, y: x - y, "income", "age")),
    ("multiply", SIDES, maybe(lambda x, y: x * y, "income", "age")),
    ("divide", SIDES, maybe(lambda x, y: x / y, "income", "age")),
    (
        "divide",
        {
            "left": "age",
            "right": {"nested_function": {"function": "subtract", "parameters": {"left": "age", "right": 20}}},
        },
        maybe(lambda x: None if x == 20 else x / (x - 20), "age"),
    ),
    (
        "divide",
        {"left": nested("subtract", 1, nested("add", "income", 2)), "right": nested("add", "age", 3)},
        maybe(lambda x, y: (1 - (x + 2)) / (y + 3), "income", "age"),
    ),
    (
        "multiply",
        {"left": nested("subtract", "income", nested("divide", "age", 7)), "right": nested("subtract", 2, "age")},
        maybe(lambda x, y: (x - y / 7) * (2 - y), "income", "age"),
    ),
    ("abs", {"property": "truth"}, maybe(abs, "truth")),
    ("abs", {"property": -3}, lambda f: [3] * len(f)),
    ("equals", {"left": "age", "right": 25}, lambda f: every(f, lambda r: int(r["age"] == 25))),
    ("equals", {"left": "city", "right": "batch_id"}, lambda f: [0] * len(f)),
    (
        "and",
        {"left": "member", "right": "gt_a"},
        lambda f: every(f, lambda r: int(truth_value(r["member"]) and truth_value(r["gt_a"]))),
    ),
    (
        "or",
        {"left": "member", "right": "gt_a"},
        lambda f: every(f, lambda r: int(truth_value(r["member"]) or truth_value(r["gt_a"]))),
    ),
    (
        "if",
        INCOME | GT | {"then": "rich", "else": "poor"},
        lambda f: every(f, lambda r: "rich" if (none(r["income"]) or 0) > 2000 else "poor"),
    ),
    (
        "if",
        {"property": "city", "comparator": "eq", "value": "Zug", "then": 1, "else": None},
        lambda f: every(f, lambda r: 1 if r["city"] == "Zug" else None),
    ),
    (
        "if",
        {"property": "age", "comparator": "lt", "value": "30", "then": {"alias_ref": "age"}, "else": 0.5},
        lambda f: every(f, lambda r: float(r["age"]) if none(r["age"]) is not None and r["age"] < 30 else 0.5),
    ),
    (
        "binContinuous",
        INCOME | {"bin_thresholds": THRESHOLDS},
        maybe(lambda x: int(np.digitize(x, THRESHOLDS)) + 1, "income"),
    ),
    ("labelByMaxColumn", {"properties": ["b", "a", "c"]}, lambda f: every(f, first_largest)),
    *(
        (
            "dateDiff",
            SINCE | {"unit": unit},
            maybe(lambda x, y, s=seconds: int((y - x) / pd.Timedelta(seconds=s)), "since", "inference_timestamp"),
        )
        for unit, seconds in (("second", 1), ("minute", 60), ("hour", 3600), ("day", 86400), ("week", 604800))
    ),
    *(
        (
            "dateDiff",
            SINCE | {"unit": unit},
            maybe(lambda x, y, s=size: int(months(x, y) / s), "since", "inference_timestamp"),
        )
        for unit, size in (("month", 1), ("quarter", 3), ("year", 12))
    ),
    ("neighbor", {"property": "age", "offset": 2, "default": -1}, lambda f: [none(x) for x in f["age"][2:]] + [-1, -1]),
    (
        "neighbor",
        {"property": "city", "offset": -1, "default": "none"},
        lambda f: ["none"] + [none(x) for x in f["city"][:-1]],
    ),
    ("biasMitigatedPredictions", {"predicted_property": "a", "thresholds": GROUPS}, lambda f: every(f, mitigated)),
    (
        "biasMitigatedPredictions",
        {"predicted_property": "a", "thresholds": GROUPS[1]},
        maybe(lambda a, m: int(a >= 0.7) if m else None, "a", "member"),
    ),
    ("arraySlice", {"property": "tags", "start": 2, "length": 2}, maybe(lambda x: json.loads(x)[1:3], "tags")),
]


def floor(value: Any, unit: str) -> str:
    kept = {"year": 1, "month": 2, "day": 3, "hour": 4, "minute": 5, "second": 6}[unit]
    parts = [value.year, value.month, value.day, value.hour, value.minute, value.second][:kept]
    return iso(datetime(*(parts + [1, 1][: max(0, 3 - kept)]), tzinfo=UTC))


@pytest.mark.parametrize(("function", "parameters", "expected"), ROWS)
async def test_row_functions(ask: Ask, rows: Rows, function: str, parameters: dict[str, Any], expected: Expect) -> None:
    body = {"select": [{"function": function, "parameters": parameters, "alias": "x"}, {"property": "age"}]}
    same([row["x"] for row in await ask(body)], expected(rows.frame))


def test_no_function_is_left_out() -> None:
    elsewhere = {"nlp_explanation", "regionalFeatureImportances"}  # see test_explanations
    elsewhere |= {case[0] for case in RANKED} | {"meanAveragePrecision"}  # see test_boxes
    assert {case[0] for case in AGGREGATES + ROWS} | elsewhere == set(FUNCTIONS)
