"""Aggregates of several places of an array, put together from those of each place.

Counts and sums add up, the extremes are those of the extremes, and a mean is the sum of sums over the sum of counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from sqlalchemy import BigInteger, Double, FunctionFilter, func, literal
from sqlalchemy import cast as sql_cast
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.functions import FunctionElement

from storage.query.typed import Sql, ratio

Together: TypeAlias = Callable[..., Sql]

ADDED: Mapping[str, Together] = {
    "count": lambda counts: sql_cast(func.sum(counts), BigInteger),
    "sum": lambda sums: func.sum(sums, type_=Double()),
    "min": func.min,
    "max": func.max,
}
MEAN = "avg"


@dataclass(slots=True)
class Merging:
    """`parts` are aggregated for each place; `made` tells, by element of an expression, what stands for it then."""

    parts: dict[str, Sql] = field(default_factory=dict)
    made: dict[int, Callable[[Any], Sql]] = field(default_factory=dict)

    def keep(self, name: str, element: Sql) -> None:
        """A key, which all places of a group share."""
        self.parts[name] = element
        self.made[id(element)] = lambda each: each.c[name]

    def learn(self, sql: Sql) -> bool:
        """Takes an expression apart; false where it cannot be put together again."""
        rest = visitors.replacement_traverse(sql, {}, self._collect)
        return all(getattr(part, "table", None) is None for part in visitors.iterate(rest))

    def whole(self, sql: Sql, each: Any) -> Sql:
        """The expression over the rows of `each`, one for a place."""

        def swap(element: Any, **_: Any) -> Any:
            made = self.made.get(id(element))
            return None if made is None else made(each)

        together: Sql = visitors.replacement_traverse(sql, {}, swap)
        return together

    def _collect(self, element: Any, **_: Any) -> Any:
        if id(element) not in self.made:
            taken = _parts(element)
            if taken is None:
                return None
            partials, together = taken
            names = [f"p{len(self.parts) + place}" for place in range(len(partials))]
            self.parts |= dict(zip(names, partials, strict=True))
            self.made[id(element)] = lambda each: together(*(each.c[name] for name in names))
        return literal(0)


def _parts(element: Any) -> tuple[list[Sql], Together] | None:
    """What to aggregate for each place instead, and how it goes together; None for anything else."""
    filtered = isinstance(element, FunctionFilter)
    function = element.func if filtered else element
    if not isinstance(function, FunctionElement) or _is_distinct(function):
        return None
    name = getattr(function, "name", "")
    if name in ADDED:
        return [element], ADDED[name]
    if name != MEAN:
        return None
    sums: list[Any] = [func.sum(*function.clauses, type_=Double()), func.count(*function.clauses)]
    return [each.filter(element.criterion) if filtered else each for each in sums], _mean


def _mean(sums: Sql, counts: Sql) -> Sql:
    return ratio(func.sum(sums), sql_cast(func.sum(counts), Double))


def _is_distinct(function: Any) -> bool:
    return any(getattr(part, "operator", None) is operators.distinct_op for part in visitors.iterate(function))
