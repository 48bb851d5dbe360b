"""Definitions and records: what follows from what is declared, and what is refused by name."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.definitions import Attribute, Definition, completed, in_places
from app.rows import READERS, Layout, read_time
from explainers.errors import InvalidRequest


def attribute(
    name: str, kind: Any = "FLOAT", stage: Any = "PIPELINE_INPUT", position: int = 0, **more: Any
) -> Attribute:
    return Attribute(name, kind, stage, position, **more)


CHURN = Definition(
    "churn-7",
    "TABULAR",
    "MULTICLASS",
    (
        attribute("income"),
        attribute("region", "STRING", position=1),
        attribute("churn_yes", stage="PREDICTED_VALUE", gt_class_link="1", positive=True),
        attribute("churn_no", stage="PREDICTED_VALUE", position=1, gt_class_link="0"),
        attribute("churned", "INTEGER", "GROUND_TRUTH_CLASS"),
        attribute("seen", "TIMESTAMP", "NON_INPUT_DATA"),
    ),
)
DATA = {"income": 2100, "region": "north", "churn_yes": 0.7, "churn_no": 0.3}


@pytest.fixture
def layout() -> Layout:
    return Layout(completed(CHURN))


def test_a_ground_truth_for_each_class() -> None:
    whole = completed(CHURN)
    assert [(a.name, a.link, a.implicit) for a in whole.of_stage("GROUND_TRUTH")] == [
        ("gt_churn_yes", "churn_yes", True),
        ("gt_churn_no", "churn_no", True),
    ]
    assert [a.link for a in whole.of_stage("PREDICTED_VALUE")] == ["gt_churn_yes", "gt_churn_no"]


def test_the_other_of_two_classes() -> None:
    one = replace(CHURN, attributes=(*CHURN.attributes[:3], attribute("not_churn_yes", "STRING", "NON_INPUT_DATA")))
    whole = completed(one)
    other = whole.of_stage("PREDICTED_VALUE")[1]
    assert (other.name, other.position, other.implicit) == ("not_churn_yes_2", 1, True)
    layout = Layout(whole)
    row = layout.inference({"income": 1, "region": "a", "churn_yes": 0.7})
    assert layout.value(row, other.name) == pytest.approx(0.3)
    assert layout.value(layout.inference({"income": 1, "region": None, "churn_yes": None}), other.name) is None


def test_a_regression_has_no_other_class() -> None:
    value = replace(CHURN, output_type="REGRESSION", attributes=CHURN.attributes[:3])
    assert len(completed(value).of_stage("PREDICTED_VALUE")) == 1


@pytest.mark.parametrize("name", ["1a", "a b", "", "a-b", "income", "explainer_score", "inference_id", "x" * 256])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        completed(replace(CHURN, attributes=(*CHURN.attributes, attribute(name))))
    assert caught.value.pointer == "/attributes/6/name"


def test_positions() -> None:
    attributes = [attribute(name) for name in "abc"] + [attribute("p", stage="PREDICTED_VALUE")]
    assert [a.position for a in in_places(attributes, [None, 0, None, None])] == [1, 0, 2, 0]
    with pytest.raises(InvalidRequest, match="position 1") as caught:
        in_places(attributes, [1, 0, 1, None])
    assert caught.value.pointer == "/attributes/2/position"


def test_a_row_and_its_truth(layout: Layout) -> None:
    row = layout.inference({**DATA, "seen": "1970-01-01T00:00:01"}, {"churned": 1})
    names = ["income", "churn_yes", "churn_no", "churned", "seen", "gt_churn_yes", "gt_churn_no"]
    assert [layout.value(row, name) for name in names] == [2100, 0.7, 0.3, 1, 1_000_000, 1, 0]
    assert row.texts == ["north"]
    assert layout.told_by(["churned"]) == {"churned", "gt_churn_yes", "gt_churn_no"}
    assert layout.told_by([]) == frozenset()


@pytest.mark.parametrize("value", [None, 0, 1])
def test_truth_alone_and_none(layout: Layout, value: int | None) -> None:
    row = layout.truth({"churned": value})
    expected = [None, None, None] if value is None else [value, value, 1 - value]
    assert [layout.value(row, name) for name in ("churned", "gt_churn_yes", "gt_churn_no")] == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"income": "2100"}, "'income' must be a finite number"),
        ({"income": True}, "'income' must be a finite number"),
        ({"income": float("inf")}, "'income' must be a finite number"),
        ({"region": 3}, "'region' must be a string"),
        ({"region": "a\0"}, "'region' must be a string without NUL"),
        ({"seen": "yesterday"}, "'seen' must be an ISO 8601 time"),
        ({"seen": 5}, "'seen' must be an ISO 8601 time"),
        ({"churned": 1}, "has not there: 'churned'"),
        ({"gt_churn_yes": 1}, "has not there: 'gt_churn_yes'"),
        ({"in\ncome": 1}, "has not there$"),
    ],
)
def test_what_is_wrong_is_named(layout: Layout, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        layout.inference(DATA | changes)


@pytest.mark.parametrize("name", ["income", "churn_no"])
def test_what_is_missing_is_named(layout: Layout, name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"lacks '{name}'"):
        layout.inference({key: value for key, value in DATA.items() if key != name})
    assert layout.value(layout.inference(DATA | {name: None}), name) is None


@pytest.mark.parametrize(("kind", "value"), [("BOOLEAN", 2), ("BOOLEAN", "x"), ("INTEGER", 1.5), ("INTEGER", 2**60)])
def test_values_of_other_kinds(kind: Any, value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        READERS[kind](value)


@given(st.sampled_from(sorted(READERS)), st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists))
def test_reading_anything_gives_a_value_or_an_error_of_values(kind: Any, value: Any) -> None:
    with suppress(TypeError, ValueError, OverflowError):
        assert isinstance(READERS[kind](value), float | str)


@given(st.datetimes(timezones=st.sampled_from([None])))
def test_times_keep_their_microseconds(moment: Any) -> None:
    assert read_time(moment.isoformat() + "+00:00") == read_time(moment.isoformat() + "Z")
