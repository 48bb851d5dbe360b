"""Aggregates over scores, place by place.

Context: a score is an element of an array, and a query that names one has a row for each; unnesting 40 elements of
200,000 rows takes seconds before anything is added up. Decision: aggregates are written out once for each place, with
the place in the stead of the cell's columns; all are computed in one pass over the unmultiplied rows, and the result is
turned into rows. Groups of several places are put together from theirs (merging). Consequence: the same rows in the
same order, several times faster (a sum may differ in its last digit, as it does between plans); what does not fit is
unnested as before: conditions on scores, quantiles over several places, aggregates that are subqueries, long arrays.
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
from storage.query.merging import Merging
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


CELL_COLUMNS = {"explainer_attribute": "attribute", "explainer_predicted_attribute": "predicted"}
"""Properties that are the names of a cell."""


def unroll(scope: Scope, found: Mapping[str, Sql], conditions: Conditions) -> Any:
    """The inner select of a query, without multiplied rows; None where they are needed."""
    source = scope.source
    if not isinstance(source, Stored) or source.cells is None or source.boxes or source.model.texts:
        return None
    if not scope.grouped:
        return None
    kept = _kept(source, conditions)
    named = [_cell_column(source.cells, key) for key in scope.grouping]
    if not kept or not _simple(scope, source, found, named):
        return None
    groups = {tuple(getattr(cell, name) for name in named if name is not None) for cell in kept}
    merging = None if len(groups) == len(kept) else _merging(scope, found)
    wanted = found if merging is None else merging.parts
    if len(wanted) * len(kept) > MOST_COLUMNS or (len(groups) < len(kept) and merging is None):
        return None
    rows = [sql for _, sql in conditions if not _depends(source.cells, sql)]
    inner, each = _Places(scope, source, kept, named).aggregated(wanted, rows)
    joined = inner.join(each, true())
    if merging is None:
        return select(*(each.c[key] for key in found)).select_from(joined).subquery("q")
    return _merged(scope, found, merging, joined, each)


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


def _cell_column(cells: Any, key: Typed) -> str | None:
    """Which name of a cell a key is; None for any other."""
    return next((name for name in CELL_COLUMNS.values() if key.sql is cells.c[name]), None)


def _simple(scope: Scope, source: Stored, found: Mapping[str, Sql], named: Sequence[str | None]) -> bool:
    """Whether all other keys are of the row, and nothing is a subquery or looks at other rows of the answer."""
    rest = [key for key, name in zip(scope.grouping, named, strict=True) if name is None]
    plain = all(key.plain is not None and not _depends(source.cells, key.sql) for key in rest)
    nested = any(isinstance(part, Select) for sql in found.values() for part in visitors.iterate(sql))
    return plain and not nested and not any(item.window for item in scope.done.values())


def _depends(cells: Any, sql: Sql) -> bool:
    return any(getattr(part, "table", None) is cells for part in visitors.iterate(sql))


def _merging(scope: Scope, found: Mapping[str, Sql]) -> Merging | None:
    """How groups of several places are put together; None where they cannot be."""
    merging = Merging()
    for index in range(len(scope.grouping)):
        merging.keep(f"k{index}", scope.beside.c[f"k{index}"])
    if not all(merging.learn(sql) for key, sql in found.items() if key != TIE):
        return None
    if TIE in found:
        merging.parts[TIE] = found[TIE]
    return merging


def _merged(scope: Scope, found: Mapping[str, Sql], merging: Merging, joined: Any, each: Any) -> Any:
    columns = {key: merging.whole(sql, each) for key, sql in found.items() if key != TIE}
    if TIE in found:
        columns[TIE] = func.min(each.c[TIE], type_=TIES)
    statement = select(*(columns[key].label(key) for key in found)).select_from(joined)
    return statement.group_by(*(each.c[f"k{index}"] for index in range(len(scope.grouping)))).subquery("q")


@dataclass(frozen=True, slots=True)
class _Places:
    """`named` tells for each key which name of a cell it is, None for those of the row."""

    scope: Scope
    source: Stored
    kept: Sequence[_Cell]
    named: Sequence[str | None]

    def aggregated(self, wanted: Mapping[str, Sql], conditions: Sequence[Sql]) -> tuple[Any, Any]:
        """All places in one row for each group of rows, and beside it (lateral) a row for each place."""
        keys = self.row_keys()
        own = {key for key, sql in wanted.items() if key != TIE and self.varies(sql)}
        columns = {key: self.at(self.kept[0], keys, sql) for key, sql in wanted.items() if key not in own | {TIE}}
        columns |= {f"{key}_{cell.place}": self.at(cell, keys, wanted[key]) for cell in self.kept for key in own}
        if TIE in wanted:
            columns[TIE] = func.min(array([sql_cast(tie, BigInteger) for tie in self.source.ties()[:-1]]))
        rows = self.source.unmultiplied()
        statement = select(*(sql.label(name) for name, sql in columns.items()))
        if keys is not None:
            rows = rows.join(keys, true())
            statement = statement.group_by(*keys.c)
        if self.named:
            statement = statement.having(func.count() > 0)
        inner = statement.select_from(rows).where(*self.source.conditions(), *conditions).subquery("u")
        return inner, _turned(inner, wanted, own, self.kept)

    def row_keys(self) -> Any:
        """The keys of the row, beside it; None without any."""
        rest = [(f"k{index}", key) for index, key in enumerate(self.scope.grouping) if self.named[index] is None]
        if not rest:
            return None
        parts = [part for part in self.source.parts() if part is not self.source.cells]
        return select(*(key.sql.label(name) for name, key in rest)).correlate(*parts).lateral("keys")

    def at(self, cell: _Cell, keys: Any, sql: Sql) -> Sql:
        """The expression with a place for the cell, and the keys of the row as they are without cells."""
        swapped = self.of_cell(cell)
        for index, name in enumerate(self.named):
            if name is None:
                swapped[id(self.scope.beside.c[f"k{index}"])] = keys.c[f"k{index}"]

        def swap(element: Any, **_: Any) -> Any:
            return swapped.get(id(element))

        changed: Sql = visitors.replacement_traverse(sql, {}, swap)
        return changed

    def varies(self, sql: Sql) -> bool:
        """Whether it is another one for each place."""
        return any(id(part) in self.of_cell(self.kept[0]) for part in visitors.iterate(sql))

    def of_cell(self, cell: _Cell) -> dict[int, Sql]:
        """By column, what stands for it at a place."""
        columns: Any = self.source.cells.c
        swapped: dict[int, Sql] = {id(columns.place): literal_column(str(cell.place), BigInteger)}
        swapped |= {id(columns[name]): literal(getattr(cell, name), Text) for name in CELL_COLUMNS.values()}
        for index, name in enumerate(self.named):
            if name is not None:
                swapped[id(self.scope.beside.c[f"k{index}"])] = literal(getattr(cell, name), Text)
        return swapped


def _turned(inner: Any, wanted: Mapping[str, Sql], own: set[str], kept: Sequence[_Cell]) -> Any:
    """A row for each place, with the columns that were asked for."""

    def column(key: str, cell: _Cell) -> Sql:
        if key == TIE:
            tie: Sql = func.array_append(inner.c[key], literal_column(str(cell.place), BigInteger), type_=TIES)
            return tie
        copy: Sql = inner.c[f"{key}_{cell.place}" if key in own else key]
        return copy

    branches = [select(*(column(key, cell).label(key) for key in wanted)).correlate(inner) for cell in kept]
    return (union_all(*branches) if len(branches) > 1 else branches[0]).lateral("each")
