"""The rows that stand for "nothing known": what a model's reference data comes to.

Twenty weighted k-means centres err an eighth as much as twenty random rows; the choice decides every Shapley value, so
it has an id, and everything here depends on the reference rows alone, not on their order. Columns count equally in the
distance: a number by its standard deviation, a category and a null by indicators scaled to the same total variance.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from explainers.errors import InvalidRequest
from explainers.seeds import generator
from explainers.table import Column, Table

SIZE = 50
"""Centres, unless told otherwise."""

ROUNDS = 100
"""Of Lloyd's algorithm at most."""

FITTED_ROWS = 20_000
"""Centres are fitted to at most so many different rows, drawn by weight; every row counts in what they become."""

INDICATORS = 20
"""Of a category, at most so many of the commonest levels count in the distance."""

ROWS_AT_ONCE = 16_384


@dataclass(frozen=True, slots=True, eq=False)
class Background:
    """B weighted rows, and what all the reference rows together say of each of the M columns."""

    table: Table  # (B, M)
    weights: NDArray[np.float64]  # (B,), sum 1
    means: NDArray[np.float64]  # (M,), without nulls
    deviations: NDArray[np.float64]  # (M,), exactly 0 for a constant column
    nulls: NDArray[np.float64]  # (M,), share of nulls
    typical: NDArray[np.float64]  # (M,), median or commonest level; NaN for a column of nulls
    levels: tuple[NDArray[np.float64], ...]  # M of (L,), cells of a category or boolean, NaN for null; else none
    shares: tuple[NDArray[np.float64], ...]  # M of (L,), how common they are
    id: str

    def __len__(self) -> int:
        return len(self.table)


def summarise(reference: Table, size: int = SIZE) -> Background:
    """At most `size` weighted rows for all of `reference`.

    Centres of clusters where all columns are numbers without nulls, so that the mean row is kept exactly; else the real
    row nearest to each centre. Raises InvalidRequest for no rows, no columns, or numbers that are not finite.
    """
    rows, weights = _canonical(reference, np.ones(len(reference)))
    if len(rows) <= size:
        return _described(rows, weights, rows, weights)
    points = _points(rows, weights)
    clusters = _clusters(points, weights, size)
    mixed = is_discrete(rows.columns).any() or bool(np.isnan(rows.cells).any())
    chosen = rows.cells[_medoids(points, weights, clusters)] if mixed else _means(rows.cells, weights, clusters)
    sizes = np.bincount(clusters, weights).astype(float)
    return _described(rows.with_cells(chosen), sizes, rows, weights)


def background_of(rows: Table, weights: NDArray[np.float64] | None = None) -> Background:
    """Rows as they are, equal ones together: for small or chosen sets. `weights` (B,) are equal unless given."""
    once, shares = _canonical(rows, np.ones(len(rows)) if weights is None else weights)
    return _described(once, shares, once, shares)


def is_discrete(columns: tuple[Column, ...]) -> NDArray[np.bool_]:  # (M,)
    return np.array([column.is_category or column.kind == "boolean" for column in columns], dtype=bool)


def alongside(background: Background, rows: Table) -> tuple[Background, Table]:
    """Both on the same columns, so that their cells can be mixed: levels that only `rows` have come last.

    Raises InvalidRequest where columns differ, and for infinite numbers.
    """
    if np.isinf(rows.cells).any():
        raise InvalidRequest("the rows hold infinite numbers")
    own, others = background.table.columns, rows.columns
    if [(c.name, c.kind) for c in own] != [(c.name, c.kind) for c in others]:
        raise InvalidRequest("the rows have other columns than the reference data")
    columns, cells = [], rows.cells.copy()
    for place, (column, other) in enumerate(zip(own, others, strict=True)):
        numbers = {level: number for number, level in enumerate(column.levels)}
        moved = np.array([numbers.setdefault(level, len(numbers)) for level in other.levels], dtype=float)
        known = ~np.isnan(cells[:, place])
        if len(moved):
            cells[known, place] = moved[cells[known, place].astype(int)]
        columns.append(replace(column, levels=tuple(numbers)))
    joint = Table(tuple(columns), cells)
    return replace(background, table=joint.with_cells(background.table.cells)), joint


def readied(
    background: Background, rows: Table, accepts_nulls: bool
) -> tuple[Background, Table, NDArray[np.bool_]]:  # and (R, M)
    """Both as a model can take them together, and which cells of `rows` were null and had to be imputed.

    Raises InvalidRequest as `alongside` and `imputed` do.
    """
    background, rows = alongside(background, rows)
    if accepts_nulls:
        return background, rows, np.zeros(rows.cells.shape, dtype=bool)
    return without_nulls(background), imputed(background, rows), np.isnan(rows.cells)


