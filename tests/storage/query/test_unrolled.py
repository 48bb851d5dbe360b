"""Aggregates over scores, place by place, against the same ones over unnested rows."""

from __future__ import annotations

from typing import Any

import pytest

from storage.query import unrolled
from storage.query.compiler import compile_query
from storage.query.grammar import parse
from tests.storage.query.bodies import call
from tests.storage.query.conftest import Ask
from tests.storage.query.rows import tabular

MODEL = tabular().model
SCORE, ATTRIBUTE, PREDICTED, ALGORITHM = (
    {"property": f"explainer_{name}"} for name in ("score", "attribute", "predicted_attribute", "algo")
)
DAY = call("roundTimestamp", "day", property="inference_timestamp", time_interval="day")
SIZE = {"nested_function": call("abs", property="explainer_score")}
OF_B = PREDICTED | {"comparator": "eq", "value": "b"}
LIME = ALGORITHM | {"comparator": "eq", "value": "lime"}
YOUNG = {"property": "age", "comparator": "lt", "value": 25}
NOBODY = {"property": "partner_inference_id", "comparator": "eq", "value": "nobody"}
AVERAGE = call("avg", property="explainer_score")
CELLS = [ATTRIBUTE, PREDICTED]
FAST: dict[str, dict[str, Any]] = {
    "attribute and class": {"select": [*CELLS, AVERAGE, call("count")], "group_by": CELLS},
    "one class": {"select": [ATTRIBUTE, call("avgAbs", property="explainer_score")], "filter": [OF_B]},
    "one class, some rows": {"select": [ATTRIBUTE, AVERAGE], "filter": [OF_B, LIME, YOUNG]},
    "one cell": {
        "select": [AVERAGE, call("max", property="explainer_score_stderr")],
        "filter": [OF_B, ATTRIBUTE | {"comparator": "eq", "value": "age"}],
        "group_by": [],
    },
    "one cell of nobody": {
        "select": [AVERAGE, call("count")],
        "filter": [OF_B, ATTRIBUTE | {"comparator": "eq", "value": "age"}, NOBODY],
        "group_by": [],
    },
    "nobody": {"select": [ATTRIBUTE, AVERAGE], "filter": [OF_B, NOBODY]},
    "some attributes": {
        "select": [*CELLS, call("sum", property=SIZE)],
        "filter": [ATTRIBUTE | {"comparator": "in", "value": ["city", "age", "none of ours"]}],
        "group_by": CELLS,
    },
    "day": {"select": [*CELLS, DAY, AVERAGE], "group_by": [*CELLS, {"alias": "day"}]},
    "day that is not shown": {"select": [ATTRIBUTE, DAY, AVERAGE], "group_by": [{"alias": "day"}, *CELLS]},
    "batch and algorithm": {
        "select": [{"property": "batch_id"}, ALGORITHM, ATTRIBUTE, AVERAGE],
        "filter": [OF_B],
        "group_by": [ATTRIBUTE, ALGORITHM, {"property": "batch_id"}],
    },
    "order, having and limit": {
        "select": [ATTRIBUTE | {"alias": "x"}, call("avgAbs", "size", property="explainer_score")],
        "filter": [OF_B, {"alias": "size", "comparator": "gt", "value": 0.7}],
        "group_by": [{"alias": "x"}],
        "order_by": [{"alias": "size", "direction": "desc"}],
        "limit": 2,
    },
    "functions of cells": {
        "select": [
            ATTRIBUTE,
            call("countIf", "mine", property="explainer_attribute", comparator="eq", value="age"),
            call("rate", property="explainer_score", comparator="gt", value=0.1),
            call("quantile", property="explainer_score", level=0.3),
            call("deciles", property="explainer_score"),
            call("argMax", argument="partner_inference_id", value="explainer_score"),
            call("avg", "fit", property="explainer_local_fit_r2"),
            call("max", "samples", property="explainer_n_samples"),
            call("avg", "income", property="income"),
            call("divide", "ratio", left={"nested_function": AVERAGE}, right={"nested_function": call("count")}),
        ],
        "filter": [OF_B],
    },
    "keys alone": {"select": CELLS, "group_by": CELLS, "order_by": [PREDICTED | {"direction": "desc"}]},
}
FAST |= {
    "classes together": {"select": [ATTRIBUTE, AVERAGE]},
    "all together": {
        "select": [AVERAGE, call("count"), call("min", property="explainer_attribute")],
        "group_by": [],
    },
    "all together of nobody": {"select": [AVERAGE, call("count")], "filter": [NOBODY], "group_by": []},
    "attributes together by class and day": {
        "select": [DAY, PREDICTED, call("avgAbs", property="explainer_score"), call("count")],
        "group_by": [PREDICTED, {"alias": "day"}],
        "order_by": [{"alias": "day", "direction": "desc"}],
    },
    "by day alone": {"select": [DAY, call("avgAbs", property="explainer_score")], "group_by": [{"alias": "day"}]},
    "functions of several cells": {
        "select": [
            ATTRIBUTE,
            ALGORITHM,
            call("sum", property="explainer_score"),
            call("max", property=SIZE),
            call("min", property="explainer_predicted_attribute"),
            call("countIf", property="explainer_score", comparator="lt", value=0),
            call("rate", property="explainer_predicted_attribute", comparator="eq", value="b"),
            call("avg", "income", property="income"),
            call("sum", "ages", property="age"),
            call("divide", "ratio", left={"nested_function": AVERAGE}, right={"nested_function": call("count")}),
        ],
        "group_by": [ATTRIBUTE, ALGORITHM],
        "filter": [PREDICTED | {"comparator": "in", "value": ["a", "c"]}],
    },
}
SLOW: dict[str, dict[str, Any]] = {
    "quantile of several classes": {"select": [ATTRIBUTE, call("quantile", property="explainer_score", level=0.5)]},
    "spread of several classes": {"select": [ATTRIBUTE, call("stdDev", property="explainer_score")]},
    "categories of several classes": {"select": [ATTRIBUTE, call("categoriesCount", property="explainer_score")]},
    "first of several classes": {
        "select": [ATTRIBUTE, call("argMax", argument="partner_inference_id", value="explainer_score")]
    },
    "scores filtered": {
        "select": [*CELLS, AVERAGE],
        "filter": [SCORE | {"comparator": "gt", "value": 0}],
        "group_by": CELLS,
    },
    "class by pattern": {"select": [ATTRIBUTE, AVERAGE], "filter": [PREDICTED | {"comparator": "like", "value": "b"}]},
    "no such class": {"select": [ATTRIBUTE, AVERAGE], "filter": [PREDICTED | {"comparator": "eq", "value": "x"}]},
    "histogram": {
        "select": [ATTRIBUTE, call("distribution", property="explainer_score", num_bins=3)],
        "filter": [OF_B],
    },
    "key of cells": {
        "select": [
            ATTRIBUTE,
            call("if", "k", property="explainer_score", comparator="gt", value=0, then=1, **{"else": 0}),
            AVERAGE,
        ],
        "filter": [OF_B],
        "group_by": [ATTRIBUTE, {"alias": "k"}],
    },
}


