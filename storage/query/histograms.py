"""What drift is computed from: counts per bin of base and target, and the distance of their distribution functions.

One statement for each property, over both sides at once, so that both are of the same moment. Groups are matched by the
JSON text of their keys, which can be hashed and in which null equals null.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ARRAY,
    DateTime,
    Double,
    Integer,
    Select,
    Text,
    bindparam,
    case,
    func,
    literal,
    null,
    select,
    type_coerce,
    union_all,
)
from sqlalchemy import cast as sql_cast

from storage.errors import InvalidQuery
from storage.query import scalars
from storage.query.ast import Name, Property
from storage.query.body import nearest, shown
from storage.query.comparators import matches
from storage.query.drift_request import BATCH, PREDICTED_CLASS, TEST, ClassList, Drift, Side
from storage.query.schema import QueryModel
from storage.query.scope import Scope
from storage.query.sources import Stored
from storage.query.typed import GROUPED, Shape, Sql, Typed, ratio

BASE, TARGET = 0, 1
CATEGORIES = frozenset(("boolean", "integer", "number", "text", "id"))


@dataclass(frozen=True, slots=True)
class Asked:
    """A statement and what its rows mean.

    Binned or categorical: side, keys, rollup, bin (null: no value), count, edges of the bins of the base. With
    `distance`: keys, rollup, distance, values of the base, values of the target.
    """

    statement: Select[Any]
    binned: bool
    distance: bool
    keys: tuple[Shape, ...]
    category: Shape


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of one side as columns key, k0, k1, ..., roll and v."""

    table: Any
    value: Typed
    keys: tuple[Typed, ...]

    @property
    def key_columns(self) -> list[Any]:
        return [self.table.c[f"k{place}"] for place in range(len(self.keys))]


def counts(model: QueryModel, drift: Drift, subject: Property | ClassList) -> Asked:
    """Raises InvalidQuery for what the model's columns do not allow."""
    base = _rows(model, drift, drift.base, subject)
    sides = [base]
    if drift.target is not None:
        sides.append(_rows(model, drift, drift.target, subject, timed=True))
    binned = _is_binned(model, subject, base.value)
    distance = binned and drift.metric == TEST
    if distance:
        statement = _distances(*sides)
    else:
        bounds = _bounds(base, drift.num_bins) if binned else None
        counted = [_counted(place, rows, bounds, drift.num_bins) for place, rows in enumerate(sides)]
        statement = select(union_all(*counted).subquery())
    return Asked(statement, binned, distance, tuple(key.shaped for key in base.keys), base.value.shaped)


def _is_binned(model: QueryModel, subject: Property | ClassList, value: Typed) -> bool:
    """Numbers are, unless their owner calls them categories."""
    attribute = model.attribute(subject.name) if isinstance(subject, Property) else None
    declared = attribute is not None and bool(attribute.definition.get("categorical"))
    return value.kind in {"integer", "number"} and not declared


def _rows(model: QueryModel, drift: Drift, side: Side, subject: Property | ClassList, *, timed: bool = False) -> _Rows:
    source = Stored(model, side.source)
    scope = Scope(model, source, {})
    value = _value(scope, subject)
    keys = tuple(_group(scope, name) for name in drift.group_by)
    conditions = [matches(scope.column(each.target.name, each.target.pointer), each.test) for each in side.filter]
    columns = {f"k{place}": key.sql for place, key in enumerate(keys)}
    columns |= {"key": _key(keys), "roll": _roll(scope, drift.rollup, timed=timed), "v": value.sql}
    chosen = select(*(sql.label(name) for name, sql in columns.items())).select_from(source.rows())
    table = chosen.where(*source.conditions(), *conditions).cte(side.pointer.removeprefix("/"))
    return _Rows(table, value, keys)


def _group(scope: Scope, name: Name) -> Typed:
    key = scope.column(name.name, name.pointer)
    if key.kind not in GROUPED:
        raise InvalidQuery(f"rows are not grouped by a {key.word}", name.pointer)
    return key


def _key(keys: Sequence[Typed]) -> Sql:
    return sql_cast(func.json_build_array(*(key.sql for key in keys)), Text) if keys else literal("", Text)


def _roll(scope: Scope, rollup: str | None, *, timed: bool) -> Sql:
    """Of the base null, as all of it is compared with each time of the target."""
    if not timed or rollup is None:
        return sql_cast(null(), Text if rollup in {BATCH, None} else DateTime(timezone=True))
    if rollup == BATCH:
        return scope.column(BATCH, "/rollup").sql
    return scalars.round_timestamp(scope.column("inference_timestamp", "/rollup"), rollup).sql


def _value(scope: Scope, subject: Property | ClassList) -> Typed:
    if isinstance(subject, ClassList):
        return _classes(scope, subject)
    value = scope.column(subject.name, subject.pointer)
    if value.kind not in CATEGORIES:
        raise InvalidQuery(f"drift is of numbers and categories, not of a {value.word}", subject.pointer)
    return value


