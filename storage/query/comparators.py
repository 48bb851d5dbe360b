"""Comparisons of a column with a value of the request. A null matches none but `IsNull`, and `in` with a null in it.

A comparator is one function and one line in COMPARATORS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import ARRAY, DateTime, Double, Text, Uuid, any_, bindparam, false, literal, or_
from sqlalchemy import cast as sql_cast
from sqlalchemy.types import TypeEngine

from storage.errors import InvalidQuery
from storage.query.ast import Test
from storage.query.body import MOST_VALUES, Place
from storage.query.typed import TIMES, Kind, Sql, Typed, read_moment

Compare: TypeAlias = Callable[[Typed, Place], Sql]

TYPES: Mapping[Kind, TypeEngine[Any]] = {
    "boolean": Double(),
    "integer": Double(),
    "number": Double(),
    "text": Text(),
    "timestamp": DateTime(timezone=True),
    "id": Uuid(),
}
TRUTH_VALUES = {True: 1.0, False: 0.0, "true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0}
"""1 and 1.0 equal True as keys, and so do 0 and 0.0."""
NO_ID = UUID(int=0)
"""What cannot be an id is not found, which is no error."""


def matches(column: Typed, test: Test) -> Sql:
    """Where the comparison holds; unknown or false elsewhere. Raises InvalidQuery for a value of the wrong kind."""
    return COMPARATORS[test.comparator].compare(column, Place(test.value, test.pointer))


def _eq(column: Typed, place: Place) -> Sql:
    return column.sql == _bound(column, place)


def _ne(column: Typed, place: Place) -> Sql:
    return column.sql != _bound(column, place)


def _lt(column: Typed, place: Place) -> Sql:
    return _measured(column, place).sql < _bound(column, place)


def _gt(column: Typed, place: Place) -> Sql:
    return _measured(column, place).sql > _bound(column, place)


def _lte(column: Typed, place: Place) -> Sql:
    return _measured(column, place).sql <= _bound(column, place)


def _gte(column: Typed, place: Place) -> Sql:
    return _measured(column, place).sql >= _bound(column, place)


def _in(column: Typed, place: Place) -> Sql:
    values = list(place.entries(MOST_VALUES))
    present = [coerced(column, each) for each in values if each.value is not None]
    among = column.sql == any_(bindparam(None, present, ARRAY(_type(column, place)))) if present else false()
    return or_(among, column.sql.is_(None)) if len(present) < len(values) else among


def _like(column: Typed, place: Place) -> Sql:
    if column.kind not in {"text", "id"}:
        raise InvalidQuery(f"'like' compares text, not a {column.word}", place.pointer)
    # Without an escape character a backslash is itself, and no pattern is malformed.
    return sql_cast(column.sql, Text).like(literal(place.text(), Text), escape="")


def _is_null(column: Typed, place: Place) -> Sql:
    _no_value(place)
    return column.sql.is_(None)


def _not_null(column: Typed, place: Place) -> Sql:
    _no_value(place)
    return column.sql.is_not(None)


def _no_value(place: Place) -> None:
    if place.value not in (None, ""):
        raise InvalidQuery("takes no value", place.pointer)


def _measured(column: Typed, place: Place) -> Typed:
    """Moments and numbers have a less and a more."""
    if column.kind not in TIMES | {"integer", "number"}:
        raise InvalidQuery(f"a {column.word} is neither a number nor a timestamp", place.pointer)
    return column


def _bound(column: Typed, place: Place) -> Sql:
    return literal(coerced(column, place), _type(column, place))


def _type(column: Typed, place: Place) -> TypeEngine[Any]:
    if column.kind not in TYPES:
        raise InvalidQuery(f"a {column.word} is not compared with values", place.pointer)
    return TYPES[column.kind]


def coerced(column: Typed, place: Place) -> Any:
    """A value of the request as one of the column's kind: numeric strings are numbers, and numbers strings.

    Raises InvalidQuery for other kinds, and for null, which equals nothing.
    """
    if place.value is None:
        raise InvalidQuery("null equals nothing: use IsNull or NotNull", place.pointer)
    if isinstance(place.value, list | dict):
        raise InvalidQuery("must be a single value", place.pointer)
    _type(column, place)
    return COERCIONS[column.kind](place)


def _text(place: Place) -> str:
    return place.text() if isinstance(place.value, str) else repr(place.number())


def as_number(place: Place) -> float:
    if not isinstance(place.value, str):
        return float(place.number())
    try:
        return float(Place(float(place.text().replace("_", "x")), place.pointer).number())
    except ValueError:
        raise InvalidQuery("must be a number", place.pointer) from None


def _truth(place: Place) -> float:
    value = place.scalar()
    if value not in TRUTH_VALUES:
        raise InvalidQuery("must be true, false, 1 or 0", place.pointer)
    return TRUTH_VALUES[value]


def _moment(place: Place) -> Any:
    moment = read_moment(place.text())
    if moment is None:
        raise InvalidQuery("must be an ISO 8601 timestamp", place.pointer)
    return moment


def _id(place: Place) -> UUID:
    try:
        return UUID(_text(place))
    except ValueError:
        return NO_ID


COERCIONS: Mapping[Kind, Callable[[Place], Any]] = {
    "boolean": _truth,
    "integer": as_number,
    "number": as_number,
    "text": _text,
    "timestamp": _moment,
    "id": _id,
}


@dataclass(frozen=True, slots=True)
class Comparator:
    compare: Compare
    takes_value: bool = True


COMPARATORS: Mapping[str, Comparator] = {
    "eq": Comparator(_eq),
    "ne": Comparator(_ne),
    "lt": Comparator(_lt),
    "gt": Comparator(_gt),
    "lte": Comparator(_lte),
    "gte": Comparator(_gte),
    "in": Comparator(_in),
    "like": Comparator(_like),
    "NotNull": Comparator(_not_null, takes_value=False),
    "IsNull": Comparator(_is_null, takes_value=False),
}
