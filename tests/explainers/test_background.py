"""What reference rows come to: their centres, weights and moments, in any order."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from explainers import background as module
from explainers.background import alongside, background_of, imputed, readied, summarise, without_nulls
from explainers.errors import InvalidRequest
from explainers.table import Column, Table, table_of
from tests.explainers.toy_predictors import numeric

NUMBERS = numeric("a b c")
MIXED = (Column("size"), Column("colour", "category", ("red", "blue", "grey")), Column("new", "boolean"))


def numbers(rows: int) -> Table:
    return Table(NUMBERS, np.random.default_rng(0).normal([0, 5, -1], [1, 2, 0.1], size=(rows, 3)))


def mixed(rows: int) -> Table:
    random = np.random.default_rng(1)
    colours = random.choice(["red", "blue", "grey"], rows, p=[0.6, 0.3, 0.1])
    sizes = [None if gone else float(size) for gone, size in zip(random.random(rows) < 0.2, range(rows), strict=True)]
    new = (random.random(rows) < 0.5).tolist()
    return table_of(MIXED, list(zip(sizes, colours.tolist(), new, strict=True)))


def test_centres_keep_the_mean_and_say_the_reference_s_moments() -> None:
    reference = numbers(400)
    found = summarise(reference, 20)
    assert len(found) == 20 and found.weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(found.weights @ found.table.cells, reference.cells.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.means, reference.cells.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.deviations, reference.cells.std(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.typical, np.sort(reference.cells, axis=0)[199])
    assert not found.nulls.any() and [len(levels) for levels in found.levels] == [0, 0, 0]


def test_clusters_are_found() -> None:
    corners = np.array([[0.0, 0, 0], [9, 0, 0], [0, 90, 0]])
    random = np.random.default_rng(0)
    cells = np.repeat(corners, [60, 30, 10], axis=0) + random.normal(scale=[0.1, 1, 0.001], size=(100, 3))
    found = summarise(Table(NUMBERS, cells), 3)
    order = found.weights.argsort()[::-1]
    np.testing.assert_allclose(found.weights[order], [0.6, 0.3, 0.1])
    np.testing.assert_allclose(found.table.cells[order], corners, atol=1)


def test_centres_stand_nearer_than_random_rows() -> None:
    reference = numbers(500)
    scaled = (reference.cells - reference.cells.mean(axis=0)) / reference.cells.std(axis=0)

    def spread(rows: NDArray[np.float64]) -> float:
        places = (rows - reference.cells.mean(axis=0)) / reference.cells.std(axis=0)
        return float(((scaled[:, None] - places) ** 2).sum(axis=2).min(axis=1).mean())

    random = [spread(reference.cells[seed : seed + 20]) for seed in range(0, 400, 20)]
    assert spread(summarise(reference, 20).table.cells) < 0.8 * min(random)


@pytest.mark.parametrize("reference", [numbers(300), mixed(300)])
def test_order_does_not_matter(reference: Table) -> None:
    found = summarise(reference, 10)
    other = summarise(reference.take(np.random.default_rng(5).permutation(300)), 10)
    assert other.id == found.id and other.table.cells.tobytes() == found.table.cells.tobytes()
    assert summarise(reference, 11).id != found.id
    assert summarise(reference.take(slice(0, 299)), 10).id != found.id


def test_mixed_columns_are_real_rows() -> None:
    reference = mixed(300)
    found = summarise(reference, 30)
    rows = {row.tobytes() for row in reference.cells + 0.0}
    assert all(row.tobytes() in rows for row in found.table.cells) and len(found) == 30
    assert found.levels[1].tolist() == [0, 1, 2] and found.levels[2].tolist() == [0, 1]
    np.testing.assert_allclose(found.shares[1], np.bincount(reference.cells[:, 1].astype(int)) / 300)
    assert found.nulls.tolist() == pytest.approx([np.isnan(reference.cells[:, 0]).mean(), 0, 0])
    assert found.typical[1] == 0
    for level in (0, 1, 2):  # categories are met about as often as in the reference
        met = found.weights[found.table.cells[:, 1] == level].sum()
        assert met == pytest.approx(found.shares[1][level], abs=0.05)


def test_few_rows_stay_as_they_are() -> None:
    reference = table_of(MIXED, [(1.0, "red", True), (2.0, "blue", None), (1.0, "red", True), (0.0, "red", True)])
    found = summarise(reference)
    assert sorted(found.weights.tolist()) == [0.25, 0.25, 0.5] and found.id == background_of(reference).id


def test_more_rows_than_are_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FITTED_ROWS", 100)
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 70)
    reference = numbers(1000)
    found = summarise(reference, 20)
    np.testing.assert_allclose(found.weights @ found.table.cells, reference.cells.mean(axis=0), rtol=1e-12)


def test_constant_columns_have_no_deviation_at_all() -> None:
    cells = numbers(90).cells
    cells[:, 1] = 0.1
    found = summarise(Table(NUMBERS, cells), 5)
    assert found.deviations[1] == 0
    assert not summarise(Table(NUMBERS, np.tile(cells[:1], (90, 1))), 5).deviations.any()


def test_nulls_are_left_out_and_filled() -> None:
    table = table_of(MIXED, [(None, None, True), (4.0, "blue", True), (6.0, "blue", None), (6.0, "red", False)])
    found = background_of(table)
    assert found.means[0] == pytest.approx(16 / 3) and found.typical.tolist() == [6, 1, 1]
    whole = without_nulls(found)
    assert whole.id == found.id and not np.isnan(whole.table.cells).any() and not whole.nulls.any()
    np.testing.assert_allclose(whole.shares[1], [1 / 3, 2 / 3])
    assert imputed(found, table).cells[0].tolist() == [6, 1, 1]
    _, rows, missing = readied(found, table, accepts_nulls=False)
    assert missing.sum() == 3 and not np.isnan(rows.cells).any()
    assert not readied(found, table, accepts_nulls=True)[2].any()


def test_levels_meet_by_name() -> None:
    known = background_of(table_of(MIXED, [(1.0, "red", True), (1.0, "pink", True)]))
    rows = table_of((MIXED[0], Column("colour", "category", ("new", "pink")), MIXED[2]), [(1.0, "pink", True)])
    there, here = alongside(known, rows)
    assert there.table.columns == here.columns and here.values(1) == ["pink"]
    assert sorted(map(str, there.table.values(1))) == ["pink", "red"]
    assert here.columns[1].levels == ("red", "blue", "grey", "pink", "new")
    with pytest.raises(InvalidRequest):
        alongside(known, Table(NUMBERS, np.zeros((1, 3))))


@pytest.mark.parametrize(
    "cells", [np.zeros((0, 3)), np.array([[1.0, np.inf, 0]]), np.array([[1e300, 0, 0], [-1e300, 0, 0]])]
)
def test_what_cannot_be_summarised(cells: NDArray[np.float64]) -> None:
    with pytest.raises(InvalidRequest, match="reference data"):
        summarise(Table(NUMBERS, cells))


def test_weights_are_positive() -> None:
    with pytest.raises(InvalidRequest, match="positive weight"):
        background_of(numbers(2), np.array([1.0, 0]))
