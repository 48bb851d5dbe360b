"""Regional importances: the mean size of scores over the explained inferences of a region."""

from __future__ import annotations

from sqlalchemy import Text, bindparam, column, func, select, true

from storage.errors import InvalidQuery
from storage.query.ast import Call
from storage.query.body import nearest, shown
from storage.query.schema import Attribute
from storage.query.sources import TEXTS, Rows, Source, Stored
from storage.query.typed import Sql, Typed, number

FUNCTION = "regionalFeatureImportances"
ATTRIBUTE = "explainer_attribute"


def importance(source: Source, call: Call) -> Typed:
    """Of one input; null where no inference of the region is explained."""
    stored, scores, first = _scores(source, call)
    inputs = stored.model.inputs
    place = first + inputs.index(named(call, "attribute_name", inputs))
    return number(func.avg(func.abs(scores[place])))


def importances(source: Stored, call: Call, conditions: list[Sql], key: str) -> Rows:
    """One row for each input, the largest first: its name and, under `key`, its importance."""
    _, scores, first = _scores(source, call)
    names = bindparam(None, [each.name for each in source.model.inputs], TEXTS)
    inputs = func.unnest(names).table_valued(column("name", Text), with_ordinality="place", name="inputs")
    inputs = inputs.render_derived()
    size = func.avg(func.abs(scores[inputs.c.place + (first - 1)])).label("size")
    found = (
        select(inputs.c.place, inputs.c.name, size)
        .select_from(source.rows().join(inputs, true()))
        .where(*source.conditions(), *conditions)
        .group_by(inputs.c.place, inputs.c.name)
        .subquery("found")
    )
    every = func.unnest(names).table_valued(column("name", Text), with_ordinality="place", name="every")
    every = every.render_derived()
    order = (found.c.size.desc().nulls_last(), every.c.place)
    place = func.row_number().over(order_by=order).label("place")
    joined = every.outerjoin(found, found.c.place == every.c.place)
    rows = select(every.c.name, found.c.size, place).select_from(joined).subquery("importances")
    columns = {
        ATTRIBUTE: Typed(rows.c.name, "text", plain=ATTRIBUTE),
        key: Typed(rows.c.size, "number", plain=key),
    }
    return Rows(rows, columns, rows.c.place)


def _scores(source: Source, call: Call) -> tuple[Stored, Sql, int]:
    """The scores of the algorithm asked for, and the place of the first that belongs to the class asked for."""
    if not isinstance(source, Stored):
        raise InvalidQuery("a region is made of inferences, not of the rows of a subquery", call.pointer)
    source.require_explanations()
    algorithm = call.arguments.get("explanation_algorithm") or configured(source)
    predicted = source.model.predicted
    first = predicted.index(named(call, "predicted_attribute_name", predicted)) * len(source.model.inputs) + 1
    return source, source.scores(algorithm), first


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
