"""Ranked lists against what was relevant, over the rows that have both; each figure is the mean of one per row.

An item that is listed twice counts at its better rank. Where nothing is relevant, only precision is defined. Sources:
Järvelin and Kekäläinen 2002 (nDCG, binary gains, logarithm to base 2); the others as in Manning, Raghavan and Schütze,
Introduction to Information Retrieval, chapter 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ARRAY, Double, Integer, Text, any_, bindparam, case, distinct, func, literal, null, select
from sqlalchemy import cast as sql_cast

from storage.query.body import Place
from storage.query.lists import entries, item
from storage.query.typed import Sql, Typed, number, ratio, whole


def ranked_item_max_k(property: Typed, item_filter: Sequence[str]) -> Typed:
    """The largest rank, counted from 0, at which any of the items stands in any row; null where none does."""
    each = entries(property.sql)
    wanted = item(each.c.entry) == any_(bindparam(None, list(item_filter), ARRAY(Text)))
    return whole(func.max(select(func.max(each.c.place) - 1).select_from(each).where(wanted).scalar_subquery()))


def items(place: Place) -> tuple[str, ...]:
    """An id, or a list of them."""
    if isinstance(place.value, str):
        return (place.text(),)
    return tuple(each.text() for each in place.entries())


def precision_at_k(predicted_property: Typed, ground_truth_property: Typed, k: int) -> Typed:
    """The share of relevant items among the first k; places that a shorter list leaves empty count as misses."""
    row = _Row(predicted_property, ground_truth_property)
    return row.mean(row.total(row.hit, k) / float(k))


def recall_at_k(predicted_property: Typed, ground_truth_property: Typed, k: int) -> Typed:
    """The share of the relevant items that are among the first k."""
    row = _Row(predicted_property, ground_truth_property)
    return row.mean(ratio(row.total(row.hit, k), row.relevant_count))


def map_at_k(predicted_property: Typed, ground_truth_property: Typed, k: int) -> Typed:
    """Average precision: at each hit among the first k the precision so far, over the most hits there could be."""
    row = _Row(predicted_property, ground_truth_property)
    return row.mean(ratio(row.total(row.hit * row.so_far / row.place, k), row.most_hits(k)))


def ndcg_at_k(predicted_property: Typed, ground_truth_property: Typed, k: int) -> Typed:
    """Discounted hits among the first k, over those of the best order."""
    row = _Row(predicted_property, ground_truth_property)
    best = func.generate_series(1, sql_cast(row.most_hits(k), Integer)).table_valued("rank").render_derived()
    ideal = select(func.sum(_discount(best.c.rank))).select_from(best).scalar_subquery()
    return row.mean(ratio(row.total(row.hit * _discount(row.place), k), ideal))


def ranked_list_auc(predicted_property: Typed, ground_truth_property: Typed) -> Typed:
    """The share of pairs of a relevant and another item of a list that stand in the right order."""
    row = _Row(predicted_property, ground_truth_property)
    missed = 1.0 - row.hit
    pairs = row.total(row.hit) * row.total(missed)
    return row.mean(ratio(row.total(missed * row.so_far), pairs))


def mean_reciprocal_rank(predicted_property: Typed, ground_truth_property: Typed) -> Typed:
    """Of the first relevant item; 0 where none is listed."""
    row = _Row(predicted_property, ground_truth_property)
    first = row.total(case(((row.hit == 1.0) & (row.so_far == 1.0), 1.0 / row.place), else_=literal(0.0, Double)))
    return row.mean(ratio(first, row.relevant_count) * row.relevant_count)


class _Row:
    """The list of one row: its items with their `place` from 1, whether they are a `hit`, and the hits `so_far`."""

    def __init__(self, predicted: Typed, truth: Typed) -> None:
        self._both = predicted.sql.is_not(None) & truth.sql.is_not(None)
        each, true = entries(predicted.sql), entries(truth.sql)
        named, relevant = item(each.c.entry), item(true.c.entry)
        best = func.min(each.c.place)
        listed = select(named.label("item"), best.label("place")).select_from(each).group_by(named).subquery()
        known = select(func.array_agg(distinct(relevant))).select_from(true).where(relevant.is_not(None))
        self._relevant = sql_cast(known.scalar_subquery(), ARRAY(Text))
        hit = case((listed.c.item == any_(self._relevant), literal(1.0, Double)), else_=literal(0.0, Double))
        ranked = select(sql_cast(listed.c.place, Double).label("place"), hit.label("hit")).where(
            listed.c.item.is_not(None)
        )
        places = ranked.subquery()
        so_far = func.sum(places.c.hit).over(order_by=places.c.place)
        self._rows = select(places.c.place, places.c.hit, so_far.label("so_far")).subquery()

    @property
    def place(self) -> Sql:
        return self._rows.c.place

    @property
    def hit(self) -> Sql:
        return self._rows.c.hit

    @property
    def so_far(self) -> Sql:
        return self._rows.c.so_far

    @property
    def relevant_count(self) -> Sql:
        """Null where there is none."""
        return sql_cast(func.cardinality(self._relevant), Double)

    def most_hits(self, k: int) -> Sql:
        count = self.relevant_count
        return case((count > float(k), literal(float(k), Double)), else_=count)

    def total(self, of: Sql, k: int | None = None) -> Sql:
        """Over the list, or its first k places."""
        summed = select(func.sum(of, type_=Double())).select_from(self._rows)
        if k is not None:
            summed = summed.where(self.place <= literal(float(k), Double))
        return func.coalesce(summed.scalar_subquery(), literal(0.0, Double), type_=Double())

    def mean(self, of: Sql) -> Typed:
        return number(func.avg(case((self._both, of), else_=null()), type_=Double()))


def _discount(rank: Sql) -> Any:
    return literal(1.0, Double) / (func.ln(sql_cast(rank, Double) + 1.0) / func.ln(literal(2.0, Double)))
