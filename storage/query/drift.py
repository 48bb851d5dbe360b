"""Drift: how far the values of a target are from those of a base, and the table that the stability index sums up.

Context: the contract fixes formulas and bins, not what thresholds are nor how the tests are carried out. Decisions:
nulls are in no bin; bins are those of the base of each group; Thresholds are the 95 % quantile of each divergence
between random halves of the base; chi-squared is the test of homogeneity without correction, Kolmogorov-Smirnov is
exact for small samples. Consequence: all that leaves the database are counts, and the maths is plain numpy over them.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.ext.asyncio import AsyncSession

from storage.errors import InvalidQuery
from storage.query.answers import MOST_ROWS, TIMEOUT_S, fetch
from storage.query.divergence import DIVERGENCES, shares, thresholds
from storage.query.drift_request import TEST, THRESHOLDS, Drift, key_of
from storage.query.histograms import BASE, Asked, counts
from storage.query.schema import QueryModel
from storage.query.significance import chi_squared, kolmogorov_smirnov

Key: TypeAlias = tuple[Any, ...]
Group: TypeAlias = tuple[Key, Any]
"""Of the target: its keys, and its time or batch."""
Bins: TypeAlias = dict[Any, int]


@dataclass(slots=True)
class _Histograms:
    """Counts by bin; `seen` are all groups of the target, those without values among them."""

    base: dict[Key, Bins] = field(default_factory=dict)
    target: dict[Group, Bins] = field(default_factory=dict)
    edges: dict[Key, tuple[float, ...]] = field(default_factory=dict)


async def drift(
    session: AsyncSession, model: QueryModel, asked: Drift, *, timeout_s: float = TIMEOUT_S
) -> list[dict[str, Any]]:
    """A row for each group and time of the target: a figure for each property, null where a side has no values.

    Raises InvalidQuery for what the model's columns do not allow, and for a query that takes longer than `timeout_s`.
    """
    statements = {key_of(subject): counts(model, asked, subject) for subject in asked.subjects}
    deadline = time.monotonic() + timeout_s
    figures: dict[str, dict[Group, Any]] = {}
    for key, statement in statements.items():
        found = await fetch(session, statement.statement.limit(MOST_ROWS + 1), max(deadline - time.monotonic(), 0.001))
        figures[key] = await asyncio.to_thread(_figures, asked, statement, _bounded(found))
    groups = {group for found in figures.values() for group in found}
    if not groups and not asked.group_by and asked.rollup is None:
        groups = {((), None)}
    keys = next(iter(statements.values())).keys
    rows = []
    for group in sorted(groups, key=_place):
        values = {key: found.get(group) for key, found in figures.items()}
        rows.append(values | _named(asked, keys, group))
    return rows


async def bucket_table(
    session: AsyncSession, model: QueryModel, asked: Drift, *, timeout_s: float = TIMEOUT_S
) -> list[dict[str, Any]]:
    """A row for each group, time and bin in which either side has values; none where a side has no values at all."""
    statement = counts(model, asked, asked.subjects[0])
    found = _bounded(await fetch(session, statement.statement.limit(MOST_ROWS + 1), timeout_s))
    histograms = _histograms(statement, found)
    rows = []
    for group in sorted(histograms.target, key=_place):
        base, target = histograms.base.get(group[0], {}), histograms.target[group]
        if base and target:
            named = _named(asked, statement.keys, group)
            rows += _buckets(statement, base, target, histograms.edges.get(group[0]), named)
    return rows


def _bounded(found: Sequence[Any]) -> Sequence[Any]:
    if len(found) > MOST_ROWS:
        raise InvalidQuery(f"there are more than {MOST_ROWS} groups and bins: ask for fewer")
    return found


def _figures(asked: Drift, statement: Asked, found: Sequence[Any]) -> dict[Group, Any]:
    if statement.distance:
        return {(tuple(keys), roll): _tested(*distance) for *keys, roll, distance in map(_split, found)}
    histograms = _histograms(statement, found)
    if asked.metric == THRESHOLDS:
        return {(key, None): _chance(bins) for key, bins in histograms.base.items()}
    return {
        group: _figure(str(asked.metric), histograms.base.get(group[0], {}), bins)
        for group, bins in histograms.target.items()
    }


def _split(row: Any) -> list[Any]:
    """Keys and time, then together the distance and the sizes of both samples."""
    return [*row[:-3], row[-3:]]


def _tested(distance: float | None, whole: float | None, total: float | None) -> float | None:
    if distance is None or not whole or not total:
        return None
    return _power(kolmogorov_smirnov(distance, int(whole), int(total)))


def _power(logarithm: float) -> float:
    """-log10 of a p-value, from its natural logarithm."""
    return abs(logarithm / math.log(10))


def _chance(bins: Bins) -> dict[str, float] | None:
    return thresholds(np.array(list(bins.values()), dtype=np.int64))


def _figure(metric: str, base: Bins, target: Bins) -> float | None:
    if not base or not target:
        return None
    both = _aligned(base, target)
    if metric == TEST:
        return _power(chi_squared(both))
    p, q = shares(both)
    return float(DIVERGENCES[metric](p, q))


def _aligned(base: Bins, target: Bins) -> NDArray[np.float64]:  # (2, bins)
    """Over the bins in which either side has values: where both are empty they do not differ."""
    bins = sorted(base.keys() | target.keys())
    return np.array([[side.get(each, 0) for each in bins] for side in (base, target)], dtype=np.float64)


def _histograms(statement: Asked, found: Sequence[Any]) -> _Histograms:
    histograms = _Histograms()
    for row in found:
        side, *keys, roll, place, number, edges = row
        if side == BASE:
            bins = histograms.base.setdefault(tuple(keys), {})
            if edges is not None:
                histograms.edges[tuple(keys)] = tuple(edges)
        else:
            bins = histograms.target.setdefault((tuple(keys), roll), {})
        if place is not None:
            bins[place] = number
    return histograms


def _place(group: Group) -> list[tuple[bool, Any]]:
    """In the order of keys, then of time; nulls last."""
    return [(each is None, 0 if each is None else each) for each in (*group[0], group[1])]


def _named(asked: Drift, shapes: Sequence[Any], group: Group) -> dict[str, Any]:
    values = zip(asked.group_by, shapes, group[0], strict=True)
    named = {name.name: None if value is None else shape(value) for name, shape, value in values}
    return named if asked.rollup is None else named | {"rollup": _moment(group[1])}


def _moment(value: Any) -> Any:
    """UTC to the second; batches as they are."""
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if isinstance(value, datetime) else value


def _buckets(
    statement: Asked, base: Bins, target: Bins, edges: tuple[float, ...] | None, named: dict[str, Any]
) -> list[dict[str, Any]]:
    labels = _intervals(edges) if edges is not None else _categories(statement, base, target)
    sides = {"base": _merged(base, edges), "target": _merged(target, edges)}
    table = np.array([[side.get(place, 0) for place in labels] for side in sides.values()], dtype=np.float64)
    p, q = shares(table)
    rows = []
    for index, (bucket, bounds) in enumerate(labels.values()):
        row = {"bucket": bucket} | named
        for side, number, share, total in zip(
            sides, table[:, index], (p[index], q[index]), table.sum(axis=1), strict=True
        ):
            row |= {f"{side}_{name}": value for name, value in (bounds | _of_bucket(number, share, total)).items()}
        apart, ratio = float(p[index] - q[index]), float(np.log(p[index] / q[index]))
        rows.append(row | {"probability_difference": apart, "ln_probability_difference": ratio, "psi": apart * ratio})
    return rows


def _of_bucket(number: float, share: float, total: float) -> dict[str, Any]:
    return {
        "count_per_bucket": int(number),
        "probability_per_bucket": float(share),
        "ln_probability_per_bucket": math.log(share),
        "total": int(total),
    }


def _intervals(edges: tuple[float, ...]) -> dict[Any, tuple[Any, dict[str, float]]]:
    """The bins between different quantiles. The outermost are open, but shown to the ends of the base."""
    inner = sorted(set(edges[1:-1]))
    bounds = [edges[0], *inner, edges[-1]]
    return {
        place: (f"bucket_{place + 1}", {"bucket_min": bounds[place], "bucket_max": bounds[place + 1]})
        for place in range(len(inner) + 1)
    }


def _categories(statement: Asked, base: Bins, target: Bins) -> dict[Any, tuple[Any, dict[str, float]]]:
    return {place: (statement.category(place), {}) for place in sorted(base.keys() | target.keys())}


def _merged(bins: Bins, edges: tuple[float, ...] | None) -> Bins:
    """Bins numbered without those that lie between equal quantiles, which are always empty."""
    if edges is None:
        return bins
    return {len(set(edges[1 : place + 1])): number for place, number in bins.items()}
