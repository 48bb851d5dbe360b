"""Drift beside numpy and scipy, on random rows with nulls, empty bins and groups that only one side has."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from storage.database import Database
from storage.errors import InvalidQuery
from storage.query.drift import bucket_table, drift
from storage.query.drift_request import parse_bucket_table, parse_drift
from tests.storage.query.rows import given, tabular

ROWS = tabular()
MODEL, FRAME, REFERENCE = ROWS.model, ROWS.frame, ROWS.reference
Compare = Callable[..., Awaitable[list[dict[str, Any]]]]
METRICS = ("PSI", "KLDivergence", "JSDivergence", "HellingerDistance")
NUMBERS, CATEGORIES = ("income", "age", "a"), ("city", "member")
BASE, TARGET = {"source": "reference"}, {"source": "inference"}
BOTH = {"base": BASE, "target": TARGET}


@pytest.fixture
def compare(store: Database) -> Compare:
    async def compared(body: dict[str, Any], model: Any = MODEL, tenant: str = "t") -> list[dict[str, Any]]:
        asked = parse_drift(body)
        async with store.transaction(tenant) as session:
            return await drift(session, model, asked)

    return compared


@pytest.fixture
def tabulate(store: Database) -> Compare:
    async def tabulated(body: dict[str, Any], model: Any = MODEL) -> list[dict[str, Any]]:
        asked = parse_bucket_table(body)
        async with store.transaction("t") as session:
            return await bucket_table(session, model, asked)

    return tabulated


def values(frame: pd.DataFrame, name: str, *, numbers: bool) -> Any:
    present = frame[name].dropna()
    return present.astype(float).to_numpy() if numbers else present


def counted(base: pd.DataFrame, target: pd.DataFrame, name: str, bins: int, *, numbers: bool) -> Any:
    """Counts per bin of both: quantiles of the base, or the categories of either."""
    sides = [values(frame, name, numbers=numbers) for frame in (base, target)]
    if numbers:
        inner = np.quantile(sides[0], np.arange(1, bins) / bins)
        return np.array([np.bincount(np.digitize(each, inner), minlength=bins) for each in sides], dtype=float)
    every = sorted(set(sides[0]) | set(sides[1]))
    return np.array([[(each == category).sum() for category in every] for each in sides], dtype=float)


def expected(metric: str, counts: Any) -> float:
    p, q = (np.where(each == 0, 1e-6, each / each.sum()) for each in counts)
    m = (p + q) / 2
    return {
        "PSI": ((p - q) * np.log(p / q)).sum(),
        "KLDivergence": (p * np.log(p / q)).sum(),
        "JSDivergence": ((p * np.log(p / m)).sum() + (q * np.log(q / m)).sum()) / 2,
        "HellingerDistance": math.sqrt(((np.sqrt(p) - np.sqrt(q)) ** 2).sum() / 2),
    }[metric]


def near(value: float | None) -> Any:
    return None if value is None else pytest.approx(value, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("bins", [1, 4, 20, 300])
@pytest.mark.parametrize("metric", METRICS)
async def test_divergences(compare: Compare, metric: str, bins: int) -> None:
    body = {"properties": [*NUMBERS, *CATEGORIES], "metric": metric, "num_bins": bins, **BOTH}
    (found,) = await compare(body)
    wanted = {
        name: expected(metric, counted(REFERENCE, FRAME, name, bins, numbers=name in NUMBERS))
        for name in body["properties"]
    }
    assert found == {name: near(value) for name, value in wanted.items()}
    assert list(found) == body["properties"]


def log_p(base: pd.DataFrame, target: pd.DataFrame, name: str) -> float:
    if name in NUMBERS:
        sides = [values(frame, name, numbers=True) for frame in (base, target)]
        return -math.log10(stats.ks_2samp(*sides, method="exact").pvalue)
    counts = counted(base, target, name, 0, numbers=False)
    return -math.log10(stats.chi2_contingency(counts, correction=False).pvalue)


async def test_hypothesis_tests(compare: Compare) -> None:
    body = {"properties": [*NUMBERS, *CATEGORIES], "metric": "HypothesisTest", **BOTH}
    (found,) = await compare(body)
    assert found == {name: near(log_p(REFERENCE, FRAME, name)) for name in body["properties"]}
    (same,) = await compare(body | {"target": BASE})
    assert same == dict.fromkeys(body["properties"], near(0.0))


YOUNG = {"property": "age", "comparator": "lt", "value": 30}
OLD = YOUNG | {"comparator": "gte"}
AGES = FRAME["age"].astype(float)


@pytest.mark.parametrize("metric", [*METRICS, "HypothesisTest"])
async def test_filters_of_each_side(compare: Compare, metric: str) -> None:
    young, old = FRAME[AGES < 30], FRAME[AGES >= 30]
    body = {"properties": ["age", "income", "city"], "metric": metric, "num_bins": 5}
    sides = {"base": TARGET | {"filter": [YOUNG]}, "target": TARGET | {"filter": [OLD]}}
    (found,) = await compare(body | sides)
    for name in body["properties"]:
        if metric == "HypothesisTest":
            wanted = log_p(young, old, name) if name in NUMBERS or name == "city" else None
        else:
            wanted = expected(metric, counted(young, old, name, 5, numbers=name != "city"))
        assert found[name] == near(wanted)


def part(frame: pd.DataFrame, name: str, value: Any) -> pd.DataFrame:
    return frame[frame[name].isna()] if value is None else frame[frame[name] == value]


@pytest.mark.parametrize("metric", ["PSI", "HypothesisTest"])
async def test_groups_and_times(compare: Compare, metric: str) -> None:
    body = {
        "properties": ["income", "member"],
        "metric": metric,
        "num_bins": 3,
        "group_by": [{"property": "city"}],
        "rollup": "month",
        **BOTH,
    }
    found = await compare(body)
    months = FRAME["inference_timestamp"].dt.strftime("%Y-%m-01T00:00:00Z")
    cities = [*sorted(set(FRAME["city"].dropna())), None]
    wanted = [(city, month) for city in cities for month in sorted(set(months[part(FRAME, "city", city).index]))]
    assert [(row["city"], row["rollup"]) for row in found] == wanted
    for row in found:
        base = part(REFERENCE, "city", row["city"])
        target = part(FRAME, "city", row["city"])
        target = target[months[target.index] == row["rollup"]]
        for name in body["properties"]:
            sides = [values(frame, name, numbers=name == "income") for frame in (base, target)]
            if not all(map(len, sides)):
                value = None
            elif metric == "PSI":
                value = expected(metric, counted(base, target, name, 3, numbers=name == "income"))
            elif name == "member" and len(set(sides[0]) | set(sides[1])) == 1:
                value = 0.0
            else:
                value = log_p(base, target, name)
            assert row[name] == near(value)
        assert list(row) == ["income", "member", "city", "rollup"]


@pytest.mark.parametrize("rollup", ["minute", "hour", "day", "year"])
async def test_intervals(compare: Compare, rollup: str) -> None:
    found = await compare({"properties": ["city"], "metric": "PSI", "rollup": rollup, **BOTH})
    unit = {
        "minute": "%Y-%m-%dT%H:%M:00Z",
        "hour": "%Y-%m-%dT%H:00:00Z",
        "day": "%Y-%m-%dT00:00:00Z",
        "year": "%Y-01-01T00:00:00Z",
    }
    assert [row["rollup"] for row in found] == sorted(set(FRAME["inference_timestamp"].dt.strftime(unit[rollup])))


async def test_batches(compare: Compare) -> None:
    found = await compare({"properties": ["age"], "metric": "PSI", "rollup": "batch_id", "num_bins": 4, **BOTH})
    assert [row["rollup"] for row in found] == ["b1", "b2", None]
    for row in found:
        counts = counted(REFERENCE, part(FRAME, "batch_id", row["rollup"]), "age", 4, numbers=True)
        assert row["age"] == near(expected("PSI", counts))


def winners(frame: pd.DataFrame) -> pd.Series:
    known = frame[frame[["a", "b", "c"]].notna().any(axis=1)]
    places = known[["a", "b", "c"]].astype(float).fillna(-1).to_numpy().argmax(axis=1)
    return pd.Series(np.array(["a", "b", "c"])[places], index=known.index)


async def test_classes(compare: Compare) -> None:
    body = {"predicted_classes": ["*"], "metric": "JSDivergence", **BOTH}
    (found,) = await compare(body)
    frames = [pd.DataFrame({"class": winners(frame)}) for frame in (REFERENCE, FRAME)]
    assert found == {"predictedClass": near(expected("JSDivergence", counted(*frames, "class", 0, numbers=False)))}
    some = [frame[frame["class"] != "b"] for frame in frames]
    (found,) = await compare(body | {"predicted_classes": ["c", "a"]})
    assert found == {"predictedClass": near(expected("JSDivergence", counted(*some, "class", 0, numbers=False)))}


async def test_true_classes(compare: Compare) -> None:
    early = {"property": "inference_timestamp", "comparator": "lt", "value": "2026-02-20T00:00:00Z"}
    truth = {"source": "ground_truth"}
    body = {
        "properties": ["income"],
        "ground_truth_classes": ["*"],
        "metric": "HypothesisTest",
        "base": truth | {"filter": [early]},
        "target": truth | {"filter": [early | {"comparator": "gte"}]},
    }
    (found,) = await compare(body)
    known = FRAME[FRAME["klass"].notna()]
    before = known["inference_timestamp"] < pd.Timestamp(early["value"])
    sides = known[before], known[~before]
    assert found == {"income": near(log_p(*sides, "income")), "groundTruthClass": near(log_p(*sides, "klass"))}


async def test_numbers_that_are_categories(compare: Compare) -> None:
    named = tuple(
        replace(each, definition={"categorical": True}) if each.name == "age" else each for each in MODEL.attributes
    )
    (found,) = await compare({"properties": ["age"], "metric": "PSI", **BOTH}, replace(MODEL, attributes=named))
    assert found == {"age": near(expected("PSI", counted(REFERENCE, FRAME, "age", 0, numbers=False)))}


async def test_where_a_side_is_empty(compare: Compare, tabulate: Compare) -> None:
    nobody = TARGET | {"filter": [YOUNG | {"value": 0}]}
    body = {"properties": ["income", "city"], "metric": "PSI", "base": TARGET, "target": nobody}
    for metric in ("PSI", "HypothesisTest"):
        for sides in ({"target": nobody}, {"base": nobody, "target": TARGET}, {"base": nobody}):
            assert await compare(body | sides | {"metric": metric}) == [{"income": None, "city": None}]
    assert await compare(body | {"rollup": "day"}) == []
    assert await compare(body, tenant="stranger") == [{"income": None, "city": None}]
    assert await tabulate({"property": "income", "base": TARGET, "target": nobody}) == []


async def test_thresholds(compare: Compare) -> None:
    body = {"properties": ["income", "city"], "metric": "Thresholds", "base": TARGET, "num_bins": 10}
    (found,) = await compare(body)
    assert found.keys() == {"income", "city"} and found == (await compare(body))[0]
    generator = np.random.default_rng(0)
    for name in found:
        counts = counted(FRAME, FRAME, name, 10, numbers=name == "income")[0]
        rows = np.repeat(np.arange(len(counts)), counts.astype(int))
        splits = []
        for _ in range(400):
            order = generator.permutation(rows)
            halves = order[: len(rows) // 2], order[len(rows) // 2 :]
            splits.append(np.array([np.bincount(half, minlength=len(counts)) for half in halves], dtype=float))
        for metric in METRICS:
            apart = [expected(metric, split) for split in splits]
            assert np.quantile(apart, 0.88) < found[name][metric] < np.quantile(apart, 0.99)
    groups = await compare(body | {"group_by": [{"property": "member"}]})
    assert [row["member"] for row in groups] == [False, True, None]
    one = {"property": "partner_inference_id", "comparator": "eq", "value": "u-1"}
    assert await compare(body | {"base": TARGET | {"filter": [one]}}) == [{"income": None, "city": None}]


async def test_the_table_of_bins(tabulate: Compare) -> None:
    found = await tabulate({"property": "income", "num_bins": 4, "rollup": "batch_id", **BOTH})
    income = values(REFERENCE, "income", numbers=True)
    edges = np.quantile(income, np.arange(5) / 4)
    for batch in ("b1", "b2", None):
        rows = [row for row in found if row["rollup"] == batch]
        assert [row["bucket"] for row in rows] == [f"bucket_{place}" for place in range(1, 5)]
        counts = counted(REFERENCE, part(FRAME, "batch_id", batch), "income", 4, numbers=True)
        assert sum(row["psi"] for row in rows) == near(expected("PSI", counts))
        for place, row in enumerate(rows):
            p, q = counts[:, place] / counts.sum(axis=1)
            bounds = {"bucket_min": near(edges[place]), "bucket_max": near(edges[place + 1])}
            wanted: dict[str, Any] = {"bucket": row["bucket"], "rollup": batch}
            for side, share, number in (("base", p, counts[0]), ("target", q, counts[1])):
                wanted |= {f"{side}_{name}": value for name, value in bounds.items()}
                wanted |= {
                    f"{side}_count_per_bucket": number[place],
                    f"{side}_probability_per_bucket": near(share),
                    f"{side}_ln_probability_per_bucket": near(math.log(share)),
                    f"{side}_total": number.sum(),
                }
            ratio = math.log(p / q)
            wanted |= {"probability_difference": near(p - q), "ln_probability_difference": near(ratio)}
            assert row == wanted | {"psi": near((p - q) * ratio)}


async def test_the_table_of_categories_and_groups(tabulate: Compare) -> None:
    found = await tabulate({"property": "city", "group_by": [{"property": "member"}], **BOTH})
    assert {given(row["member"]) for row in found} == {True, False, None}
    for row in found:
        base, target = (part(frame, "member", row["member"])["city"].dropna() for frame in (REFERENCE, FRAME))
        assert row["base_count_per_bucket"] == (base == row["bucket"]).sum()
        assert row["target_count_per_bucket"] == (target == row["bucket"]).sum()
        assert (row["base_total"], row["target_total"]) == (len(base), len(target))
        assert "base_bucket_min" not in row
    empty = [row for row in found if row["base_count_per_bucket"] == 0]
    assert all(row["base_probability_per_bucket"] == 1e-6 for row in empty)


async def test_bins_between_equal_quantiles_are_one(tabulate: Compare) -> None:
    found = await tabulate({"property": "gt_a", "num_bins": 20, "base": TARGET, "target": TARGET})
    assert [(row["bucket"], row["base_bucket_min"], row["base_bucket_max"]) for row in found] == [
        ("bucket_1", 0.0, 0.0),
        ("bucket_2", 0.0, 1.0),
        ("bucket_3", 1.0, 1.0),
    ]
    assert [row["base_count_per_bucket"] for row in found] == [
        0,
        *values(FRAME, "gt_a", numbers=False).value_counts().sort_index(),
    ]


PSI = {"properties": ["age"], "metric": "PSI", **BOTH}


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, ""),
        ({"metric": "PSI", **BOTH}, ""),
        (PSI | {"properties": []}, ""),
        (PSI | {"properties": ["age"] * 2}, "/properties/1"),
        (PSI | {"properties": ["age"] * 101}, "/properties"),
        (PSI | {"properties": ["aeg"]}, "/properties/0"),
        (PSI | {"properties": ["tags"]}, "/properties/0"),
        (PSI | {"properties": ["since"]}, "/properties/0"),
        (PSI | {"properties": ["explainer_score"]}, "/properties/0"),
        (PSI | {"metric": "psi"}, "/metric"),
        ({"properties": ["age"], **BOTH}, ""),
        (PSI | {"num_bins": 0}, "/num_bins"),
        (PSI | {"num_bins": 10**6}, "/num_bins"),
        (PSI | {"base": {}}, "/base"),
        (PSI | {"base": {"source": "enriched"}}, "/base/source"),
        (PSI | {"base": BASE | {"filter": [YOUNG | {"property": "batch_id"}]}}, "/base/filter/0/property"),
        (PSI | {"target": TARGET | {"filter": [YOUNG | {"value": "x"}]}}, "/target/filter/0/value"),
        (PSI | {"target": TARGET | {"filter": [{"alias": "x", "comparator": "IsNull"}]}}, "/target/filter/0/alias"),
        ({"properties": ["age"], "metric": "PSI", "base": BASE}, ""),
        (PSI | {"metric": "Thresholds"}, "/target"),
        (PSI | {"target": None, "metric": "Thresholds", "rollup": "day"}, "/rollup"),
        (PSI | {"rollup": "week"}, "/rollup"),
        (PSI | {"rollup": "day", "target": BASE}, "/rollup"),
        (PSI | {"group_by": [{"property": "batch_id"}]}, "/group_by/0/property"),
        (PSI | {"group_by": [{"property": "age"}]}, "/properties/0"),
        (PSI | {"predicted_classes": []}, "/predicted_classes"),
        (PSI | {"predicted_classes": ["d"]}, "/predicted_classes"),
        (PSI | {"more": 1}, "/more"),
    ],
)
async def test_mistakes_are_named(compare: Compare, body: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidQuery) as caught:
        await compare(body)
    assert caught.value.pointer == pointer


@pytest.mark.parametrize(
    ("body", "pointer"),
    [(BOTH, ""), ({"property": "age", "metric": "PSI", **BOTH}, "/metric"), ({"property": "x", **BOTH}, "/property")],
)
async def test_mistakes_of_tables_are_named(tabulate: Compare, body: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidQuery) as caught:
        await tabulate(body)
    assert caught.value.pointer == pointer
