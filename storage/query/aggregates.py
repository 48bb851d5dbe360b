"""Aggregations: one value from the rows of a group. Nulls do not count; without any value the result is null."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from sqlalchemy import ARRAY, JSON, Double, Integer, bindparam, case, distinct, func, literal, select
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import aggregate_order_by

from storage.query.typed import Kind, Sql, Typed, check_varies, number, whole

DECILES = ("min", *(f"q{tenth}" for tenth in range(1, 10)), "max")


def avg(property: Typed) -> Typed:
    return number(func.avg(property.sql))


def avg_abs(property: Typed) -> Typed:
    return number(func.avg(func.abs(property.sql)))


def sum_(property: Typed) -> Typed:
    return number(func.sum(property.sql), _same(property))


def variance(property: Typed) -> Typed:
    """With n - 1; null for a single value."""
    return number(func.var_samp(property.sql))


def std_dev(property: Typed) -> Typed:
    return number(func.stddev_samp(property.sql))


def max_(property: Typed) -> Typed:
    return Typed(func.max(property.sortable), property.kind)


def min_(property: Typed) -> Typed:
    return Typed(func.min(property.sortable), property.kind)


def count() -> Typed:
    return whole(func.count())


def count_if(property: Typed, matching: Sql) -> Typed:
    return whole(func.count().filter(matching))


def rate(property: Typed, matching: Sql) -> Typed:
    """The share of all rows, those with a null among them."""
    return number(func.avg(case((matching, literal(1.0, Double)), else_=literal(0.0, Double))))


def categories_count(property: Typed) -> Typed:
    return whole(func.count(distinct(property.sql)))


def quantile(property: Typed, level: float) -> Typed:
    """With linear interpolation."""
    return number(_percentiles(property, literal(level, Double)))


def deciles(property: Typed) -> Typed:
    tenths = _percentiles(property, _levels([tenth / 10 for tenth in range(11)]))
    return Typed(tenths, "json", shape=lambda values: dict(zip(DECILES, values, strict=True)))


def bins_to_quantiles(property: Typed, num_bins: int) -> Typed:
    """The inner bounds of bins with equally many values."""
    inner = _percentiles(property, _levels([place / num_bins for place in range(1, num_bins)]))
    return Typed(inner, "json", shape=list)


def arg_max(argument: Typed, value: Typed, ties: Sequence[Sql]) -> Typed:
    """`argument` of the row with the largest value; of several, the one that was ingested first."""
    return _first(argument, [value.sortable.desc(), *ties], value.sql.is_not(None))


def arg_min(argument: Typed, value: Typed, ties: Sequence[Sql]) -> Typed:
    return _first(argument, [value.sortable, *ties], value.sql.is_not(None))


def any_if(result: Typed, property: Typed, matching: Sql, ties: Sequence[Sql]) -> Typed:
    """`result` of the first row, in the order of ingestion, that matches."""
    return _first(result, ties, matching)


def distribution(
    property: Typed, num_bins: int | None = None, bin_thresholds: tuple[float, ...] | None = None
) -> Typed:
    """How many values lie in each bin: `num_bins` of equal width, or those between thresholds."""
    if bin_thresholds is not None:
        return _between(property, bin_thresholds)
    return _equal_widths(property, num_bins or 1)


def _between(property: Typed, thresholds: tuple[float, ...]) -> Typed:
    values = _values(property)
    place = func.width_bucket(values.c.v, bindparam(None, list(thresholds), ARRAY(Double)))
    bins = select(place.label("bin"), func.count().label("n")).select_from(values).group_by("bin").subquery()
    counts = select(func.json_object_agg(bins.c.bin, bins.c.n, type_=JSON)).scalar_subquery()
    bounds = list(zip((None, *thresholds), (*thresholds, None), strict=True))
    return Typed(counts, "json", shape=lambda counts: _bins(bounds, counts))


def _equal_widths(property: Typed, most: int) -> Typed:
    """The bounds are computed the same way here and in `_widths`, so that a value on a bound is where it belongs."""
    values = _values(property)
    times = select(values.c.v, func.count().label("n")).select_from(values).group_by(values.c.v).subquery()
    lowest, highest = func.min(times.c.v).over(), func.max(times.c.v).over()
    bins = func.least(func.count().over(), literal(most, Integer))
    ranges = select(
        times.c.v, times.c.n, lowest.label("low"), highest.label("high"), sql_cast(bins, Double).label("bins")
    ).subquery()
    column = ranges.c
    width = column.high - column.low

    def bound(place: Sql) -> Sql:
        return column.low + width * place / column.bins

    guess = func.floor((column.v - column.low) / func.nullif(width, 0.0) * column.bins, type_=Double)
    nudged = case((column.v < bound(guess), guess - 1.0), (column.v >= bound(guess + 1.0), guess + 1.0), else_=guess)
    place = func.coalesce(func.least(nudged, column.bins - 1.0), 0.0)
    sums = [column.low, column.high, column.bins]
    found = select(*sums, place.label("bin"), func.sum(column.n).label("n")).group_by(*sums, place).subquery()
    counts = func.json_object_agg(sql_cast(found.c.bin, Integer), found.c.n)
    edges = [func.min(found.c.low), func.min(found.c.high), func.min(found.c.bins)]
    answer = select(func.json_build_array(*edges, counts, type_=JSON)).scalar_subquery()
    return Typed(answer, "json", shape=_widths)


def _widths(found: Sequence[Any]) -> list[dict[str, Any]] | None:
    low, high, bins, counts = found
    if low is None:
        return None
    low, high, bins = float(low), float(high), int(bins)
    edges = [low + (high - low) * place / bins for place in range(bins)] + [high]
    return [
        {"lower": lower, "upper": upper, "count": counts.get(str(place), 0)}
        for place, (lower, upper) in enumerate(pairwise(edges))
    ]


def _bins(bounds: Sequence[tuple[float | None, float | None]], counts: dict[str, int]) -> list[dict[str, Any]]:
    """The outermost bins have one bound each."""
    shaped = []
    for place, (lower, upper) in enumerate(bounds):
        sides = {"lower": lower, "upper": upper}
        present = {side: bound for side, bound in sides.items() if bound is not None}
        shaped.append({**present, "count": counts.get(str(place), 0)})
    return shaped


def _values(property: Typed) -> Any:
    """The values of a group as rows of their own, which can be grouped once more."""
    check_varies(property)
    together = func.array_agg(property.sql).filter(property.sql.is_not(None))
    return func.unnest(together).table_valued("v").render_derived()


def _percentiles(property: Typed, levels: Sql) -> Sql:
    return func.percentile_cont(levels).within_group(property.sql)


def _levels(levels: Sequence[float]) -> Sql:
    return bindparam(None, list(levels), ARRAY(Double))


def _first(value: Typed, order: Sequence[Sql], present: Sql) -> Typed:
    ordered: Any = func.array_agg(aggregate_order_by(value.sql, *order), type_=ARRAY(value.sql.type))
    return Typed(ordered.filter(present)[1], value.kind, shape=value.shape)


def _same(property: Typed) -> Kind:
    return "integer" if property.kind in {"integer", "boolean"} else "number"
