"""Expressions: from operands and functions to SQL, within one select."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import ARRAY, BigInteger, Text, and_, case, func, literal
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import array

from storage.errors import InvalidQuery
from storage.query import nlp, regional
from storage.query.ast import AliasRef, Call, Item, Literally, Name, Number, Operand, Order, Property, Threshold
from storage.query.body import nearest, shown
from storage.query.comparators import matches
from storage.query.evaluation import Classes
from storage.query.functions import FUNCTIONS
from storage.query.nlp import TokenView
from storage.query.schema import TRUTH_CLASS, QueryModel
from storage.query.signature import Function, Groups
from storage.query.signature import Operand as OperandParameter
from storage.query.signature import Operands as OperandsParameter
from storage.query.sources import Rows, Source
from storage.query.typed import GROUPED, Sql, Typed, constant, flag

HEAVIEST = 5000
"""Parts of all expressions of one select, with what aliases stand for counted each time."""


@dataclass(slots=True)
class Scope:
    """One select: its source, and its items as they become expressions."""

    model: QueryModel
    source: Source
    items: Mapping[str, Item]
    orders: tuple[Order, ...] = ()
    tokens: TokenView = field(default_factory=TokenView)
    grouped: bool = False
    keys: dict[tuple[bool, str], Typed] = field(default_factory=dict)  # by whether it is an alias, and name
    grouping: list[Typed] = field(default_factory=list)
    """The keys in the order of the query, as they are computed from a row."""
    beside: Any = None
    """The keys as columns beside the rows."""
    done: dict[str, Typed] = field(default_factory=dict)
    visiting: list[str] = field(default_factory=list)

    def item(self, key: str, pointer: str) -> Typed:
        """An entry of the select, compiled once. Raises InvalidQuery for a cycle."""
        if (True, key) in self.keys:
            return self.keys[True, key]
        if key in self.visiting:
            raise InvalidQuery(f"{shown(key)} refers to itself", pointer)
        if key not in self.done:
            self.visiting.append(key)
            found = self.operand(self.items[key].expression)
            self.visiting.pop()
            if found.weight + sum(each.weight for each in self.done.values()) > HEAVIEST:
                raise InvalidQuery(f"the expressions of the query have more than {HEAVIEST} parts", pointer)
            self.done[key] = found
        return self.done[key]

    def named(self, name: Name) -> Typed:
        return (
            self.alias(name.name, name.pointer) if name.is_alias else self.property(Property(name.name, name.pointer))
        )

    def alias(self, alias: str, pointer: str) -> Typed:
        if alias in self.items:
            return self.item(alias, pointer)
        column = self.source.column(alias) if isinstance(self.source, Rows) else None
        if column is None:
            raise InvalidQuery(f"unknown alias {shown(alias)}", pointer, nearest(alias, self.items))
        return self.keys.get((False, alias), column)

    def property(self, property: Property) -> Typed:
        if (False, property.name) in self.keys:
            return self.keys[False, property.name]
        return self.column(property.name, property.pointer)

    def column(self, name: str, pointer: str) -> Typed:
        """A property of the rows themselves. Raises InvalidQuery if there is none of that name."""
        found: Typed | None = placed(pointer, lambda: self.source.column(name))
        if found is None:
            near = nearest(name, self.source.names())
            raise InvalidQuery(f"unknown property {shown(name)}", pointer, near)
        return found

    def operand(self, operand: Operand) -> Typed:
        match operand:
            case Property():
                return self.property(operand)
            case Number() | Literally():
                return constant(operand.value)
            case AliasRef():
                return self.alias(operand.alias, operand.pointer)
            case Call():
                return self.call(operand)

    def call(self, call: Call) -> Typed:
        function = FUNCTIONS[call.function]
        if function.special:
            return self.judged(call, function, placed(call.pointer, lambda: self.special(call)), [])
        values, parts = self.values(function, call)
        return self.judged(call, function, placed(call.pointer, lambda: function.build(**values)), parts)

    def special(self, call: Call) -> Typed:
        if call.function == nlp.FUNCTION:
            return nlp.explanation(self.source, call, self.tokens)
        if call.function == regional.FUNCTION:
            raise InvalidQuery(f"'{regional.FUNCTION}' stands alone in a select", call.pointer)
        return regional.importance(self.source, call)

    def values(self, function: Function, call: Call) -> tuple[dict[str, Any], list[Typed]]:
        """What `build` takes, and the expressions among it."""
        values: dict[str, Any] = {}
        parts: list[Typed] = []
        for name, parameter in function.parameters.items():
            given = call.arguments.get(name)
            match parameter:
                case OperandParameter():
                    found = self.operand(given) if given is not None else self.default(parameter, call)
                    values[_snake(name)] = None if found is None else self.checked(found, parameter, call, name)
                    parts += [] if found is None else [found]
                case OperandsParameter():
                    pairs = [(_label(each), self.operand(each)) for each in given or ()]
                    values[_snake(name)] = [(label, self.checked(v, parameter, call, name)) for label, v in pairs]
                    parts += [value for _, value in pairs]
                case Groups():
                    values[_snake(name)] = [(self.inside(each, parts), each.value) for each in given or ()]
                case _:
                    values[_snake(name)] = parameter.default if given is None else given
        if call.test is not None:
            values["matching"] = matches(values["property"], call.test)
        return values | {need: PROVIDED[need](self, call) for need in function.needs}, parts

    def inside(self, threshold: Threshold, parts: list[Typed]) -> Sql:
        """Where a row meets all conditions of a threshold, whose columns join the parts."""
        columns = [self.named(each.target) for each in threshold.conditions]
        parts += columns
        return and_(*(matches(column, each.test) for column, each in zip(columns, threshold.conditions, strict=True)))

    def checked(self, value: Typed, parameter: OperandParameter | OperandsParameter, call: Call, name: str) -> Typed:
        if name == "ground_truth_property":
            value = self.truth(value, call)
        if value.kind not in parameter.accepts:
            place = f"{call.pointer}/{name}"
            raise InvalidQuery(f"'{call.function}' takes no {value.word} as '{name}'", place)
        return value

    def truth(self, value: Typed, call: Call) -> Typed:
        """The class of a row as the ground truth of one of the classes: whether it is that class's."""
        attribute = self.model.attribute(value.plain or "")
        if attribute is None or attribute.stage != TRUTH_CLASS:
            return value
        predicted = self.model.attribute(self.predicted_name(call))
        if predicted is None or predicted.gt_class_link is None:
            return value
        same = flag(sql_cast(value.sql, Text) == literal(predicted.gt_class_link, Text))
        return replace(same, sql=case((value.sql.is_not(None), same.sql)), plain=value.plain)

    def predicted_name(self, call: Call) -> str:
        given = call.arguments.get("predicted_property")
        if isinstance(given, Property):
            return given.name
        if given is None and self.model.positive is not None:
            return self.model.positive.name
        what = "ground_truth_property" if given is not None else "predicted_property"
        raise InvalidQuery(f"the parameter '{what}' is missing, and does not follow from the model", call.pointer)

    def default(self, parameter: OperandParameter, call: Call) -> Typed | None:
        if parameter.default is None or (
            parameter.default == "truth_if_predicted" and call.arguments.get("predicted_property") is None
        ):
            return None
        name = self.predicted_name(call)
        if parameter.default != "predicted":
            truth = self.model.truth_of(name)
            if truth is None:
                raise InvalidQuery(f"{shown(name)} has no ground truth: give ground_truth_property", call.pointer)
            name = truth.name
        return self.property(Property(name, call.pointer))

    def judged(self, call: Call, function: Function, built: Typed, parts: list[Typed]) -> Typed:
        """Whether the function may stand on what it stands on; its weight."""
        weight = 1 + built.weight + sum(part.weight for part in parts)
        aggregate = function.aggregate or any(part.aggregate for part in parts)
        plain = None if function.aggregate else next((p.plain for p in parts if p.plain), built.plain)
        if weight > HEAVIEST:
            raise InvalidQuery(f"the expressions of the query have more than {HEAVIEST} parts", call.pointer)
        if function.aggregate and any(part.aggregate or part.window for part in parts):
            raise InvalidQuery(f"'{call.function}' aggregates rows, not other aggregates or neighbours", call.pointer)
        if built.window and any(part.window for part in parts):
            raise InvalidQuery("a neighbour of neighbours has no order", call.pointer)
        if aggregate and plain is not None:
            raise InvalidQuery(ungrouped(plain), call.pointer)
        window = built.window or any(part.window for part in parts)
        return replace(built, plain=plain, aggregate=aggregate, window=window, weight=weight)

    def ordering(self) -> list[Sql]:
        """The order of the query, by what it names, then by its rows."""
        keys = [sorted_by(self.sortable(each.target), descending=each.descending) for each in self.orders]
        return keys + self.ties()

    def sortable(self, name: Name) -> Sql:
        found = self.named(name)
        if found.kind not in GROUPED | {"null"}:
            raise InvalidQuery(f"rows are not ordered by a {found.word}", name.pointer)
        if self.grouped and found.plain is not None:
            raise InvalidQuery(ungrouped(found.plain), name.pointer)
        return found.sortable

    def ties(self) -> list[Sql]:
        """Of a group, those of its first row."""
        ties = self.source.ties()
        if not self.grouped:
            return ties
        if not self.keys:
            return []
        first = ties[0] if len(ties) == 1 else array([sql_cast(tie, BigInteger) for tie in ties])
        return [func.min(first, type_=ARRAY(BigInteger) if len(ties) > 1 else BigInteger())]

    def classes(self) -> Classes:
        names = tuple(each.name for each in self.model.predicted)
        predicted = tuple(self.property(Property(name, "")) for name in names)
        links = [self.model.truth_of(name) for name in names]
        truths = tuple(None if link is None else self.property(Property(link.name, "")) for link in links)
        return Classes(names, predicted, truths)


