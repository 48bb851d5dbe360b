"""Regional importances: the mean size of scores over the explained inferences of a region."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Double, Integer, Select, Text, bindparam, column, func, literal_column, select, true
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.dialects.postgresql import array as sql_array

from storage.errors import InvalidQuery
from storage.query.ast import Call
from storage.query.body import nearest, shown
from storage.query.schema import Attribute
from storage.query.sources import TEXTS, Region, Rows, Source, Stored
from storage.query.typed import Sql, Typed, number

FUNCTION = "regionalFeatureImportances"
ATTRIBUTE = "explainer_attribute"
INLINE = 900
"""So many scores surely lie in the row itself: eight bytes each, in a page of eight thousand."""


def importance(source: Source, call: Call) -> Typed:
    """Of one input; null where no inference of the region is explained."""
    if not isinstance(source, Stored):
        raise InvalidQuery("a region is made of inferences, not of the rows of a subquery", call.pointer)
    algorithm, first = _asked(source, call)
    inputs = source.model.inputs
    place = first + inputs.index(named(call, "attribute_name", inputs))
    return number(func.avg(func.abs(source.scores(algorithm)[place])))


def importances(source: Stored, call: Call, conditions: list[Sql], key: str) -> Rows:
    """One row for each input, the largest first: its name and, under `key`, its importance."""
    algorithm, first = _asked(source, call)
    inputs = source.model.inputs
    region = source.region(algorithm, conditions)
    small = len(inputs) * len(source.model.predicted) <= INLINE
    means = (_named if small else _unnested)(region, first, len(inputs))
    names = bindparam(None, [each.name for each in inputs], TEXTS)
    every = func.unnest(names, means.scalar_subquery()).table_valued(
        column("name", Text), column("size", Double), with_ordinality="place", name="every"
    )
    every = every.render_derived()
    place = func.row_number().over(order_by=(every.c.size.desc().nulls_last(), every.c.place)).label("place")
    rows = select(every.c.name, every.c.size, place).select_from(every).subquery("importances")
    columns = {
        ATTRIBUTE: Typed(rows.c.name, "text", plain=ATTRIBUTE),
        key: Typed(rows.c.size, "number", plain=key),
    }
    return Rows(rows, columns, rows.c.place)


def _named(region: Region, first: int, inputs: int) -> Select[Any]:
    """All means in one pass that names the elements: several times faster than unnesting them."""
    places = range(first, first + inputs)
    each = (func.avg(func.abs(region.scores[literal_column(str(place))])) for place in places)
    return select(sql_array(each, type_=Double)).select_from(region.rows).where(*region.conditions)


def _unnested(region: Region, first: int, inputs: int) -> Select[Any]:
    """The same of arrays that Postgres keeps outside the row: naming an element would fetch all of it each time."""
    part = func.unnest(region.scores[first : first + inputs - 1])
    each = part.table_valued(column("score", Double), with_ordinality="place", name="each").render_derived().lateral()
    mean = func.avg(func.abs(each.c.score)).label("mean")
    found = select(each.c.place, mean).select_from(region.rows.join(each, true())).where(*region.conditions)
    means = found.group_by(each.c.place).subquery("means")
    places = func.generate_series(1, inputs).table_valued(column("place", Integer), name="places").render_derived()
    listed = func.array_agg(aggregate_order_by(means.c.mean, places.c.place))
    return select(listed).select_from(places.outerjoin(means, means.c.place == places.c.place))


def _asked(source: Stored, call: Call) -> tuple[str, int]:
    """The algorithm, and the place of the first score that belongs to the class asked for."""
    source.require_explanations()
    algorithm = call.arguments.get("explanation_algorithm") or configured(source)
    predicted = source.model.predicted
    return algorithm, predicted.index(named(call, "predicted_attribute_name", predicted)) * len(source.model.inputs) + 1


def configured(source: Stored) -> str:
    """The algorithm that the model is explained by."""
    assert source.model.explainability is not None  # noqa: S101 - whoever asks has required it
    return source.model.explainability.algorithm


def named(call: Call, parameter: str, among: tuple[Attribute, ...]) -> Attribute:
    """The attribute that a parameter names. Raises InvalidQuery naming the parameter."""
    name = call.arguments[parameter]
    found = next((each for each in among if each.name == name), None)
    if found is None:
        pointer, valid = f"{call.pointer}/{parameter}", [each.name for each in among]
        raise InvalidQuery(f"{parameter} {shown(name)} is none of the model's", pointer, nearest(name, valid))
    return found
