"""From a query to one statement: an inner select of all that is computed, an outer one that filters, orders and pages.

Rows of the model, conditions and groups are inside; conditions on computed columns, order and limit outside, where
every column is `c0`, `c1`, ... whatever the request calls it. Postgres flattens the two. Group keys are computed
beside the rows (lateral), since an expression with bound values is never found equal to its copy in GROUP BY.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Select, func, select, true

from storage.errors import InvalidQuery
from storage.query import nlp, regional
from storage.query.ast import EVERYTHING, Call, Condition, Item, Name, Property, Query
from storage.query.body import shown
from storage.query.comparators import matches
from storage.query.functions import FUNCTIONS
from storage.query.schema import QueryModel
from storage.query.scope import Scope, placed, sorted_by, ungrouped
from storage.query.sources import Rows, Source, Stored
from storage.query.typed import GROUPED, Shape, Sql, Typed
from storage.query.unrolled import Conditions, unroll


@dataclass(frozen=True, slots=True)
class Compiled:
    """A statement without limit; `shapes` make JSON of its columns, in the order of `keys`."""

    statement: Select[Any]
    keys: tuple[str, ...]
    shapes: tuple[Shape, ...]
    limit: int | None
    offset: int

    def row(self, values: Any) -> dict[str, Any]:
        cells = zip(self.keys, self.shapes, values, strict=True)
        return {key: None if value is None else shape(value) for key, shape, value in cells}


@dataclass(frozen=True, slots=True)
class _Level:
    """A select that is ready: its columns by key, and its order."""

    statement: Select[Any]
    columns: dict[str, Typed]
    order: list[Sql]


def compile_query(query: Query, model: QueryModel) -> Compiled:
    """The statement that answers a query about a model. Raises InvalidQuery for what its columns do not allow."""
    level = _level(query, model)
    shapes = tuple(column.shaped for column in level.columns.values())
    statement = level.statement.order_by(*level.order)
    return Compiled(statement, tuple(level.columns), shapes, query.limit, query.offset)


def _level(query: Query, model: QueryModel) -> _Level:
    query, source = _source(query, model)
    items = _items(query, source)
    scope = _scope(query, model, source, items)
    scope.grouped = bool(query.group_by) or any(_aggregates(item.expression) for item in items.values())
    _group(scope, query)
    columns = {key: scope.item(key, item.pointer) for key, item in items.items()}
    for key, column in columns.items():
        if scope.grouped and column.plain is not None:
            raise InvalidQuery(ungrouped(column.plain), items[key].pointer)
    conditions = [(each, _matching(scope, each)) for each in query.filter if _of_rows(scope, each)]
    return _outer(scope, query, columns, conditions)


def _outer(scope: Scope, query: Query, columns: dict[str, Typed], conditions: Conditions) -> _Level:
    """What the inner select computed, without the rows that conditions on it drop; its order."""
    places = {key: f"c{index}" for index, key in enumerate(columns)}
    sorted_beside = {f"o{index}": scope.sortable(order.target) for index, order in enumerate(scope.orders)}
    ties = {f"t{index}": tie for index, tie in enumerate(scope.ties())}
    found = {places[key]: column.sql for key, column in columns.items()} | sorted_beside | ties
    having = [(each, scope.named(each.target)) for each in query.filter if _of_groups(scope, each)]
    inner = unroll(scope, found, conditions)
    if inner is None:
        inner = _inner(scope, found, [sql for _, sql in conditions])
    kept = [matches(replace(column, sql=inner.c[places[each.target.name]]), each.test) for each, column in having]
    order: list[Any] = []
    for index, each in enumerate(scope.orders):
        key = replace(scope.named(each.target), sql=inner.c[f"o{index}"]).sortable
        order.append(sorted_by(key, descending=each.descending))
    kept += [inner.c[places[key]].is_not(None) for key, item in scope.items.items() if _explains(item, nlp.FUNCTION)]
    statement = select(*(inner.c[place] for place in places.values())).where(*kept)
    return _Level(statement, columns, order + [inner.c[tie] for tie in ties])


def _inner(scope: Scope, found: dict[str, Sql], conditions: list[Sql]) -> Any:
    rows = scope.source.rows()
    statement = select(*(sql.label(name) for name, sql in found.items()))
    if scope.beside is not None:
        rows = rows.join(scope.beside, true())
        statement = statement.group_by(*scope.beside.c)
    return statement.select_from(rows).where(*scope.source.conditions(), *conditions).subquery("q")


def _aggregates(operand: Any) -> bool:
    """Whether an expression stands for many rows; what an alias stands for is asked where it is defined."""
    if not isinstance(operand, Call):
        return False
    return FUNCTIONS[operand.function].aggregate or any(map(_aggregates, operand.arguments.values()))


def _explains(item: Item, function: str) -> bool:
    return isinstance(item.expression, Call) and item.expression.function == function


def _source(query: Query, model: QueryModel) -> tuple[Query, Source]:
    """The source, and what is left to ask of it."""
    if query.subquery is not None:
        return query, _subquery(query.subquery, model)
    source = Stored(model, query.source or "inference")
    if any(_explains(item, regional.FUNCTION) for item in query.select):
        return _regional(query, source)
    return query, source


def _subquery(query: Query, model: QueryModel) -> Rows:
    level = _level(query, model)
    numbered = level.statement.add_columns(func.row_number().over(order_by=level.order or None).label("place"))
    limited = numbered.order_by(*level.order).limit(query.limit).offset(query.offset or None)
    clause = limited.subquery("s")
    columns = {
        key: Typed(clause.c[f"c{index}"], column.kind, plain=key, shape=column.shape)
        for index, (key, column) in enumerate(level.columns.items())
    }
    return Rows(clause, columns, clause.c.place)


def _regional(query: Query, source: Stored) -> tuple[Query, Rows]:
    """The importances of all inputs as rows, and the query that shows them."""
    item = query.select[0]
    if len(query.select) > 1 or query.group_by or not isinstance(item.expression, Call):
        raise InvalidQuery(f"'{regional.FUNCTION}' stands alone in a select, without groups", query.pointer)
    key = item.alias or "regionalFeatureImportance"
    if key == regional.ATTRIBUTE:
        raise InvalidQuery(f"two entries are called {shown(key)}: give another alias", item.pointer)
    scope = Scope(source.model, source, {})
    conditions = [_matching(scope, each) for each in query.filter if not each.target.is_alias]
    call = item.expression
    rows: Rows = placed(call.pointer, lambda: regional.importances(source, call, conditions, key))
    shown_columns = tuple(Item(Property(name, item.pointer), None, item.pointer) for name in (regional.ATTRIBUTE, key))
    later = tuple(each for each in query.filter if each.target.is_alias)
    return replace(query, select=shown_columns, filter=later), rows


def _items(query: Query, source: Source) -> dict[str, Item]:
    """The entries of the select by key, `*` spelt out, and what an explanation of texts always shows."""
    entries: list[Item] = []
    for item in query.select:
        if isinstance(item.expression, Property) and item.expression.name == EVERYTHING:
            names = source.everything()
            entries += [Item(Property(name, item.pointer), None, item.pointer) for name in names]
        else:
            entries.append(item)
    asked = {entry.key for entry in entries}
    if len(asked) < len(entries):
        seen: set[str] = set()
        twice = next(entry for entry in entries if entry.key in seen or seen.add(entry.key))  # type: ignore[func-returns-value]
        raise InvalidQuery(f"two entries are called {shown(twice.key)}: give an alias", twice.pointer)
    if _explains_texts(query) and "inference_id" not in asked and "inference_id" in source.names():
        pointer = query.select[0].pointer
        entries.insert(0, Item(Property("inference_id", pointer), None, pointer))
    return {entry.key: entry for entry in entries}


def _explains_texts(query: Query) -> bool:
    return any(_explains(item, nlp.FUNCTION) for item in query.select)


def _scope(query: Query, model: QueryModel, source: Source, items: dict[str, Item]) -> Scope:
    if not _explains_texts(query):
        return Scope(model, source, items, query.order_by)
    conditions = tuple(each for each in query.filter if _of_tokens(each.target))
    orders = tuple(each for each in query.order_by if _of_tokens(each.target))
    rows = tuple(each for each in query.order_by if not _of_tokens(each.target))
    return Scope(model, source, items, rows, nlp.TokenView(conditions, orders))


def _of_rows(scope: Scope, condition: Condition) -> bool:
    """Whether it is about what rows hold, rather than about what is computed or about tokens."""
    return not _of_groups(scope, condition) and condition not in scope.tokens.conditions


def _of_groups(scope: Scope, condition: Condition) -> bool:
    return condition.target.is_alias and condition.target.name in scope.items


def _of_tokens(name: Name) -> bool:
    return name.name.startswith(nlp.PREFIX) and not name.is_alias


def _matching(scope: Scope, condition: Condition) -> Sql:
    """Of a row, also where the same column is a key of groups."""
    target = condition.target
    column = scope.alias(target.name, target.pointer) if target.is_alias else scope.column(target.name, target.pointer)
    return matches(column, condition.test)


def _group(scope: Scope, query: Query) -> None:
    """From here on the keys stand for what they are computed from."""
    found: list[tuple[Name, Typed]] = [(name, scope.named(name)) for name in query.group_by]
    if not found:
        return
    for name, key in found:
        if key.aggregate or key.window or key.kind not in GROUPED | {"null"}:
            raise InvalidQuery(f"rows are not grouped by {shown(name.name)}, which is computed from them", name.pointer)
    columns = [key.sql.label(f"k{index}") for index, (_, key) in enumerate(found)]
    keys = select(*columns).correlate(*scope.source.parts()).lateral("keys")
    scope.keys = {
        (name.is_alias, name.name): replace(key, sql=keys.c[f"k{index}"], plain=None, weight=1, constant=None)
        for index, (name, key) in enumerate(found)
    }
    scope.grouping, scope.beside = [key for _, key in found], keys
    scope.done.clear()