def _threshold(scope: Scope, call: Call) -> float:
    given = call.arguments.get("threshold")
    return scope.model.classifier_threshold if given is None else float(given)


PROVIDED: Mapping[str, Callable[[Scope, Call], Any]] = {
    "threshold": _threshold,
    "classes": lambda scope, _: scope.classes(),
    "ties": lambda scope, _: scope.source.ties(),
    "order": lambda scope, _: scope.ordering(),
}
"""What functions need beside their parameters."""


def ungrouped(name: str) -> str:
    return f"{shown(name)} stands beside an aggregate: group by it, or aggregate it"


def sorted_by(sql: Sql, *, descending: bool) -> Sql:
    return (sql.desc() if descending else sql.asc()).nulls_last()


def _label(operand: Any) -> str:
    return str(operand.name if isinstance(operand, Property) else operand.alias)


def _snake(name: str) -> str:
    """A parameter's name as Python has it."""
    plain = re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", name)
    return f"{plain}_" if keyword.iskeyword(plain) else plain


def placed(pointer: str, build: Callable[[], Any]) -> Any:
    """What `build` makes; its errors without a place get this one."""
    try:
        return build()
    except InvalidQuery as error:
        if error.pointer:
            raise
        raise InvalidQuery(error.problem, pointer, error.suggestion) from None
