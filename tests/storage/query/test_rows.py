"""Rows, filters, groups, order, pages and subqueries beside pandas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from sqlalchemy import func, select

from storage.database import Database
from storage.errors import InvalidQuery
from storage.query.answers import run
from storage.query.compiler import Compiled
from storage.query.typed import iso
from tests.storage.query.conftest import Ask
from tests.storage.query.rows import Rows, given

ID = {"property": "partner_inference_id"}
SYSTEM = ["inference_id", "partner_inference_id", "inference_timestamp", "received_timestamp", "ground_truth_timestamp"]


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["partner_inference_id"] for row in rows]


async def test_everything_is_typed(ask: Ask, rows: Rows) -> None:
    found = await ask({"select": [{"property": "*"}]})
    assert list(found[0]) == [each.name for each in rows.model.attributes] + [*SYSTEM, "batch_id"]
    for row, wanted in zip(found, rows.frame.to_dict("records"), strict=True):
        assert row["inference_timestamp"] == iso(wanted["inference_timestamp"].to_pydatetime())
        assert row["age"] == given(wanted["age"]) and not isinstance(row["age"], float)
        assert row["member"] == given(wanted["member"]) and type(row["member"]) in (bool, type(None))
        assert (row["income"], row["city"]) == (given(wanted["income"]), given(wanted["city"]))
        assert isinstance(row["tags"], list | None)


async def test_reference_has_attributes_only(ask: Ask, rows: Rows) -> None:
    found = await ask({"select": [{"property": "*"}], "from": "reference"})
    assert [row["income"] for row in found] == [given(each) for each in rows.reference["income"]]
    assert list(found[0]) == [each.name for each in rows.model.attributes]
    with pytest.raises(InvalidQuery, match="unknown property 'batch_id'"):
        await ask({"select": [{"property": "batch_id"}], "from": "reference"})


async def test_ground_truth_is_what_has_one(ask: Ask, rows: Rows) -> None:
    count = {"select": [{"function": "count"}]}
    assert await ask(count | {"from": "ground_truth"}) == [{"count": int(rows.frame["klass"].notna().sum())}]
    assert await ask(count | {"from": "enriched"}) == await ask(count) == [{"count": len(rows.frame)}]


async def test_other_tenants_and_models_have_nothing(ask: Ask, rows: Rows) -> None:
    body = {"select": [{"function": "count"}]}
    assert await ask(body, tenant="other") == [{"count": 0}]


CASES: list[tuple[dict[str, Any], Callable[[pd.Series], Any]]] = [
    ({"property": "age", "comparator": "eq", "value": 30}, lambda r: r.age == 30),
    ({"property": "age", "comparator": "eq", "value": " 30.0 "}, lambda r: r.age == 30),
    ({"property": "age", "comparator": "ne", "value": 30}, lambda r: r.age is not None and r.age != 30),
    ({"property": "income", "comparator": "lt", "value": "1.5e3"}, lambda r: r.income is not None and r.income < 1500),
    ({"property": "income", "comparator": "gte", "value": 2000}, lambda r: r.income is not None and r.income >= 2000),
    ({"property": "member", "comparator": "eq", "value": True}, lambda r: r.member is True),
    ({"property": "member", "comparator": "eq", "value": 0}, lambda r: r.member is False),
    ({"property": "member", "comparator": "ne", "value": "1"}, lambda r: r.member is False),
    ({"property": "age", "comparator": "in", "value": [20, "21"]}, lambda r: r.age in {20, 21}),
    ({"property": "age", "comparator": "in", "value": [20, None]}, lambda r: r.age in {20, None}),
    ({"property": "age", "comparator": "in", "value": []}, lambda r: False),
    ({"property": "city", "comparator": "eq", "value": "oslo"}, lambda r: r.city == "oslo"),
    ({"property": "city", "comparator": "like", "value": "%slo"}, lambda r: r.city in {"Oslo", "oslo"}),
    ({"property": "city", "comparator": "like", "value": "O___"}, lambda r: r.city == "Oslo"),
    ({"property": "city", "comparator": "like", "value": "a\\"}, lambda r: False),
    ({"property": "city", "comparator": "like", "value": "100\\%"}, lambda r: False),
    ({"property": "city", "comparator": "IsNull"}, lambda r: r.city is None),
    ({"property": "city", "comparator": "NotNull", "value": ""}, lambda r: r.city is not None),
    (
        {"property": "since", "comparator": "gt", "value": "1990-01-01"},
        lambda r: r.since is not None and r.since >= pd.Timestamp("1990-01-01", tz="UTC"),
    ),
    (
        {"property": "inference_timestamp", "comparator": "lte", "value": "2026-02-20T12:00:00+02:00"},
        lambda r: r.inference_timestamp <= pd.Timestamp("2026-02-20T10:00:00Z"),
    ),
    (
        {"property": "inference_id", "comparator": "eq", "value": "00000000-0000-0000-0000-0000000003e9"},
        lambda r: r.partner_inference_id == "u-1",
    ),
    ({"property": "inference_id", "comparator": "eq", "value": "no uuid"}, lambda r: False),
    (
        {"property": "inference_id", "comparator": "in", "value": ["x", "00000000-0000-0000-0000-0000000003e9"]},
        lambda r: r.partner_inference_id == "u-1",
    ),
    ({"property": "inference_id", "comparator": "like", "value": "%3e9"}, lambda r: r.partner_inference_id == "u-1"),
    ({"property": "tags", "comparator": "NotNull"}, lambda r: r.tags is not None),
]


@pytest.mark.parametrize(("condition", "holds"), CASES)
async def test_filters(ask: Ask, rows: Rows, condition: dict[str, Any], holds: Callable[[pd.Series], bool]) -> None:
    records = [
        pd.Series({key: given(value) for key, value in row.items()}, dtype=object)
        for row in rows.frame.to_dict("records")
    ]
    wanted = [record.partner_inference_id for record in records if holds(record)]
    for name in ("filter", "where"):
        assert ids(await ask({"select": [ID], name: [condition]})) == wanted


async def test_texts_are_ordered_by_code_point_and_nulls_come_last(ask: Ask, rows: Rows) -> None:
    pairs = [(given(city), name) for city, name in zip(rows.frame["city"], rows.frame[ID["property"]], strict=True)]
    for direction, reverse in (("asc", False), ("desc", True)):
        present = sorted((p for p in pairs if p[0] is not None), key=lambda p: p[0], reverse=reverse)
        body = {"select": [ID], "order_by": [{"property": "city", "direction": direction}]}
        assert ids(await ask(body)) == [name for _, name in present] + [name for city, name in pairs if city is None]


async def test_pages_are_steady(ask: Ask) -> None:
    body = {"select": [ID], "order_by": [{"property": "age"}], "offset": 3, "limit": 100}
    whole = ids(await ask(body))
    paged = [await ask(body, page=number, page_size=7) for number in range(1, 17)]
    assert [name for page in paged for name in ids(page)] == whole and len(whole) == 100
    assert len(paged[14]) == 2 and paged[15] == []
    assert len(await ask({"select": [ID]}, page=1)) == 100 and len(await ask({"select": [ID]}, page_size=2)) == 2
    assert await ask(body, page=2**40, page_size=2**40) == [] and await ask(body | {"limit": 0}) == []
    with pytest.raises(InvalidQuery):
        await ask(body, page=0)


async def test_groups_come_in_order_of_their_first_row(ask: Ask, rows: Rows) -> None:
    body = {"select": [{"property": "city"}, {"function": "count"}], "group_by": [{"property": "city"}]}
    found = await ask(body)
    seen = list(dict.fromkeys(given(city) for city in rows.frame["city"]))
    assert [row["city"] for row in found] == seen
    assert sum(row["count"] for row in found) == len(rows.frame)


async def test_groups_by_a_computed_column_with_conditions_on_them(ask: Ask, rows: Rows) -> None:
    day = {
        "function": "roundTimestamp",
        "alias": "day",
        "parameters": {"property": "inference_timestamp", "time_interval": "day"},
    }
    body = {
        "select": [
            {
                "function": "divide",
                "alias": "share",
                "parameters": {"left": {"alias_ref": "rich"}, "right": {"alias_ref": "n"}},
            },
            day,
            {"function": "count", "alias": "n"},
            {
                "function": "countIf",
                "alias": "rich",
                "parameters": {"property": "income", "comparator": "gt", "value": 2000},
            },
        ],
        "group_by": [{"alias": "day"}],
        "filter": [{"alias": "n", "comparator": "gte", "value": 28}, {"property": "age", "comparator": "NotNull"}],
        "order_by": [{"alias": "day", "direction": "desc"}],
    }
    found = await ask(body)
    frame = rows.frame[rows.frame["age"].notna()]
    days = frame.groupby(frame["inference_timestamp"].dt.floor("D"))
    wanted = [(iso(day.to_pydatetime()), len(part), (part["income"].astype(float) > 2000).sum()) for day, part in days]
    wanted = [each for each in reversed(wanted) if each[1] >= 28]
    assert wanted and [(row["day"], row["n"], row["rich"]) for row in found] == wanted
    assert [row["share"] for row in found] == [rich / n for _, n, rich in wanted]
    assert list(found[0]) == ["share", "day", "n", "rich"]


async def test_subqueries(ask: Ask, rows: Rows) -> None:
    inner = {
        "select": [{"property": "city"}, {"function": "avg", "alias": "mean", "parameters": {"property": "income"}}],
        "group_by": [{"property": "city"}],
    }
    means = rows.frame.assign(income=rows.frame["income"].astype(float)).groupby("city", dropna=False)["income"].mean()
    body = {
        "select": [{"function": "max", "parameters": {"property": "mean"}, "alias": "top"}, {"function": "count"}],
        "subquery": inner,
        "filter": [{"property": "city", "comparator": "NotNull"}],
    }
    (found,) = await ask(body)
    assert found == {"top": pytest.approx(means[means.index.notna()].max()), "count": 6}
    plain = {"select": [ID, {"property": "age"}], "order_by": [{"property": "age", "direction": "desc"}], "limit": 5}
    assert await ask({"select": [{"property": "*"}], "subquery": plain}) == await ask(plain)
    both = {"select": [{"property": "age", "alias": "x"}], "subquery": plain, "order_by": [{"alias": "x"}], "offset": 4}
    assert await ask(both) == [{"x": max(a for a in rows.frame["age"] if given(a) is not None)}]
    referring = {
        "select": [{"function": "add", "parameters": {"left": {"alias_ref": "mean"}, "right": 0}}],
        "subquery": inner,
        "filter": [{"alias": "mean", "comparator": "lt", "value": -1}],
    }
    assert await ask(referring) == []


async def test_the_neighbour_is_next_in_the_order_of_the_query(ask: Ask) -> None:
    neighbor = {"function": "neighbor", "parameters": {"property": "income", "offset": 1}, "alias": "next"}
    body = {"select": [{"property": "income"}, neighbor], "order_by": [{"property": "income", "direction": "desc"}]}
    found = await ask(body)
    assert [row["next"] for row in found] == [row["income"] for row in found[1:]] + [None]
    kept = await ask(body | {"filter": [{"alias": "next", "comparator": "gt", "value": 2000}]})
    assert kept == [row for row in found if row["next"] is not None and row["next"] > 2000]


async def test_a_computed_column_filters_and_orders_rows(ask: Ask, rows: Rows) -> None:
    either = {
        "function": "or",
        "alias": "either",
        "parameters": {
            "left": {"nested_function": {"function": "equals", "parameters": {"left": "age", "right": 20}}},
            "right": {"alias_ref": "is_21"},
        },
    }
    equals = {"function": "equals", "alias": "is_21", "parameters": {"left": "age", "right": 21}}
    body = {
        "select": [ID, either, equals],
        "filter": [{"alias": "either", "comparator": "eq", "value": 1}],
        "order_by": [{"alias": "is_21", "direction": "desc"}],
    }
    found = await ask(body)
    ages = dict(zip(rows.frame["partner_inference_id"], rows.frame["age"], strict=True))
    wanted = [name for name in ages if ages[name] == 21] + [name for name in ages if ages[name] == 20]
    assert ids(found) == wanted


async def test_too_many_rows_and_too_much_time(ask: Ask, store: Database) -> None:
    with pytest.raises(InvalidQuery, match="more than 299 rows"):
        await ask({"select": [ID]}, most_rows=299)
    assert len(await ask({"select": [ID]}, most_rows=300)) == 300
    assert len(await ask({"select": [ID], "limit": 299}, most_rows=299)) == 299
    slow = Compiled(select(func.pg_sleep(5)), ("x",), (str,), None, 0)
    with pytest.raises(InvalidQuery, match=r"longer than 0\.05 s"):
        async with store.transaction("t") as session:
            await run(session, slow, timeout_s=0.05)
    assert len(await ask({"select": [ID]})) == 300  # the connection is sound, and the limit gone with its transaction
