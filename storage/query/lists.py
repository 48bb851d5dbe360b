"""Lists inside a value, stored as JSON text: their entries as rows, and the columns that show one part of each entry.

What is no list has no entries, and an entry of another form than its value type asks for has no such part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from sqlalchemy import JSON, Text, case, column, func, literal, null, select, true
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import aggregate_order_by

from storage.query.typed import Sql

Part: TypeAlias = Callable[[Sql], Sql]


def entries(of: Sql) -> Any:
    """Rows of `entry` (json) and `place`, from 1."""
    return (
        func.json_array_elements(array_of(of))
        .table_valued(column("entry", JSON), with_ordinality="place")
        .render_derived()
    )


def array_of(of: Sql) -> Sql:
    """A stored value as a JSON array; an empty one for what is no list."""
    return _if(sql_cast(of, JSON), "array", "[]")


def item(entry: Sql) -> Sql:
    """The id of an entry of a ranked list, or of a list of ids; null for anything else."""
    kind = func.json_typeof(entry)
    text = func.json_build_array(entry).op("->>")(0)
    return case((kind == "object", entry.op("->>")("item_id")), (kind == "string", text), else_=null())


def item_ids(of: Sql) -> Sql:
    """Of a ranked list, the best first."""
    each = entries(of)
    return _listed(of, func.json_agg(aggregate_order_by(item(each.c.entry), each.c.place)), each)


def whole(of: Sql) -> Sql:
    return of


def tokens(of: Sql) -> Sql:
    """The tokens of all positions, in the order given."""
    return _of_pairs(of, lambda pair: sql_cast(func.to_json(pair.c.key), JSON))


def likelihoods(of: Sql) -> Sql:
    """The likelihood of each of `tokens`."""
    return _of_pairs(of, lambda pair: pair.c.value)


def _of_pairs(of: Sql, part: Callable[[Any], Sql]) -> Sql:
    each = entries(of)
    every = func.json_each(_if(each.c.entry, "object", "{}"))
    rows = every.table_valued(column("key", Text), column("value", JSON), with_ordinality="rank")
    pairs = rows.render_derived().lateral()
    together = func.json_agg(aggregate_order_by(part(pairs), each.c.place, pairs.c.rank))
    return _listed(of, together, each.join(pairs, true()))


def _listed(of: Sql, together: Any, rows: Any) -> Sql:
    """JSON text, as lists are stored; null where the value is."""
    found = sql_cast(select(together).select_from(rows).scalar_subquery(), Text)
    return case((of.is_not(None), func.coalesce(found, "[]")), else_=null())


def _if(value: Sql, kind: str, otherwise: str) -> Sql:
    return case((func.json_typeof(value) == kind, value), else_=sql_cast(literal(otherwise, Text), JSON))


PARTS: Mapping[str, Mapping[str, Part]] = {
    "RANKED_LIST": {"item_id": item_ids},
    "TOKENS": {"tokens": whole},
    "TOKEN_LIKELIHOODS": {"tokens": tokens, "likelihoods": likelihoods},
}
"""By value type: the columns `<attribute>_<part>`."""