def _classes(scope: Scope, subject: ClassList) -> Typed:
    """The name of the class of a row; null where there is none, or it is none of those asked for."""
    names = [each.name for each in scope.model.predicted]
    chosen = names if subject.names is None else subject.names
    for name in chosen:
        if name not in names:
            problem = f"{shown(name)} is no predicted attribute"
            raise InvalidQuery(problem, subject.pointer, nearest(name, names))
    if not names:
        raise InvalidQuery("the model predicts no classes", subject.pointer)
    label = _predicted(scope, names) if subject.key == PREDICTED_CLASS else _true(scope, names, subject)
    listed = label.in_([literal(name, Text) for name in chosen])
    return Typed(case((listed, label), else_=null()), "text")


def _predicted(scope: Scope, names: Sequence[str]) -> Sql:
    """The largest; the first of several."""
    return scalars.label_by_max_column([(name, scope.column(name, "")) for name in names]).sql


def _true(scope: Scope, names: Sequence[str], subject: ClassList) -> Sql:
    truths = [(scope.model.truth_of(name), name) for name in names]
    known = [(scope.column(truth.name, "").sql == 1.0, literal(name, Text)) for truth, name in truths if truth]
    if len(known) < len(names):
        raise InvalidQuery("every predicted attribute needs a ground truth", subject.pointer)
    return case(*known, else_=null())


def _bounds(base: _Rows, num_bins: int) -> Any:
    """For each group the smallest value, the inner quantiles and the largest value."""
    levels = bindparam(None, [place / num_bins for place in range(num_bins + 1)], ARRAY(Double))
    edges: Any = func.percentile_cont(levels).within_group(base.table.c.v)
    found = select(base.table.c.key, type_coerce(edges, ARRAY(Double)).label("edges"))
    return found.where(base.table.c.v.is_not(None)).group_by(base.table.c.key).cte("bounds")


def _counted(side: int, rows: _Rows, bounds: Any, num_bins: int) -> Select[Any]:
    """A row for each group, time and bin; a value on a bound is in the upper bin."""
    table = rows.table
    source, place, edges = table, table.c.v, sql_cast(null(), ARRAY(Double))
    if bounds is not None:
        source = table.outerjoin(bounds, table.c.key == bounds.c.key)
        place = func.width_bucket(table.c.v, bounds.c.edges[2:num_bins], type_=Integer)
        edges = bounds.c.edges
    placed = select(*rows.key_columns, table.c.key, table.c.roll, place.label("bin")).select_from(source).subquery()
    keys = [placed.c[column.name] for column in rows.key_columns]
    together = [*keys, placed.c.roll, placed.c.bin]
    number = func.count().label("n")
    found = select(placed.c.key, *together, number).group_by(placed.c.key, *together).subquery()
    source = found if bounds is None else found.outerjoin(bounds, found.c.key == bounds.c.key)
    columns = [found.c[column.name] for column in together]
    return select(literal(side, Integer).label("side"), *columns, found.c.n, edges.label("edges")).select_from(source)


def _distances(base: _Rows, target: _Rows) -> Select[Any]:
    """For each group and time of the target the largest distance between the distribution functions, and both sizes.

    Between values of the target its function is constant while that of the base grows: the largest distance is at a
    value of the target, or just below one.
    """
    merged = union_all(_values(BASE, base), _values(TARGET, target)).subquery()
    column, group = merged.c, merged.c.key
    up_to = func.sum(column.of_base).over(partition_by=group, order_by=column.v)
    at = func.sum(column.of_base).over(partition_by=[group, column.v])
    whole = func.sum(column.of_base).over(partition_by=group)
    keys = [column[each.name] for each in target.key_columns]
    part = [column.side, group, column.roll]
    passed = func.sum(column.of_target).over(partition_by=part, order_by=column.v)
    total = func.sum(column.of_target).over(partition_by=part)
    numbers = {"up_to": up_to, "below": up_to - at, "whole": whole, "passed": passed, "total": total}
    columns = [sql_cast(sql, Double).label(name) for name, sql in numbers.items()]
    seen = select(*keys, column.side, group, column.roll, column.v, column.of_target, *columns).subquery()
    above = ratio(seen.c.passed, seen.c.total) - ratio(seen.c.up_to, seen.c.whole)
    under = ratio(seen.c.below, seen.c.whole) - ratio(seen.c.passed - seen.c.of_target, seen.c.total)
    each = [seen.c[key.name] for key in keys] + [seen.c.roll]
    found = [func.max(func.greatest(above, under)), func.max(seen.c.whole), func.max(seen.c.total)]
    return select(*each, *found).where(seen.c.side == TARGET).group_by(seen.c.key, *each)


def _values(side: int, rows: _Rows) -> Select[Any]:
    """How often each value occurs; a group without values has one row, of null."""
    table = rows.table
    times = [func.count(table.c.v), literal(0, Integer)]
    of_base, of_target = times if side == BASE else reversed(times)
    keys = [*rows.key_columns, table.c.key, table.c.roll, table.c.v]
    counted = select(literal(side, Integer).label("side"), *keys)
    return counted.add_columns(of_base.label("of_base"), of_target.label("of_target")).group_by(*keys)
