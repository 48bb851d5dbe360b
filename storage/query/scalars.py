"""Row functions: one value from the values of one row. Null in, null out, unless said otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ARRAY, JSON, Double, Text, bindparam, case, extract, func, literal, null, select
from sqlalchemy import cast as sql_cast

from storage.errors import InvalidQuery
from storage.query.body import Place
from storage.query.comparators import TYPES, coerced
from storage.query.lists import entries
from storage.query.typed import Kind, Sql, Typed, common_kind, constant, flag, number, ratio, whole

INTERVALS = ("second", "minute", "hour", "day", "month", "year")
SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400, "week": 604_800}
MONTHS = {"month": 1, "quarter": 3, "year": 12}


def round_timestamp(property: Typed, time_interval: str) -> Typed:
    return Typed(func.date_trunc(time_interval, property.sql, "UTC"), "timestamp")


def add(left: Typed, right: Typed) -> Typed:
    return number(left.sql + right.sql, _closed(left, right))


def subtract(left: Typed, right: Typed) -> Typed:
    return number(left.sql - right.sql, _closed(left, right))


def multiply(left: Typed, right: Typed) -> Typed:
    return number(left.sql * right.sql, _closed(left, right))


def divide(left: Typed, right: Typed) -> Typed:
    """Null where the divisor is 0."""
    return number(ratio(left.sql, right.sql))


def abs_(property: Typed) -> Typed:
    return number(func.abs(property.sql, type_=Double()), _closed(property))


def equals(left: Typed, right: Typed) -> Typed:
    """1 or 0; a null equals nothing."""
    left, right = _alike(left, right)
    if common_kind(left, right) is None:
        raise InvalidQuery(f"'equals' compares a {left.word} with a {right.word}")
    return flag(left.sql == right.sql)


def and_(left: Typed, right: Typed) -> Typed:
    """1 where both are other than 0 and null."""
    return flag((left.sql != 0.0) & (right.sql != 0.0))


def or_(left: Typed, right: Typed) -> Typed:
    return flag((left.sql != 0.0) | (right.sql != 0.0))


def if_(property: Typed, matching: Sql, then: Typed, else_: Typed) -> Typed:
    """`else` where the property is null."""
    kind = common_kind(then, else_)
    if kind is None:
        raise InvalidQuery(f"'then' is a {then.word} and 'else' a {else_.word}: they must be of one kind")
    return Typed(case((matching, then.sql), else_=else_.sql), kind)


def bin_continuous(property: Typed, bin_thresholds: tuple[float, ...]) -> Typed:
    """1 below the first threshold; on a threshold, the bin above it."""
    thresholds = bindparam(None, list(bin_thresholds), ARRAY(Double))
    return whole(func.width_bucket(property.sql, thresholds) + 1)


def label_by_max_column(properties: Sequence[tuple[str, Typed]]) -> Typed:
    """The name of the largest, the first of several; nulls are passed over."""
    largest = func.greatest(*(value.sql for _, value in properties))
    branches = [(value.sql == largest, literal(name, Text)) for name, value in properties]
    return Typed(case(*branches, else_=null()), "text")


def date_diff(unit: str, start_date: Typed, end_date: Typed) -> Typed:
    """Whole units from start to end, toward zero; months as the calendar has them, in UTC."""
    if unit in SECONDS:
        seconds: Sql = extract("epoch", end_date.sql - start_date.sql)
        return whole(func.trunc(seconds / SECONDS[unit]))
    age = func.age(func.timezone("UTC", end_date.sql), func.timezone("UTC", start_date.sql))
    months = extract("year", age) * 12 + extract("month", age)
    return whole(func.trunc(sql_cast(months, Double) / float(MONTHS[unit])))


def neighbor(property: Typed, offset: int, default: Any, order: Sequence[Sql]) -> Typed:
    """The value `offset` rows further in the order of the query, `default` where there is no such row."""
    given = null() if default is None else literal(coerced(property, Place(default)), TYPES[property.kind])
    moved = func.lead(property.sql, offset, sql_cast(given, TYPES[property.kind])).over(order_by=list(order))
    return Typed(moved, property.kind, window=True)


def array_slice(property: Typed, start: int, length: int) -> Typed:
    """Empty where the value is no list."""
    each = entries(property.sql)
    inside = (each.c.place >= start) & (each.c.place < start + length)
    chosen = select(func.json_agg(each.c.entry, type_=JSON)).select_from(each).where(inside).scalar_subquery()
    empty = func.coalesce(chosen, sql_cast(literal("[]", Text), JSON))
    return Typed(case((property.sql.is_not(None), empty), else_=null()), "json")


def bias_mitigated_predictions(predicted_property: Typed, thresholds: Sequence[tuple[Sql, float]]) -> Typed:
    """1 or 0 by the threshold of the first group that a row is in; null where it is in none, or the prediction is."""
    prediction = predicted_property.sql
    branches = [(inside, flag(prediction >= literal(float(least), Double)).sql) for inside, least in thresholds]
    return number(case((prediction.is_(None), null()), *branches, else_=null()), "integer")


def _closed(*values: Typed) -> Kind:
    return "number" if any(value.kind == "number" for value in values) else "integer"


def _alike(left: Typed, right: Typed) -> tuple[Typed, Typed]:
    """A number of the request beside a text is text, as in filters."""
    return _as_text(left, right), _as_text(right, left)


def _as_text(value: Typed, other: Typed) -> Typed:
    known = value.constant is not None and other.kind in {"text", "id"}
    value = constant(repr(value.constant)) if known and not isinstance(value.constant, str) else value
    return Typed(sql_cast(value.sql, Text), "text", value.plain) if value.kind == "id" else value
