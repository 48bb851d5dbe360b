"""A query as it was asked: frozen, complete, and without SQL.

Each part knows its place in the request, a JSON pointer, for the errors that only a model's columns can show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

SourceName: TypeAlias = Literal["inference", "enriched", "reference", "ground_truth"]
EVERYTHING = "*"


@dataclass(frozen=True, slots=True)
class Property:
    """A column of the source, by name."""

    name: str
    pointer: str


@dataclass(frozen=True, slots=True)
class Number:
    value: float | int
    pointer: str


@dataclass(frozen=True, slots=True)
class AliasRef:
    """Another item of the same select, or a column of the subquery."""

    alias: str
    pointer: str


@dataclass(frozen=True, slots=True)
class Test:
    """A comparison, still without what is compared; `value` as it stands in the request."""

    comparator: str
    value: Any
    pointer: str


@dataclass(frozen=True, slots=True)
class Literally:
    """A value that means itself: a string here is no column."""

    value: str | float | int | bool | None
    pointer: str


@dataclass(frozen=True, slots=True)
class Call:
    """A function with its parameters: operands, or values that were checked when they were read."""

    function: str
    arguments: Mapping[str, Any]
    test: Test | None
    pointer: str


Operand: TypeAlias = Property | Number | AliasRef | Call | Literally


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of `select`; `key` names it in the rows of the answer."""

    expression: Property | Call
    alias: str | None
    pointer: str

    @property
    def key(self) -> str:
        if self.alias is not None:
            return self.alias
        return self.expression.name if isinstance(self.expression, Property) else self.expression.function


@dataclass(frozen=True, slots=True)
class Name:
    """What `filter`, `group_by` and `order_by` point at: a property, or an alias of the select."""

    name: str
    is_alias: bool
    pointer: str


@dataclass(frozen=True, slots=True)
class Condition:
    target: Name
    test: Test


@dataclass(frozen=True, slots=True)
class Threshold:
    """For the rows that meet all conditions."""

    conditions: tuple[Condition, ...]
    value: float
    pointer: str


@dataclass(frozen=True, slots=True)
class Order:
    target: Name
    descending: bool


@dataclass(frozen=True, slots=True)
class Query:
    """`subquery`, where given, stands in the place of the source."""

    select: tuple[Item, ...]
    source: SourceName | None  # as asked; None means inference
    subquery: Query | None
    filter: tuple[Condition, ...]
    group_by: tuple[Name, ...]
    order_by: tuple[Order, ...]
    limit: int | None
    offset: int
    pointer: str