def asked(body: dict[str, Any]) -> dict[str, Any]:
    return {"from": "enriched", "group_by": [ATTRIBUTE], **body}


def multiplied(body: dict[str, Any]) -> bool:
    """Whether the statement has a row for each score."""
    return "unnest(" in str(compile_query(parse(body), MODEL).statement)


def near(value: Any) -> Any:
    """Floats to rounding, inside objects too."""
    match value:
        case dict():
            return {key: near(each) for key, each in value.items()}
        case float():
            return pytest.approx(value, rel=1e-12, abs=1e-15)
        case _:
            return value


@pytest.mark.parametrize("name", FAST)
async def test_the_same_rows_without_multiplying(ask: Ask, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    body = asked(FAST[name])
    assert not multiplied(body)
    found = await ask(body)
    monkeypatch.setattr(unrolled, "MOST_COLUMNS", 0)
    assert multiplied(body)
    wanted = await ask(body)
    assert found == [near(row) for row in wanted]
    assert [list(row) for row in found] == [list(row) for row in wanted]
    assert found or name == "nobody"
    assert [[type(value) for value in row.values()] for row in found] == [
        [type(value) for value in row.values()] for row in wanted
    ]


@pytest.mark.parametrize("name", FAST)
async def test_pages_of_groups(ask: Ask, name: str) -> None:
    body = asked(FAST[name])
    every = await ask(body)
    pages = [row for page in range(1, len(every) // 7 + 2) for row in await ask(body, page=page, page_size=7)]
    assert pages == every


@pytest.mark.parametrize("name", SLOW)
async def test_what_needs_a_row_for_each_score(ask: Ask, name: str) -> None:
    body = asked(SLOW[name])
    assert multiplied(body)
    assert await ask(body) or name == "no such class"


async def test_a_subquery_of_groups(ask: Ask) -> None:
    inner = asked({"select": [*CELLS, call("avgAbs", "size", property="explainer_score")], "group_by": CELLS})
    largest = {"select": [ATTRIBUTE, call("max", property="size")], "subquery": inner, "group_by": [ATTRIBUTE]}
    assert not multiplied(largest)
    found = {row["explainer_attribute"]: row["max"] for row in await ask(largest)}
    rows = await ask(inner)
    for name, size in found.items():
        assert size == max(row["size"] for row in rows if row["explainer_attribute"] == name)
