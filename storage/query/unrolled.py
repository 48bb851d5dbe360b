"""Aggregates over scores, place by place.

Context: a score is an element of an array, and a query that names one has a row for each; unnesting 40 elements of
200,000 rows takes seconds before anything is added up. Decision: where each group holds one place of the arrays, its
aggregates are written out with that place in the stead of the cell's columns, all places are aggregated in one pass
over the unmultiplied rows, and the result is turned into rows. Consequence: the same rows in the same order, several
times faster (a sum may differ in its last digit, as it does between plans); what does not fit is unnested as before:
groups of several places, conditions on scores, aggregates that are subqueries, very long arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import ARRAY, BigInteger, Select, Text, func, literal, literal_column, select, true, union_all
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import array
from sqlalchemy.sql import visitors

from storage.query.ast import Condition
from storage.query.scope import Scope
from storage.query.sources import Stored
from storage.query.typed import Sql, Typed

MOST_COLUMNS = 1200
"""Postgres has 1664 for one select."""
INLINE = 900
"""Longer arrays lie outside the row, and naming an element fetches all of it."""
TIE, TIES = "t0", ARRAY(BigInteger)
Conditions: TypeAlias = Sequence[tuple[Condition, Sql]]


@dataclass(frozen=True, slots=True)
class _Cell:
    """One place of the arrays, from 1."""

    place: int
    attribute: str
    predicted: str


def unroll(scope: Scope, found: Mapping[str, Sql], conditions: Conditions) -> Any:
    """The inner select of a query, without multiplied rows; None where they are needed."""
    source = scope.source
    if not isinstance(source, Stored) or source.cells is None or not scope.grouped:
        return None
    kept = _kept(source, conditions)
    named = [_cell_column(source.cells, key) for key in scope.grouping]
    rest = [(f"k{index}", key) for index, key in enumerate(scope.grouping) if named[index] is None]
    if not kept or not _fits(scope, source, found, named, rest, kept):
        return None
    keys = _row_keys(source, rest)
    whole = {key: sql for key, sql in found.items() if key != TIE}
    copies = {cell: {key: _at(scope, source, named, keys, cell, sql) for key, sql in whole.items()} for cell in kept}
    own = {key for key in whole if _varies(scope, source, named, whole[key])}
    columns = {key: sql for key, sql in copies[kept[0]].items() if key not in own}
    columns |= {f"{key}_{cell.place}": copies[cell][key] for cell in kept for key in own}
    if scope.grouping:
        columns[TIE] = func.min(array([sql_cast(tie, BigInteger) for tie in source.ties()[:-1]]))
    inner = _aggregated(source, keys, columns, [sql for _, sql in conditions if not _depends(source.cells, sql)])
    return _as_rows(inner, found, own, kept)


def _kept(source: Stored, conditions: Conditions) -> list[_Cell] | None:
    """The cells that pass the conditions on their names; None where a condition is of another kind."""
    inputs, predicted = source.model.inputs, source.model.predicted
    names = [(attribute.name, each.name) for each in predicted for attribute in inputs]
    kept = [_Cell(place, *pair) for place, pair in enumerate(names, start=1)]
    for condition, sql in conditions:
        if not _depends(source.cells, sql):
            continue
        column, test = CELL_COLUMNS.get(condition.target.name), condition.test
        values = [test.value] if test.comparator == "eq" else test.value if test.comparator == "in" else None
        if column is None or values is None or not all(isinstance(value, str) for value in values):
            return None
        kept = [cell for cell in kept if getattr(cell, column) in values]
    return kept if len(names) <= INLINE else None


CELL_COLUMNS = {"explainer_attribute": "attribute", "explainer_predicted_attribute": "predicted"}
"""Properties that are the names of a cell."""


def _cell_column(cells: Any, key: Typed) -> str | None:
    """Which name of a cell a key is; None for any other."""
    return next((name for name in CELL_COLUMNS.values() if key.sql is cells.c[name]), None)


def _fits(
    scope: Scope,
    source: Stored,
    found: Mapping[str, Sql],
    named: Sequence[str | None],
    rest: Sequence[tuple[str, Typed]],
    kept: Sequence[_Cell],
) -> bool:
    groups = {tuple(getattr(cell, name) for name in named if name is not None) for cell in kept}
    plain = all(key.plain is not None and not _depends(source.cells, key.sql) for _, key in rest)
    nested = any(isinstance(part, Select) for sql in found.values() for part in visitors.iterate(sql))
    windows = any(item.window for item in scope.done.values())
    few = len(kept) * len(found) <= MOST_COLUMNS
    return len(groups) == len(kept) and plain and few and not nested and not windows


def _depends(cells: Any, sql: Sql) -> bool:
    return any(getattr(part, "table", None) is cells for part in visitors.iterate(sql))


def _row_keys(source: Stored, rest: Sequence[tuple[str, Typed]]) -> Any:
    """The other keys beside the rows; None without any."""
    if not rest:
        return None
    parts = [part for part in source.parts() if part is not source.cells]
    return select(*(key.sql.label(name) for name, key in rest)).correlate(*parts).lateral("keys")


def _swapped(
    scope: Scope, source: Stored, named: Sequence[str | None], keys: Any, cell: _Cell | None
) -> dict[Any, Sql]:
    """What stands for the columns of the cell and the keys; without a cell, only those that vary with it."""
    cells: Any = source.cells
    at = cell or _Cell(0, "", "")
    swapped: dict[Any, Sql] = {
        cells.c.place: literal_column(str(at.place), BigInteger),
        cells.c.attribute: literal(at.attribute, Text),
        cells.c.predicted: literal(at.predicted, Text),
    }
    for index, name in enumerate(named):
        if name is not None:
            swapped[scope.beside.c[f"k{index}"]] = literal(getattr(at, name), Text)
        elif cell is not None:
            swapped[scope.beside.c[f"k{index}"]] = keys.c[f"k{index}"]
    return swapped


def _at(scope: Scope, source: Stored, named: Sequence[str | None], keys: Any, cell: _Cell, sql: Sql) -> Sql:
    swapped = {id(column): other for column, other in _swapped(scope, source, named, keys, cell).items()}

    def swap(element: Any, **_: Any) -> Any:
        return swapped.get(id(element))

    changed: Sql = visitors.replacement_traverse(sql, {}, swap)
    return changed


def _varies(scope: Scope, source: Stored, named: Sequence[str | None], sql: Sql) -> bool:
    columns = {id(column) for column in _swapped(scope, source, named, None, None)}
    return any(id(part) in columns for part in visitors.iterate(sql))


def _aggregated(source: Stored, keys: Any, columns: Mapping[str, Sql], conditions: Sequence[Sql]) -> Any:
    rows = source.unmultiplied()
    statement = select(*(sql.label(name) for name, sql in columns.items()))
    if keys is not None:
        rows = rows.join(keys, true())
        statement = statement.group_by(*keys.c)
    if TIE in columns:
        statement = statement.having(func.count() > 0)
    return statement.select_from(rows).where(*source.conditions(), *conditions).subquery("u")


def _as_rows(inner: Any, found: Mapping[str, Sql], own: set[str], kept: Sequence[_Cell]) -> Any:
    """A row for each group and cell, with the columns that were asked for."""

    def column(key: str, cell: _Cell) -> Sql:
        if key == TIE:
            tie: Sql = func.array_append(inner.c[key], literal_column(str(cell.place), BigInteger), type_=TIES)
            return tie
        copy: Sql = inner.c[f"{key}_{cell.place}" if key in own else key]
        return copy

    branches = [select(*(column(key, cell).label(key) for key in found)).correlate(inner) for cell in kept]
    each: Any = (union_all(*branches) if len(branches) > 1 else branches[0]).lateral("each")
    return select(*(each.c[key] for key in found)).select_from(inner.join(each, true())).subquery("q")
