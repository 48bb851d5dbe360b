"""SQL expressions that know what they hold, and how their values look in an answer.

Booleans and integers are stored as double precision, so all three kinds of number share one SQL type: arithmetic needs
no casts, and an integer is told by its kind alone. Moments are `timestamptz`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias, cast

from sqlalchemy import ColumnClause, ColumnElement, Double, Text, case, func, literal, null, type_coerce
from sqlalchemy import cast as sql_cast
from sqlalchemy.sql.visitors import iterate

from storage.errors import InvalidQuery

Kind: TypeAlias = Literal["boolean", "integer", "number", "text", "timestamp", "id", "list", "json", "null"]
Shape: TypeAlias = Callable[[Any], Any]
Sql: TypeAlias = ColumnElement[Any]

NUMERIC: frozenset[Kind] = frozenset(("boolean", "integer", "number", "null"))
TIMES: frozenset[Kind] = frozenset(("timestamp", "null"))
ORDERED: frozenset[Kind] = NUMERIC | TIMES | {"text"}
GROUPED: frozenset[Kind] = ORDERED | {"id", "list"}
LISTS: frozenset[Kind] = frozenset(("list",))
ANY: frozenset[Kind] = GROUPED | {"json"}
WORDS: dict[Kind, str] = {"id": "text", "json": "object", "null": "null"}


@dataclass(frozen=True, slots=True)
class Typed:
    """`plain` is the first property it depends on that is neither grouped nor aggregated; `weight` counts its parts.

    `constant` is the value of what the request itself gave.
    """

    sql: Sql
    kind: Kind
    plain: str | None = None
    aggregate: bool = False
    window: bool = False
    weight: int = 1
    constant: Any = None
    shape: Shape | None = None

    @property
    def word(self) -> str:
        """Its kind, for messages."""
        return WORDS.get(self.kind, self.kind)

    @property
    def sortable(self) -> Sql:
        """Texts by code point, whatever the database sorts by."""
        return self.sql.collate("C") if self.kind == "text" else self.sql

    @property
    def shaped(self) -> Shape:
        return self.shape or SHAPES[self.kind]


def check_varies(*given: Typed) -> None:
    """Raises InvalidQuery where nothing differs from row to row: Postgres then cannot tell which rows are meant."""
    parts = (part for one in given for part in iterate(one.sql))
    if not any(isinstance(part, ColumnClause) for part in parts):
        raise InvalidQuery("needs a property of the inferences, not the same value for all of them")


def number(sql: Sql, kind: Kind = "number") -> Typed:
    return Typed(sql, kind)


def whole(sql: Sql) -> Typed:
    """A count: cast, so that it divides as numbers do."""
    return Typed(sql_cast(sql, Double), "integer")


def ratio(part: Sql, of: Sql) -> Sql:
    """Null where the divisor is 0."""
    return type_coerce(part, Double) / func.nullif(of, literal(0.0, Double), type_=Double())


def flag(sql: Sql) -> Typed:
    """1 where it is true; 0 where it is false or unknown."""
    return Typed(case((sql, literal(1.0, Double)), else_=literal(0.0, Double)), "integer")


def constant(value: str | float | int | bool | None) -> Typed:
    """A value of the request, bound."""
    match value:
        case None:
            return Typed(null(), "null")
        case str():
            return Typed(literal(value, Text), "text", constant=value)
        case bool():
            return Typed(literal(float(value), Double), "boolean", constant=value)
        case _:
            kind: Kind = "integer" if float(value).is_integer() else "number"
            return Typed(literal(float(value), Double), kind, constant=value)


def common_kind(*values: Typed) -> Kind | None:
    """The kind that holds all of them; None where there is none."""
    kinds = {value.kind for value in values} - {"null"}
    if len(kinds) <= 1:
        return kinds.pop() if kinds else "null"
    if kinds <= NUMERIC:
        return "integer" if "number" not in kinds else "number"
    return "text" if kinds <= {"text", "id"} else None


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _integer(value: Any) -> int | float | None:
    found = _number(value)
    return int(found) if found is not None and found.is_integer() else found


def iso(moment: datetime) -> str:
    """UTC to the millisecond, as in 2026-03-01T08:00:00.000Z."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def read_moment(text: str) -> datetime | None:
    """An ISO 8601 time; without an offset it is UTC. None for anything else."""
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


SHAPES: dict[Kind, Shape] = {
    "boolean": bool,
    "integer": _integer,
    "number": _number,
    "text": lambda value: value,
    "timestamp": lambda value: iso(cast("datetime", value)),
    "id": str,
    "list": lambda value: json.loads(value) if isinstance(value, str) else value,
    "json": lambda value: value,
    "null": lambda value: value,
}
"""By kind: a value of the database, never null, as JSON has it."""