def without_nulls(background: Background) -> Background:
    """For models that take none: typical values in place of nulls, which are never drawn. The id stays."""
    kept = [~np.isnan(cells) for cells in background.levels]
    shares = [share[keep] / (share[keep].sum() or 1.0) for share, keep in zip(background.shares, kept, strict=True)]
    return replace(
        background,
        table=imputed(background, background.table),
        nulls=np.zeros_like(background.nulls),
        levels=tuple(cells[keep] for cells, keep in zip(background.levels, kept, strict=True)),
        shares=tuple(shares),
    )


def imputed(background: Background, rows: Table) -> Table:
    """The rows with the typical value of its column in place of each null.

    Raises InvalidRequest for a null in a column of which nothing but nulls is known.
    """
    nulls = np.isnan(rows.cells)
    hopeless = (nulls & np.isnan(background.typical)).any(axis=0)
    if hopeless.any():
        name = rows.columns[int(hopeless.argmax())].name
        raise InvalidRequest(f"{name} is never known in the reference data, and the model accepts no nulls")
    return rows.with_cells(np.where(nulls, background.typical, rows.cells))


def _canonical(rows: Table, weights: NDArray[np.float64]) -> tuple[Table, NDArray[np.float64]]:
    """Each different row once, in an order of its own, with the sum of its weights."""
    if not rows.cells.size:
        raise InvalidRequest("the reference data is empty")
    if np.isinf(rows.cells).any():
        raise InvalidRequest("the reference data holds infinite numbers")
    if len(weights) != len(rows) or not (weights > 0).all():
        raise InvalidRequest("each row of a background needs a positive weight")
    once, places = rows.distinct()
    order = np.lexsort(once.cells.T[::-1])
    cells = once.cells[order] + 0.0  # one zero, not two
    return rows.with_cells(cells), np.bincount(places, weights)[order].astype(float)


def _described(table: Table, weights: NDArray[np.float64], reference: Table, counts: NDArray[np.float64]) -> Background:
    """A background of `table`, with what `reference` says of the columns."""
    shares = counts / counts.sum()
    discrete = is_discrete(reference.columns)
    cells, nulls = reference.cells, np.isnan(reference.cells)
    means, deviations = _moments(cells, shares)
    if not (np.isfinite(means).all() and np.isfinite(deviations).all()):
        raise InvalidRequest("the reference data holds numbers too large to standardise")
    levels = [_levels(cells[:, place], shares) if discrete[place] else _NONE for place in range(cells.shape[1])]
    typical = [_typical(cells[:, place], shares, discrete[place]) for place in range(cells.shape[1])]
    found = Background(
        table,
        weights / weights.sum(),
        means,
        deviations,
        shares @ nulls,
        np.array(typical),
        tuple(cells for cells, _ in levels),
        tuple(share for _, share in levels),
        "",
    )
    return replace(found, id=_identity(found))


_NONE = (np.zeros(0), np.zeros(0))


def _identity(background: Background) -> str:
    columns = [(column.name, column.kind, column.levels) for column in background.table.columns]
    digest = hashlib.sha256(json.dumps(columns).encode())
    singles = (background.table.cells, background.weights, background.means, background.deviations, background.nulls)
    for array in (*singles, background.typical, *background.levels, *background.shares):
        digest.update(np.ascontiguousarray(array).tobytes())
    return f"sha256:{digest.hexdigest()}"


