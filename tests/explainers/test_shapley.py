"""Shapley values of rows: the definition, its laws, standard errors, and agreement with the field's package."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import permutations
from math import comb
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from explainers import coalitions
from explainers.background import Background, background_of
from explainers.errors import InconsistentAnswer, InvalidRequest
from explainers.methods import shapley
from explainers.methods.shapley import ShapleyConfig
from explainers.table import Column, Table, table_of
from explainers.types import Attribution
from tests.explainers.toy_predictors import RowFormula, logistic, numeric, two_classes, wavy


def letters(count: int) -> tuple[Column, ...]:
    return numeric(" ".join(f"x{place}" for place in range(count)))


def drawn(columns: tuple[Column, ...], rows: int, seed: int = 0) -> Table:
    return Table(columns, np.random.default_rng(seed).normal(size=(rows, len(columns))))


def explained(model: Any, rows: Table, background: Background, **options: Any) -> tuple[Attribution, ...]:
    return shapley.attribute(model, rows, [f"id {n}" for n in range(len(rows))], background, ShapleyConfig(**options))


def worth(model: Any, row: NDArray[np.float64], background: Background, present: Sequence[int]) -> Any:
    """v(S), written down."""
    cells = background.table.cells.copy()
    cells[:, list(present)] = row[list(present)]
    return background.weights @ model.formula(cells)


def by_definition(model: Any, row: NDArray[np.float64], background: Background) -> NDArray[np.float64]:  # (K, M)
    """The mean gain of each player over all orders of arrival."""
    orders = list(permutations(range(len(row))))
    gains: Any = 0
    for order in orders:
        values = [worth(model, row, background, order[:count]) for count in range(len(row) + 1)]
        gain = np.zeros((len(values[0]), len(row)))
        gain[:, list(order)] = np.diff(values, axis=0).T
        gains = gains + gain
    return np.asarray(gains / len(orders))


@pytest.mark.parametrize("players", [1, 2, 3, 5])
def test_the_definition(players: int) -> None:
    columns = letters(players)
    background = background_of(drawn(columns, 4, 1), np.array([1.0, 2, 3, 4]))
    model = RowFormula(columns, lambda cells: np.concatenate([wavy(cells), np.exp(cells[:, :1])], axis=1), ("a", "b"))
    rows = drawn(columns, 3, 2)
    for row, found in zip(rows.cells, explained(model, rows, background), strict=True):
        np.testing.assert_allclose(found.values, by_definition(model, row, background), atol=1e-12)
        assert found.uncertainty is not None and not found.uncertainty.any()
        assert found.facts["exact"] and found.facts["n_samples"] == 2**players - 2
        assert found.base_values == pytest.approx(worth(model, row, background, ()), abs=1e-12)
        np.testing.assert_allclose(found.facts["prediction"], model.formula(row[None])[0], atol=1e-12)


def test_eleven_inputs_are_exact() -> None:
    """Against the sum over subsets, with its own weights."""
    columns = letters(11)
    background, rows = background_of(drawn(columns, 3, 1)), drawn(columns, 1, 2)
    model = RowFormula(columns, wavy)
    found = explained(model, rows, background, samples=5)[0]
    masks = (np.arange(2**11)[:, None] >> np.arange(11) & 1).astype(bool)
    cells = np.where(masks[:, None], rows.cells[0], background.table.cells)
    values = wavy(cells.reshape(-1, 11)).reshape(2**11, 3) @ background.weights
    for player in range(11):
        without = np.flatnonzero(~masks[:, player])
        sizes = masks[without].sum(axis=1)
        shares = np.array([1 / (11 * comb(10, size)) for size in sizes])
        expected = shares @ (values[without + 2**player] - values[without])
        assert found.values[0, player] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("players", [6, 20])
def test_scores_add_up_and_two_classes_are_opposites(players: int) -> None:
    columns = letters(players)
    model = RowFormula(columns, two_classes(lambda c: logistic(3 * wavy(c)[:, 0])), ("yes", "no"), "probability")
    rows = drawn(columns, 4, 2)
    for row, found in zip(rows.cells, explained(model, rows, background_of(drawn(columns, 5))), strict=True):
        assert found.base_values is not None and found.uncertainty is not None
        total = found.values.sum(axis=1) + found.base_values
        np.testing.assert_allclose(total, model.formula(row[None])[0], rtol=1e-9)
        assert (found.values[0] == -found.values[1]).all() and (found.uncertainty[0] == found.uncertainty[1]).all()
        assert found.targets[0].text == "yes" and found.features[1].name == "x1" and found.features[1].place == 1


def test_opposites_of_single_precision() -> None:
    """Two classes that a float32 softmax gives miss the sum of 1 a little; their scores do not."""
    columns = letters(6)

    def single(cells: NDArray[np.float64]) -> NDArray[np.float64]:
        powers = np.exp(np.concatenate([3 * wavy(cells), -cells[:, :1]], axis=1)).astype(np.float32)
        return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=float)

    model = RowFormula(columns, single, ("yes", "no"), "probability")
    rows = drawn(columns, 20, 2)
    sums = single(rows.cells).sum(axis=1)
    assert (sums != 1).any()
    for row, found in zip(rows.cells, explained(model, rows, background_of(drawn(columns, 5))), strict=True):
        assert (found.values[0] == -found.values[1]).all() and found.base_values is not None
        np.testing.assert_allclose(found.values.sum(axis=1) + found.base_values, single(row[None])[0], atol=1e-6)


def test_three_classes_cancel() -> None:
    columns = letters(5)

    def softmax(cells: NDArray[np.float64]) -> NDArray[np.float64]:
        powers = np.exp(cells[:, :3] + cells[:, 2:])
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    model = RowFormula(columns, softmax, ("a", "b", "c"), "probability")
    found = explained(model, drawn(columns, 1, 2), background_of(drawn(columns, 5)))[0]
    np.testing.assert_allclose(found.values.sum(axis=0), 0, atol=1e-14)


def test_null_players_and_equal_players() -> None:
    columns = letters(4)
    model = RowFormula(columns, lambda cells: np.exp(cells[:, :1] * cells[:, 1:2]) + cells[:, 3:])
    cells = drawn(columns, 6).cells
    cells[:, 1] = cells[:, 0]  # equal in the game too
    cells[:, 3] = 2.5  # constant
    found = explained(model, Table(columns, cells[:1]), background_of(Table(columns, cells[1:])))[0].values[0]
    np.testing.assert_allclose([found[2], found[3]], 0, atol=1e-14)
    assert found[0] == pytest.approx(found[1], abs=1e-14) and abs(found[0]) > 0.01


def test_columns_in_another_order() -> None:
    columns, order = letters(6), np.array([3, 0, 5, 1, 4, 2])
    turned = tuple(columns[place] for place in order)
    rows, reference = drawn(columns, 2, 2), drawn(columns, 5)
    there = RowFormula(turned, lambda cells: wavy(cells[:, order.argsort()]))
    plain = explained(RowFormula(columns, wavy), rows, background_of(reference))
    found = explained(
        there, Table(turned, rows.cells[:, order]), background_of(Table(turned, reference.cells[:, order]))
    )
    for one, other in zip(plain, found, strict=True):
        np.testing.assert_allclose(other.values, one.values[:, order], atol=1e-14)


@pytest.mark.parametrize("players", [5, 20])
def test_a_background_row_twice_is_twice_its_weight(players: int) -> None:
    columns = letters(players)
    reference, rows = drawn(columns, 4), drawn(columns, 2, 2)
    twice = background_of(reference.take(np.array([0, 1, 1, 2, 3])))
    weighted = background_of(reference, np.array([1.0, 2, 1, 1]))
    assert twice.id == weighted.id and len(twice) == 4
    model = RowFormula(columns, wavy)
    for one, other in zip(explained(model, rows, twice), explained(model, rows, weighted), strict=True):
        assert (one.values == other.values).all()


@pytest.mark.parametrize("players", [5, 20])
def test_outputs_scaled_and_shifted(players: int) -> None:
    columns = letters(players)
    background, rows = background_of(drawn(columns, 4)), drawn(columns, 2, 2)
    plain = explained(RowFormula(columns, wavy), rows, background)
    scaled = explained(RowFormula(columns, lambda cells: 5 - 8 * wavy(cells)), rows, background)
    for one, other in zip(plain, scaled, strict=True):
        assert one.uncertainty is not None and other.uncertainty is not None
        np.testing.assert_allclose(other.values, -8 * one.values, atol=1e-12)
        np.testing.assert_allclose(other.uncertainty, 8 * one.uncertainty, atol=1e-12)


@pytest.mark.parametrize("players", [7, 20])
def test_company_and_order_do_not_matter(players: int) -> None:
    """To the last bit, in blocks of any size, and each row is asked for no more often than it must be."""
    columns = letters(players)
    background, rows = background_of(drawn(columns, 4)), drawn(columns, 9, 2)
    ids = [f"inference {number}" for number in range(9)]
    model = RowFormula(columns, wavy)
    whole = shapley.attribute(model, rows, ids, background)
    assert sum(model.asked) <= shapley.predictions(ShapleyConfig(), background, 9)
    turned = np.array([5, 2, 8, 0, 7, 1, 3, 6, 4])
    other = shapley.attribute(model, rows.take(turned), [ids[place] for place in turned], background)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapley, "BLOCK_BYTES", 10_000)
        small = shapley.attribute(model, rows, ids, background)
    alone = [shapley.attribute(model, rows.take(np.array([n])), [ids[n]], background)[0] for n in range(9)]
    by_place = [other[turned.tolist().index(n)] for n in range(9)]
    for one, *others in zip(whole, by_place, small, alone, strict=True):
        for found in others:
            assert found.values.tobytes() == one.values.tobytes() and found.facts == one.facts
            assert found.uncertainty is not None and one.uncertainty is not None
            assert found.uncertainty.tobytes() == one.uncertainty.tobytes()


def test_seeds_follow_the_question() -> None:
    columns = letters(14)
    background, rows = background_of(drawn(columns, 4)), drawn(columns, 1)
    options: list[dict[str, Any]] = [{}, {"samples": 300}, {"seed": 1}]
    found = [explained(RowFormula(columns, wavy), rows, background, exact_rows=0, **each)[0] for each in options]
    found.append(explained(RowFormula(columns, wavy, digest="other"), rows, background, exact_rows=0)[0])
    assert len({each.facts["seed"] for each in found}) == len({each.values.tobytes() for each in found}) == 4


@pytest.mark.parametrize("players", [9, 14, 30])
def test_standard_errors_are_those_of_repeats(players: int) -> None:
    random = np.random.default_rng(0)
    pull, first, second = (random.normal(size=players) for _ in range(3))

    def value(masks: NDArray[np.bool_]) -> NDArray[np.float64]:
        return np.stack([np.tanh(masks @ pull), (masks @ first) * (masks @ second) * (masks @ pull) / players], axis=1)

    ends = value(np.array([np.ones(players), np.zeros(players)], dtype=bool))
    runs = []
    for seed in range(150):
        design = coalitions.design(players, 10 * players, seed)
        assert len(design.masks) <= 10 * players and not design.exact
        runs.append(design.scores(value(design.masks), *ends))
    spread = np.std([run.values for run in runs], axis=0, ddof=1)
    told = np.sqrt(np.mean([run.errors**2 for run in runs], axis=0))
    assert 0.9 < np.median(told / spread) < 1.15
    assert ((told / spread > 0.7) & (told / spread < 1.35)).all()
    if players == 9:  # no bias
        every = coalitions.exact_design(9)
        exact = every.scores(value(every.masks), *ends).values
        off = np.mean([run.values for run in runs], axis=0) - exact
        assert (np.abs(off) < 4 * spread / np.sqrt(150)).all()


@pytest.mark.parametrize(("players", "budget"), [(5, 20), (12, 2072), (13, 60), (20, 512), (300, 1200)])
def test_designs(players: int, budget: int) -> None:
    design = coalitions.design(players, budget, 7)
    sizes = design.masks.sum(axis=1)
    assert len(design.masks) <= budget and not (sizes == 0).any() and not (sizes == players).any()
    assert len(np.unique(design.masks, axis=0)) == len(design.masks)
    assert np.bincount(sizes)[[1, players - 1]].tolist() == [players, players]
    pairs = design.masks[design.whole :].reshape(-1, 2, players)
    assert (pairs[:, 0] ^ pairs[:, 1]).all() and len(pairs) == len(design.counts) >= min(players, 3)
    everything = sum((players - 1) / (size * (players - size)) for size in range(1, players))
    assert design.weights.sum() == pytest.approx(everything)


def test_an_additive_game_needs_no_luck() -> None:
    columns = letters(30)
    model = RowFormula(columns, lambda cells: cells.sum(axis=1, keepdims=True))
    background, rows = background_of(drawn(columns, 3)), drawn(columns, 1, 2)
    found = explained(model, rows, background, samples=200)[0]
    assert found.uncertainty is not None
    np.testing.assert_allclose(found.values[0], rows.cells[0] - background.table.cells.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(found.uncertainty, 0, atol=1e-12)
    assert found.facts["additivity_r2"] == pytest.approx([1.0])


def test_a_constant_model() -> None:
    columns = letters(3)
    found = explained(
        RowFormula(columns, lambda c: np.full((len(c), 1), 0.1)), drawn(columns, 1), background_of(drawn(columns, 3))
    )[0]
    assert not found.values.any() and found.facts["additivity_r2"] == [None]


MIXED = (Column("size"), Column("colour", "category", ("red", "blue")), Column("new", "boolean"))


def by_colour(model_columns: tuple[Column, ...]) -> Any:
    """Reads categories by name, and null as such."""

    class ByColour(RowFormula):
        def predict(self, table: Table) -> NDArray[np.float64]:
            worth: dict[Any, float] = {"red": 1.0, "blue": 2.0, "green": 9.0, None: 5.0}
            colour = np.array([worth[value] for value in table.values(1)])
            size = np.nan_to_num(table.cells[:, 0], nan=-1.0)
            return np.asarray((colour * (1 + size))[:, None])

    return ByColour(model_columns, wavy)


def test_levels_are_matched_by_name_and_nulls_are_values() -> None:
    reference = table_of(MIXED, [(1.0, "red", True), (2.0, "blue", False)])
    rows = table_of(
        (MIXED[0], Column("colour", "category", ("green", "red")), MIXED[2]),
        [(None, "green", True), (1.0, None, None)],
    )
    found = explained(by_colour(MIXED), rows, background_of(reference))
    base = (1 * 2 + 2 * 3) / 2
    for one, expected in zip(found, [9 * 0, 5 * 2], strict=True):
        assert one.values.sum() == pytest.approx(expected - base) and one.facts["imputed"] == []
        assert one.values[0, 2] == pytest.approx(0, abs=1e-14)


def test_rows_that_are_alike_are_asked_once() -> None:
    columns = letters(8)
    reference, rows = drawn(columns, 5), drawn(columns, 3, 2)
    reference.cells[:, 3:] = rows.cells[:, 3:] = 1.0
    model = RowFormula(columns, wavy)
    found = explained(model, rows, background_of(reference))
    assert (
        sum(model.asked) <= 5 + 3 + 3 * 5 * 8 < shapley.predictions(ShapleyConfig(), background_of(reference), 3) / 20
    )
    np.testing.assert_allclose(found[0].values[0, 3:], 0, atol=1e-14)


def test_nulls_are_imputed_where_the_model_takes_none() -> None:
    columns = letters(3)
    model = RowFormula(columns, lambda cells: cells.sum(axis=1, keepdims=True), accepts_nulls=False)
    reference = Table(columns, np.array([[1.0, 2, np.nan], [3, 4, 5], [3, 9, 7]]))
    found, whole = explained(model, Table(columns, np.array([[np.nan, 1, 1], [3, 1, 1.0]])), background_of(reference))
    assert found.facts["imputed"] == ["x0"] and np.isnan(found.values[0]).tolist() == [True, False, False]
    assert whole.facts["imputed"] == [] and found.facts["prediction"] == [5.0]
    np.testing.assert_allclose(found.values[0, 1:], whole.values[0, 1:])
    nothing = background_of(Table(columns, np.array([[np.nan, 1, 2]])))
    with pytest.raises(InvalidRequest, match="x0 is never known"):
        explained(model, Table(columns, np.ones((1, 3))), nothing)


def test_what_is_wrong_is_refused() -> None:
    columns = letters(3)
    rows, background = drawn(columns, 2), background_of(drawn(columns, 3))
    with pytest.raises(InconsistentAnswer, match="finite"):
        explained(RowFormula(columns, lambda cells: np.full((len(cells), 1), np.nan)), rows, background)
    with pytest.raises(InconsistentAnswer, match="shape"):
        explained(RowFormula(columns, lambda cells: cells), rows, background)
    with pytest.raises(InvalidRequest, match="infinite"):
        explained(RowFormula(columns, wavy), Table(columns, np.full((1, 3), np.inf)), background)
    with pytest.raises(InvalidRequest, match="more than 1000"):
        coalitions.budget(1001, None)
    assert explained(RowFormula(columns, wavy), drawn(columns, 0), background) == ()
    with pytest.raises(InvalidRequest, match="other columns"):
        explained(RowFormula(columns, wavy), drawn(letters(2), 1), background)


def test_work_can_be_stopped() -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    columns = letters(3)
    with pytest.raises(Stop):
        shapley.attribute(
            RowFormula(columns, wavy), drawn(columns, 1), ["a"], background_of(drawn(columns, 2)), ShapleyConfig(), stop
        )


def test_agreement_with_the_package() -> None:
    """At equal coalitions no farther from the truth; with all of them, the same."""
    shap = pytest.importorskip("shap")
    columns = letters(13)
    background, rows = background_of(drawn(columns, 5)), drawn(columns, 3, 2)
    model = RowFormula(
        columns, lambda cells: np.concatenate([wavy(cells), logistic(wavy(cells) * cells[:, :1])], axis=1), ("a", "b")
    )
    truth = np.stack([found.values.T for found in explained(model, rows, background)])
    ours = np.stack([found.values.T for found in explained(model, rows, background, samples=400, exact_rows=0)])
    kernel = shap.KernelExplainer(model.formula, background.table.cells)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.random.seed(0)
        theirs = kernel.shap_values(rows.cells, nsamples=400, l1_reg=0, silent=True)
        exact = kernel.shap_values(rows.cells[:1], nsamples=2**13, l1_reg=0, silent=True)
    np.testing.assert_allclose(exact, truth[:1], atol=1e-8)
    assert np.abs(ours - truth).max() <= np.abs(theirs - truth).max()
