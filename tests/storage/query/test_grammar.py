"""Mistakes are named with their place, and with the name that was probably meant."""

from __future__ import annotations

from typing import Any

import pytest

from storage.errors import InvalidQuery
from storage.query.compiler import compile_query
from storage.query.functions import FUNCTIONS
from storage.query.grammar import parse
from storage.query.signature import Operand, Operands
from tests.storage.query.bodies import COUNT, INCOME, call, eq, select, where
from tests.storage.query.rows import tabular

MISTAKES: list[tuple[Any, str, str]] = [
    # the shape of a query
    ([], "", "must be a JSON object"),
    ({}, "", "'select' is missing"),
    (select(), "/select", "'select' is empty"),
    ({"select": "income"}, "/select", "must be a list"),
    (select("income"), "/select/0", "must be a JSON object"),
    (select(INCOME, rollup="day"), "/rollup", "unknown member 'rollup'"),
    (select(INCOME, form="enriched"), "/form", "did you mean 'from'"),
    (select(INCOME, **{"from": "inferences"}), "/from", "did you mean 'inference'"),
    (select(INCOME, filter=[], where=[]), "/where", "another name of 'filter'"),
    (select(INCOME, limit=-1), "/limit", "from 0"),
    (select(INCOME, limit="5"), "/limit", "whole number"),
    (select(INCOME, limit=True), "/limit", "whole number"),
    (select(INCOME, offset=1.5), "/offset", "whole number"),
    (select(INCOME, limit=2**70), "/limit", "whole number"),
    (select({}), "/select/0", "either a property or a function"),
    (select(INCOME | COUNT), "/select/0", "either a property or a function"),
    (select(INCOME | {"alias": ""}), "/select/0/alias", "must be a name"),
    (select({"property": "*", "alias": "all"}), "/select/0/alias", "no alias"),
    (select(INCOME, INCOME), "/select/1", "two entries are called 'income'"),
    (select({"property": "*"}, INCOME), "/select/1", "two entries are called 'income'"),
    # names
    (select({"property": "incom"}), "/select/0/property", "unknown property 'incom'; did you mean 'income'?"),
    (select({"property": "Income"}), "/select/0/property", "did you mean 'income'?"),
    (select({"property": "explainer_score"}), "/select/0/property", "unknown property 'explainer_score'"),
    (select(call("average", property="income")), "/select/0/function", "unknown function 'average'"),
    (select(call("AVG", property="income")), "/select/0/function", "did you mean 'avg'"),
    (select(call("avg", proprty="income")), "/select/0/parameters/proprty", "did you mean 'property'"),
    (select(call("avg")), "/select/0/parameters", "'property' is missing"),
    (select({"function": "avg"}), "/select/0/function", "'property' is missing"),
    (select(call("avg", property="incme")), "/select/0/parameters/property", "did you mean 'income'"),
    (select(INCOME, order_by=[{"property": "incom"}]), "/order_by/0/property", "did you mean 'income'"),
    (select(INCOME, order_by=[INCOME | {"direction": "down"}]), "/order_by/0/direction", "unknown direction 'down'"),
    (select(INCOME, order_by=[{"alias": "x"}]), "/order_by/0/alias", "unknown alias 'x'"),
    (select(COUNT, group_by=[{"property": "cty"}]), "/group_by/0/property", "did you mean 'city'"),
    (where(property="income", comparator="equals", value=1), "/filter/0/comparator", "unknown comparator 'equals'"),
    (where(property="incom", comparator="eq", value=1), "/filter/0/property", "did you mean 'income'"),
    (where(alias="x", comparator="eq", value=1), "/filter/0/alias", "unknown alias 'x'"),
    # values
    (where(property="income", comparator="eq"), "/filter/0", "'value' is missing"),
    (where(property="income", value=1), "/filter/0", "'comparator' is missing"),
    (where(property="income", alias="x", comparator="eq", value=1), "/filter/0", "either a property or an alias"),
    (where(property="income", comparator="IsNull", value=3), "/filter/0/value", "takes no value"),
    (where(property="income", comparator="in", value=3), "/filter/0/value", "must be a list"),
    (where(property="income", comparator="in", value=[1, "x"]), "/filter/0/value/1", "must be a number"),
    (where(property="income", comparator="gt", value="lots"), "/filter/0/value", "must be a number"),
    (where(property="city", comparator="gt", value="a"), "/filter/0/value", "neither a number nor a timestamp"),
    (where(property="income", comparator="like", value="1%"), "/filter/0/value", "'like' compares text"),
    (where(property="since", comparator="gt", value="soon"), "/filter/0/value", "must be an ISO 8601 timestamp"),
    (where(property="tags", comparator="eq", value="x"), "/filter/0/value", "not compared"),
    (eq(None), "/filter/0/value", "null equals nothing"),
    (eq([1]), "/filter/0/value", "single value"),
    (eq(True), "/filter/0/value", "must be a number"),
    (eq(float("nan")), "/filter/0/value", "double"),
    (eq(10**400), "/filter/0/value", "double"),
    (eq("nan"), "/filter/0/value", "must be a number"),
    (eq("1_0"), "/filter/0/value", "must be a number"),
    (eq("2", "member"), "/filter/0/value", "true, false, 1 or 0"),
    (eq("a\0b", "city"), "/filter/0/value", "NUL"),
    (eq("\ud800", "city"), "/filter/0/value", "surrogate"),
    # functions
    (select(call("avg", property="city")), "/select/0/parameters/property", "'avg' takes no text"),
    (select(call("avg", property=True)), "/select/0/parameters/property", "must be a property, a number"),
    (select(call("avg", property="inference_timestamp")), "/select/0/parameters/property", "takes no timestamp"),
    (select(call("quantile", property="age", level=2)), "/select/0/parameters/level", "0..1"),
    (select(call("distribution", property="age")), "/select/0/parameters", "num_bins and bin_thresholds"),
    (
        select(call("distribution", property="age", bin_thresholds=[1], num_bins=3)),
        "/select/0/parameters/bin_thresholds",
        "stands beside num_bins",
    ),
    (select(call("distribution", property=1, num_bins=3)), "/select/0/parameters", "not the same value for all"),
    (
        select(call("distribution", property=1, bin_thresholds=[1.0])),
        "/select/0/parameters",
        "not the same value for all",
    ),
    (
        select(call("auc", predicted_property=1, ground_truth_property=0)),
        "/select/0/parameters",
        "not the same value for all",
    ),
    (select(call("distribution", property="age", num_bins=0)), "/select/0/parameters/num_bins", "from 1"),
    (
        select(call("binContinuous", property="age", bin_thresholds=[2, 2])),
        "/select/0/parameters/bin_thresholds",
        "ascending",
    ),
    (
        select(call("roundTimestamp", property="inference_timestamp", time_interval="days")),
        "/select/0/parameters/time_interval",
        "did you mean 'day'",
    ),
    (
        select(call("if", property="age", comparator="in", value=[1], then=1, **{"else": 2})),
        "/select/0/parameters/comparator",
        "unknown comparator 'in'",
    ),
    (
        select(call("if", property="age", comparator="gt", value=1, then=1, **{"else": "x"})),
        "/select/0/parameters",
        "must be of one kind",
    ),
    (select(call("equals", left="age", right="city")), "/select/0/parameters", "compares a integer with a text"),
    (select(call("labelByMaxColumn", properties=[1])), "/select/0/parameters/properties/0", "must be a property"),
    (select(call("labelByMaxColumn", properties=[])), "/select/0/parameters/properties", "not be empty"),
    (select(call("neighbor", property="age", offset=1, default="x")), "/select/0/parameters", "must be a number"),
    (select(call("rmse")), "/select/0/parameters", "'predicted_property' is missing"),
    (select(call("rmse", predicted_property="income")), "/select/0/parameters", "has no ground truth"),
    (select(call("mae", predicted_property="a", normalizationMin=1)), "/select/0/parameters", "go together"),
    (
        select(call("confusionMatrixMulticlass", predicted_property="age", ground_truth_property="gt_a")),
        "/select/0/parameters",
        "must be a predicted attribute",
    ),
    # references
    (select(call("add", left={"alias_ref": "x"}, right=1)), "/select/0/parameters/left/alias_ref", "unknown alias"),
    (
        select(call("add", left={"alias_ref": "x", "nested_function": COUNT}, right=1)),
        "/select/0/parameters/left",
        "either alias_ref or nested_function",
    ),
    (select(call("add", left={}, right=1)), "/select/0/parameters/left", "either alias_ref or nested_function"),
    (
        select(call("add", left={"nested_function": INCOME}, right=1)),
        "/select/0/parameters/left/nested_function",
        "must be a function",
    ),
    (
        select(call("abs", "x", property={"alias_ref": "y"}), call("abs", "y", property={"alias_ref": "x"})),
        "/select/1/parameters/property/alias_ref",
        "refers to itself",
    ),
    # aggregates
    (select(COUNT, INCOME), "/select/1", "'income' stands beside an aggregate"),
    (select(INCOME, COUNT, group_by=[{"property": "city"}]), "/select/0", "group by it"),
    (select(COUNT, subquery=select(COUNT, INCOME)), "/subquery/select/1", "stands beside an aggregate"),
    (select(COUNT, order_by=[INCOME]), "/order_by/0/property", "stands beside an aggregate"),
    (select({"property": "*"}, group_by=[INCOME]), "/select/0", "stands beside an aggregate"),
    (
        select(call("add", left={"nested_function": COUNT}, right="income")),
        "/select/0/parameters",
        "stands beside an aggregate",
    ),
    (select(call("sum", property={"nested_function": COUNT})), "/select/0/parameters", "not other aggregates"),
    (select(COUNT, group_by=[{"alias": "count"}]), "/group_by/0/alias", "computed from them"),
    (
        select(call("neighbor", "n", property="age", offset=1), group_by=[{"alias": "n"}]),
        "/group_by/0/alias",
        "computed from them",
    ),
    (
        select(call("sum", property={"nested_function": call("neighbor", property="age", offset=1)})),
        "/select/0/parameters",
        "neighbours",
    ),
    (select(call("regionalFeatureImportances", predicted_attribute_name="a"), COUNT), "", "stands alone"),
    (
        select(call("regionalFeatureImportance", attribute_name="agee", predicted_attribute_name="a")),
        "/select/0/parameters/attribute_name",
        "did you mean 'age'",
    ),
    (select({"property": "x"}, subquery=select(COUNT)), "/select/0/property", "unknown property 'x'"),
    (select(call("nlp_explanation"), subquery=select(COUNT)), "/select/0/parameters", "subquery"),
]


@pytest.mark.parametrize(("body", "pointer", "message"), MISTAKES)
def test_mistakes_are_named_with_their_place(body: Any, pointer: str, message: str) -> None:
    with pytest.raises(InvalidQuery) as caught:
        compile_query(parse(body), tabular().model)
    assert message in str(caught.value)
    found = caught.value.pointer
    assert found == pointer or (found == "/select/0/function" and pointer == "/select/0/parameters")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_parameter_is_asked_for_and_no_other(name: str) -> None:
    function = FUNCTIONS[name]
    with pytest.raises(InvalidQuery, match="unknown member"):
        parse(select(call(name, nonsense=1)))
    needed = [
        key
        for key, each in function.parameters.items()
        if each.required and not (isinstance(each, Operand) and each.default)
    ]
    if needed or function.comparators:
        with pytest.raises(InvalidQuery, match=r"is missing|needs one of"):
            parse(select({"function": name}))
    for key, each in function.parameters.items():
        wrong = [1] if isinstance(each, Operand) else {"a": 1}
        if not isinstance(each, Operands):
            others = {other: "income" for other in needed if isinstance(function.parameters[other], Operand)}
            with pytest.raises(InvalidQuery):
                parse(select(call(name, **{**others, key: wrong})))