def _moments(
    cells: NDArray[np.float64], shares: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:  # (n, M), (n,) -> (M,), (M,)
    """Mean and standard deviation of what is known of each column; 0 and 0 of nothing."""
    known = ~np.isnan(cells)
    filled = np.where(known, cells, 0.0)
    mass = shares @ known
    with np.errstate(over="ignore", invalid="ignore"):
        means = shares @ filled / np.where(mass > 0, mass, 1.0)
        squares = shares @ np.where(known, filled - means, 0.0) ** 2
    constant = np.where(known, cells, -np.inf).max(axis=0) == np.where(known, cells, np.inf).min(axis=0)
    deviations = np.sqrt(squares / np.where(mass > 0, mass, 1.0))
    return means, np.where(constant | (mass == 0), 0.0, deviations)


def _levels(cells: NDArray[np.float64], shares: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    levels, places = np.unique(cells, return_inverse=True)  # null last
    return levels, np.bincount(places, shares).astype(float)


def _typical(cells: NDArray[np.float64], shares: NDArray[np.float64], discrete: bool) -> float:
    known = ~np.isnan(cells)
    if not known.any():
        return float("nan")
    levels, mass = _levels(cells[known], shares[known])
    place = mass.argmax() if discrete else np.searchsorted(mass.cumsum(), mass.sum() / 2 * (1 - 1e-12))
    return float(levels[place])


def _points(rows: Table, weights: NDArray[np.float64]) -> NDArray[np.float64]:  # (n, D)
    """Coordinates in which each column has a total variance of 1 at most."""
    shares, discrete = weights / weights.sum(), is_discrete(rows.columns)
    parts = []
    means, deviations = _moments(rows.cells, shares)
    for place in range(rows.cells.shape[1]):
        cells = rows.cells[:, place]
        if discrete[place]:
            parts.append(_indicators(cells, shares))
            continue
        if deviations[place] > 0:
            parts.append(np.nan_to_num((cells - means[place]) / deviations[place])[:, None])
        if np.isnan(cells).any():
            parts.append(_indicators(np.isnan(cells).astype(float), shares))
    return np.concatenate(parts, axis=1) if parts else np.zeros((len(rows), 1))


def _indicators(cells: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[np.float64]:  # (n,) -> (n, L)
    places = np.unique(cells, return_inverse=True)[1]
    mass = np.bincount(places, shares)
    common = np.sort((-mass).argsort(kind="stable")[:INDICATORS])
    spread = 1 - (mass**2).sum()
    scaled: NDArray[np.float64] = (places[:, None] == common) / np.sqrt(spread if spread > 1e-12 else 1.0)
    return scaled


def _clusters(points: NDArray[np.float64], weights: NDArray[np.float64], size: int) -> NDArray[np.int_]:  # (n,)
    """Which of at most `size` clusters each point belongs to; numbered without gaps."""
    random = generator(0)
    some, mass = points, weights
    if len(points) > FITTED_ROWS:
        places = np.sort(random.choice(len(points), FITTED_ROWS, replace=False, p=weights / weights.sum()))
        some, mass = points[places], np.ones(FITTED_ROWS)  # drawn by weight already
    centres = _spread(some, mass, size, random)
    nearest = _nearest(some, centres)
    for _ in range(ROUNDS):
        nearest = np.unique(nearest, return_inverse=True)[1]
        centres = _means(some, mass, nearest)
        again = _nearest(some, centres)
        if (again == nearest).all():
            break
        nearest = again
    return np.asarray(np.unique(_nearest(points, centres), return_inverse=True)[1])


def _spread(
    points: NDArray[np.float64], weights: NDArray[np.float64], size: int, random: np.random.Generator
) -> NDArray[np.float64]:  # (size, D)
    """First centres by k-means++ (Arthur and Vassilvitskii 2007): far from each other."""
    chosen = [int(random.choice(len(points), p=weights / weights.sum()))]
    distance = ((points - points[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < size and (weights * distance).sum() > 0:
        mass = (weights * distance).cumsum()
        chosen.append(int(np.searchsorted(mass, random.random() * mass[-1], side="right").clip(max=len(mass) - 1)))
        distance = np.minimum(distance, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
    return points[chosen]


def _nearest(points: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.int_]:  # (n,)
    lengths = (centres**2).sum(axis=1)
    blocks = [points[start : start + ROWS_AT_ONCE] for start in range(0, len(points), ROWS_AT_ONCE)]
    return np.concatenate([(lengths - 2 * block @ centres.T).argmin(axis=1) for block in blocks])


def _means(
    cells: NDArray[np.float64], weights: NDArray[np.float64], clusters: NDArray[np.int_]
) -> NDArray[np.float64]:  # (B, D)
    sums = [np.bincount(clusters, weights * column) for column in cells.T]
    return np.stack(sums, axis=1) / np.bincount(clusters, weights)[:, None]


def _medoids(
    points: NDArray[np.float64], weights: NDArray[np.float64], clusters: NDArray[np.int_]
) -> NDArray[np.int_]:  # (B,)
    """Of each cluster the row nearest to its centre."""
    centres = _means(points, weights, clusters)
    distance = ((points - centres[clusters]) ** 2).sum(axis=1)
    order = np.lexsort((distance, clusters))
    return order[np.unique(clusters[order], return_index=True)[1]]
