"""The grammar: from the JSON of a request to a `Query`. All that needs no model is checked here.

Bounded by structure: depth, entries of each list, and calls and conditions in all are counted before they are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from storage.errors import InvalidQuery
from storage.query.ast import (
    EVERYTHING,
    AliasRef,
    Call,
    Condition,
    Item,
    Literally,
    Name,
    Number,
    Order,
    Property,
    Query,
    SourceName,
    Test,
    Threshold,
)
from storage.query.ast import Operand as OperandTree
from storage.query.body import Place, shown
from storage.query.comparators import COMPARATORS
from storage.query.functions import FUNCTIONS
from storage.query.signature import Function, Groups, Operand, Operands

DEEPEST = 12
MOST_PARTS = 2000
SOURCES = ("inference", "enriched", "reference", "ground_truth")
IGNORED = ("sample", "disable_auto_sample")
"""Nothing is sampled here."""
MEMBERS = (
    *("select", "from", "subquery", "filter", "where", "group_by", "order_by", "limit", "offset"),
    *IGNORED,
)
DIRECTIONS = {"asc": False, "desc": True}


def parse(body: Mapping[str, Any]) -> Query:
    """The query that a request asks. Raises InvalidQuery with the place of the first mistake."""
    return Reader().query(Place(body), DEEPEST)


@dataclass(slots=True)
class Reader:
    """Reads one request; `parts` counts its calls, conditions and operands."""

    parts: int = 0

    def query(self, place: Place, depth: int) -> Query:
        self.count(place, depth)
        members = place.members(MEMBERS, "a query")
        if "filter" in members and "where" in members:
            raise InvalidQuery("'where' is another name of 'filter': give one of them", members["where"].pointer)
        limit, offset = members.get("limit"), members.get("offset")
        subquery, source = members.get("subquery"), members.get("from")
        return Query(
            select=self.select(members, place, depth),
            source=None if source is None else cast("SourceName", source.choice(SOURCES, "source")),
            subquery=None if subquery is None else self.query(subquery, depth - 1),
            filter=tuple(map(self.condition, _list(members, "filter") + _list(members, "where"))),
            group_by=tuple(
                self.target(each.members(("property", "alias"), "a key"), each) for each in _list(members, "group_by")
            ),
            order_by=tuple(map(self.order, _list(members, "order_by"))),
            limit=None if limit is None or limit.value is None else limit.integer(0),
            offset=0 if offset is None or offset.value is None else offset.integer(0),
            pointer=place.pointer,
        )

    def select(self, members: dict[str, Place], place: Place, depth: int) -> tuple[Item, ...]:
        if "select" not in members:
            raise InvalidQuery("'select' is missing", place.pointer)
        items = tuple(self.item(each, depth) for each in members["select"].entries())
        if not items:
            raise InvalidQuery("'select' is empty", members["select"].pointer)
        seen: set[str] = set()
        for item in items:
            if item.key in seen:
                raise InvalidQuery(f"two entries are called {shown(item.key)}: give an alias", item.pointer)
            seen.add(item.key)
        return items

    def item(self, place: Place, depth: int) -> Item:
        self.count(place, depth)
        members = place.members(("property", "function", "alias", "parameters", "stage", "value_type"), "an entry")
        if ("property" in members) == ("function" in members):
            raise InvalidQuery("needs either a property or a function", place.pointer)
        alias = members["alias"].name() if "alias" in members and members["alias"].value is not None else None
        if "function" in members:
            return Item(self.call(members, depth), alias, place.pointer)
        if "parameters" in members and members["parameters"].value:
            raise InvalidQuery("a property has no parameters", members["parameters"].pointer)
        name = members["property"].name()
        if name == EVERYTHING and alias is not None:
            raise InvalidQuery("'*' has no alias", members["alias"].pointer)
        return Item(Property(name, members["property"].pointer), alias, place.pointer)

    def call(self, members: dict[str, Place], depth: int) -> Call:
        name = members["function"].choice(FUNCTIONS, "function")
        function, place = FUNCTIONS[name], members.get("parameters", Place({}, members["function"].pointer))
        present = Place({} if place.value is None else place.value, place.pointer)
        given = present.members(function.names, f"the parameters of '{name}'")
        arguments = self.arguments(function, given, place, depth)
        test = self.test(given, function.comparators, place) if function.comparators else None
        return Call(name, arguments, test, place.pointer)

    def arguments(self, function: Function, given: dict[str, Place], place: Place, depth: int) -> dict[str, Any]:
        chosen = [name for name in function.either if name in given]
        if function.either and not chosen:
            raise InvalidQuery(f"needs one of the parameters {' and '.join(function.either)}", place.pointer)
        if len(chosen) > 1:
            raise InvalidQuery(f"stands beside {chosen[0]}: give one of them", given[chosen[1]].pointer)
        arguments: dict[str, Any] = {}
        for name, parameter in function.parameters.items():
            if name not in given:
                if parameter.required and not (isinstance(parameter, Operand) and parameter.default):
                    raise InvalidQuery(f"the parameter '{name}' is missing", place.pointer)
                continue
            match parameter:
                case Operand():
                    arguments[name] = self.operand(given[name], depth - 1, literally=parameter.literally)
                case Operands():
                    arguments[name] = self.operands(given[name], depth - 1)
                case Groups():
                    arguments[name] = self.thresholds(given[name])
                case _:
                    arguments[name] = parameter.read(given[name])
        return arguments

    def operands(self, place: Place, depth: int) -> tuple[OperandTree, ...]:
        operands = tuple(self.operand(each, depth) for each in place.entries())
        if not operands:
            raise InvalidQuery("must not be empty", place.pointer)
        for operand, each in zip(operands, place.entries(), strict=True):
            if not isinstance(operand, Property | AliasRef):
                raise InvalidQuery("must be a property", each.pointer)
        return operands

    def thresholds(self, place: Place) -> tuple[Threshold, ...]:
        """One or several; a single one may stand without a list."""
        alone = isinstance(place.value, Mapping)
        found = tuple(map(self.threshold, [place] if alone else place.entries()))
        if not found:
            raise InvalidQuery("must not be empty", place.pointer)
        return found

    def threshold(self, place: Place) -> Threshold:
        members = place.members(("conditions", "threshold"), "a threshold")
        for name in ("conditions", "threshold"):
            if name not in members:
                raise InvalidQuery(f"'{name}' is missing", place.pointer)
        conditions = tuple(map(self.condition, members["conditions"].entries()))
        if not conditions:
            raise InvalidQuery("must not be empty", members["conditions"].pointer)
        if named := next((each.target for each in conditions if each.target.is_alias), None):
            raise InvalidQuery("must be a property", named.pointer)
        return Threshold(conditions, float(members["threshold"].number()), place.pointer)

    def operand(self, place: Place, depth: int, *, literally: bool = False) -> OperandTree:
        self.count(place, depth)
        if isinstance(place.value, Mapping):
            return self.reference(place, depth)
        if literally:
            return Literally(place.scalar(), place.pointer)
        if isinstance(place.value, str):
            return Property(place.name(), place.pointer)
        if isinstance(place.value, bool) or not isinstance(place.value, int | float):
            raise InvalidQuery("must be a property, a number, an alias_ref or a nested_function", place.pointer)
        return Number(place.number(), place.pointer)

    def reference(self, place: Place, depth: int) -> OperandTree:
        members = place.members(("alias_ref", "nested_function"), "an operand")
        if len(members) != 1:
            raise InvalidQuery("needs either alias_ref or nested_function", place.pointer)
        if "alias_ref" in members:
            return AliasRef(members["alias_ref"].name(), members["alias_ref"].pointer)
        inner = members["nested_function"]
        expression = self.item(inner, depth).expression
        if isinstance(expression, Property):
            raise InvalidQuery("must be a function", inner.pointer)
        return expression

    def condition(self, place: Place) -> Condition:
        self.count(place, DEEPEST)
        allowed = ("property", "alias", "comparator", "value", "value_type", "stage")
        members = place.members(allowed, "a condition")
        return Condition(self.target(members, place), self.test(members, tuple(COMPARATORS), place))

    def order(self, place: Place) -> Order:
        self.count(place, DEEPEST)
        members = place.members(("property", "alias", "direction"), "an order")
        direction = members["direction"].choice(DIRECTIONS, "direction") if "direction" in members else "asc"
        return Order(self.target(members, place), DIRECTIONS[direction])

    def target(self, members: dict[str, Place], place: Place) -> Name:
        if ("property" in members) == ("alias" in members):
            raise InvalidQuery("needs either a property or an alias", place.pointer)
        chosen = members.get("property") or members["alias"]
        return Name(chosen.name(), "alias" in members, chosen.pointer)

    def test(self, members: dict[str, Place], allowed: tuple[str, ...], place: Place) -> Test:
        if "comparator" not in members:
            raise InvalidQuery("'comparator' is missing", place.pointer)
        name = members["comparator"].choice(allowed, "comparator")
        if "value" not in members:
            if COMPARATORS[name].takes_value:
                raise InvalidQuery("'value' is missing", place.pointer)
            return Test(name, None, place.pointer)
        return Test(name, members["value"].value, members["value"].pointer)

    def count(self, place: Place, depth: int) -> None:
        self.parts += 1
        if depth <= 0:
            raise InvalidQuery(f"is nested more than {DEEPEST} deep", place.pointer)
        if self.parts > MOST_PARTS:
            raise InvalidQuery(f"the query has more than {MOST_PARTS} parts", place.pointer)


def _list(members: dict[str, Place], name: str) -> list[Place]:
    """The entries of an optional list; null means none."""
    return list(members[name].entries()) if name in members and members[name].value is not None else []
