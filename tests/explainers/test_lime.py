"""LIME of rows: its fit, its errors, what rows share, and agreement with the field's package."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from explainers.background import Background, background_of
from explainers.errors import InconsistentAnswer, InvalidRequest
from explainers.local_fit import fitted
from explainers.methods import lime
from explainers.methods.lime import LimeConfig
from explainers.seeds import bucket
from explainers.table import Column, Table, table_of
from explainers.types import Attribution
from tests.explainers.toy_predictors import RowFormula, logistic, numeric, two_classes, wavy

COLUMNS = numeric("a b c d e")
MIXED = (Column("size"), Column("colour", "category", ("red", "blue")), Column("new", "boolean"))


def drawn(rows: int, seed: int = 0) -> Table:
    return Table(COLUMNS, np.random.default_rng(seed).normal([0, 1, 2, 3, 4], [1, 2, 3, 1, 1], size=(rows, 5)))


def explained(model: Any, rows: Table, background: Background, **options: Any) -> tuple[Attribution, ...]:
    return lime.attribute(model, rows, [f"id {n}" for n in range(len(rows))], background, LimeConfig(**options))


def test_the_fit_is_weighted_ridge() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    random = np.random.default_rng(0)
    regressors, outputs, kernel = random.normal(size=(50, 4)), random.normal(size=(50, 3)), random.random(50)
    counts = random.integers(1, 4, 50).astype(float)
    found = fitted(regressors, outputs, kernel, 2.0, counts)
    theirs = linear_model.Ridge(alpha=2.0).fit(regressors, outputs, sample_weight=kernel * counts)
    np.testing.assert_allclose(found.slopes, theirs.coef_, rtol=1e-10)
    np.testing.assert_allclose(found.intercepts, theirs.intercept_, rtol=1e-10)
    left = (kernel * counts) @ (outputs - theirs.predict(regressors)) ** 2
    mean = (kernel * counts) @ outputs / (kernel @ counts)
    np.testing.assert_allclose(found.r2, 1 - left / ((kernel * counts) @ (outputs - mean) ** 2), rtol=1e-10)
    apart = np.repeat(np.arange(50), counts.astype(int))  # drawn twice is two rows
    spelt = fitted(regressors[apart], outputs[apart], kernel[apart], 2.0)
    np.testing.assert_allclose(spelt.slopes, found.slopes, rtol=1e-10)
    np.testing.assert_allclose(spelt.errors, found.errors, rtol=1e-10)
    assert spelt.samples == pytest.approx(found.samples)


def test_a_linear_model_is_its_slopes_per_deviation() -> None:
    slopes = np.array([3.0, 0, -1, 0.5, 2])
    model = RowFormula(COLUMNS, lambda cells: (cells @ slopes)[:, None])
    background = background_of(drawn(200))
    found = explained(model, drawn(2, 1), background)[0]
    np.testing.assert_allclose(found.values[0], slopes * background.deviations, rtol=0.01, atol=1e-4)
    assert found.values[0, 1] == pytest.approx(0, abs=0.01)
    assert found.facts["local_fit_r2"][0] > 0.999 and found.base_values is None
    assert found.facts["effective_samples"] < 2000
    assert found.facts["prediction"] == pytest.approx((drawn(2, 1).cells @ slopes)[:1])


def test_two_classes_are_opposites() -> None:
    model = RowFormula(COLUMNS, two_classes(lambda c: logistic(3 * wavy(c)[:, 0])), ("yes", "no"), "probability")
    for found in explained(model, drawn(3, 1), background_of(drawn(50))):
        assert (found.values[0] == -found.values[1]).all() and (found.values != 0).all()
        assert found.uncertainty is not None and (found.uncertainty[0] == found.uncertainty[1]).all()


def test_constant_columns_and_constant_models() -> None:
    cells = drawn(50).cells
    cells[:, 2] = 7.0
    background = background_of(Table(COLUMNS, cells))
    found = explained(RowFormula(COLUMNS, wavy), drawn(1, 1), background)[0]
    assert found.values[0, 2] == 0 and found.uncertainty is not None and found.uncertainty[0, 2] == 0
    flat = explained(RowFormula(COLUMNS, lambda c: np.full((len(c), 1), 0.1)), drawn(1, 1), background)[0]
    np.testing.assert_allclose(flat.values, 0, atol=1e-15)
    assert flat.facts["local_fit_r2"] == [None]


@pytest.mark.parametrize("around", [False, True])
def test_company_and_order_do_not_matter(around: bool) -> None:
    """To the last bit; rows of one bucket share one call."""
    background, rows, config = background_of(drawn(50)), drawn(12, 1), LimeConfig(300, around_instance=around)
    ids = [f"inference {number}" for number in range(12)]
    model = RowFormula(COLUMNS, wavy)
    whole = lime.attribute(model, rows, ids, background, config)
    assert sum(model.asked) == lime.predictions(config, ids)
    assert len(model.asked) == 1 + (12 if around else len({bucket(id, 8) for id in ids}))
    turned = np.random.default_rng(0).permutation(12)
    other = lime.attribute(model, rows.take(turned), [ids[place] for place in turned], background, config)
    for place in range(12):
        alone = lime.attribute(model, rows.take(np.array([place])), [ids[place]], background, config)[0]
        for found in (alone, other[turned.tolist().index(place)]):
            assert found.values.tobytes() == whole[place].values.tobytes() and found.facts == whole[place].facts
            assert found.uncertainty is not None and whole[place].uncertainty is not None
            assert found.uncertainty.tobytes() == whole[place].uncertainty.tobytes()  # type: ignore[union-attr]


def test_draws_are_kept_for_the_next_call() -> None:
    background, rows, kept = background_of(drawn(50)), drawn(6, 1), {}  # type: ignore[var-annotated]
    ids, model = [str(number) for number in range(6)], RowFormula(COLUMNS, wavy)
    plain = lime.attribute(model, rows, ids, background)
    first = lime.attribute(model, rows, ids, background, kept=kept)
    model.asked.clear()
    again = lime.attribute(model, rows, ids, background, kept=kept)
    assert model.asked == [6] and len(kept) == len({bucket(id, 8) for id in ids})
    for one, *others in zip(plain, first, again, strict=True):
        assert all(found.values.tobytes() == one.values.tobytes() for found in others)
    lime.attribute(model, rows, ids, background_of(drawn(51)), kept=kept)
    assert sum(model.asked) > 2000  # another background, other draws


def test_seeds_follow_the_question() -> None:
    background, rows, model = background_of(drawn(50)), drawn(1, 1), RowFormula(COLUMNS, wavy)
    options: list[dict[str, Any]] = [{}, {"samples": 300}, {"seed": 1}, {"around_instance": True}, {"buckets": 3}]
    found = [explained(model, rows, background, **each)[0] for each in options]
    found.append(explained(RowFormula(COLUMNS, wavy, digest="other"), rows, background)[0])
    found.append(explained(model, rows, background_of(drawn(51)))[0])
    assert len({each.facts["seed"] for each in found}) == len({each.values.tobytes() for each in found}) == 7


def test_standard_errors_are_those_of_repeats() -> None:
    model = RowFormula(COLUMNS, wavy)
    background, rows = background_of(drawn(50)), drawn(4, 1)
    runs = [explained(model, rows, background, samples=500, seed=seed) for seed in range(150)]
    spread = np.std([[found.values for found in run] for run in runs], axis=0, ddof=1)
    told = np.sqrt(
        np.mean([[found.uncertainty**2 for found in run if found.uncertainty is not None] for run in runs], 0)
    )
    assert 0.92 < np.median(told / spread) < 1.08
    assert ((told / spread > 0.8) & (told / spread < 1.25)).all()


def test_more_buckets_make_averages_better() -> None:
    model, background, rows = RowFormula(COLUMNS, wavy), background_of(drawn(50)), drawn(48, 1)

    def spread(buckets: int) -> float:
        means = [
            np.mean(
                [found.values for found in explained(model, rows, background, samples=200, buckets=buckets, seed=seed)],
                0,
            )
            for seed in range(25)
        ]
        return float(np.std(means, axis=0, ddof=1).mean())

    assert spread(8) < 0.6 * spread(1)


def by_name(table: Table) -> NDArray[np.float64]:
    worth: dict[Any, float] = {"red": 1.0, "blue": 2.0, "green": 9.0, None: 5.0, True: 1.0, False: 0.0}
    colours, new = ([worth[value] for value in table.values(place)] for place in (1, 2))
    sizes = np.nan_to_num(table.cells[:, 0], nan=10.0)
    return np.asarray((np.array(colours) + sizes + 3 * np.array(new))[:, None])


class ByName(RowFormula):
    def predict(self, table: Table) -> NDArray[np.float64]:
        return by_name(table)


def test_categories_booleans_and_nulls() -> None:
    reference: list[tuple[Any, ...]] = [(float(n % 7), ("red", "blue")[n % 2], n % 3 == 0) for n in range(84)]
    reference += [(None, "blue", True), (None, None, False)] * 8
    background = background_of(table_of(MIXED, reference))
    rows = table_of(MIXED, [(1.0, "red", True), (None, "blue", False), (2.0, None, None), (0.0, "green", True)])
    found = explained(ByName(MIXED, wavy), rows, background, samples=8000)
    red, null, gone, green = (one.values[0] for one in found)
    shares = background.shares[1]  # red, blue, null
    others = (2 * shares[1] + 5 * shares[2]) / (shares[1] + shares[2])
    assert red[1] == pytest.approx(1 - others, abs=0.15) and red[2] == pytest.approx(3, abs=0.15)
    assert null[0] == pytest.approx(10 - 3, abs=0.4) and null[2] == pytest.approx(-3, abs=0.3)
    assert gone[1] == pytest.approx(5 - (1 * shares[0] + 2 * shares[1]) / (shares[0] + shares[1]), abs=0.2)
    errors = [one.uncertainty[0] for one in found if one.uncertainty is not None]
    assert (
        errors[3][1] > 20 * errors[0][1] and abs(green[1]) < 9
    )  # a level that no sample meets tells little, and says so


def test_nulls_are_imputed_where_the_model_takes_none() -> None:
    model = RowFormula(COLUMNS, lambda cells: cells.sum(axis=1, keepdims=True), accepts_nulls=False)
    cells = drawn(60).cells
    cells[:20, 0] = np.nan
    background = background_of(Table(COLUMNS, cells))
    row = drawn(1, 1).cells
    row[0, 3] = np.nan
    found = explained(model, Table(COLUMNS, row), background)[0]
    assert found.facts["imputed"] == ["d"] and np.isnan(found.values[0]).tolist() == [False, False, False, True, False]
    assert found.uncertainty is not None and np.isnan(found.uncertainty[0, 3])


def test_around_the_row_is_local() -> None:
    model = RowFormula(COLUMNS, lambda cells: cells[:, :1] ** 2)
    background, row = background_of(drawn(300)), np.array([[3.0, 1, 2, 3, 4]])
    near = explained(model, Table(COLUMNS, row), background, around_instance=True)[0].values[0, 0]
    assert near == pytest.approx(2 * 3 * background.deviations[0], rel=0.1)
    assert explained(model, Table(COLUMNS, row), background)[0].values[0, 0] < 0.7 * near


def test_a_row_beyond_all_samples_says_that_it_stands_alone() -> None:
    far = Table(COLUMNS, np.array([[1e200, 0, 0, 0, 0], [60.0, 0, 0, 0, 0]]))
    for found in explained(RowFormula(COLUMNS, lambda cells: np.tanh(cells[:, :1])), far, background_of(drawn(50))):
        assert found.facts["effective_samples"] == pytest.approx(1)
        assert np.abs(found.values).max() < 1e-9


def test_what_is_wrong_is_refused() -> None:
    background = background_of(drawn(5))
    with pytest.raises(InconsistentAnswer, match="finite"):
        explained(RowFormula(COLUMNS, lambda cells: cells[:, :1] * np.nan), drawn(1), background)
    with pytest.raises(InconsistentAnswer, match="too large"):
        explained(RowFormula(COLUMNS, lambda cells: cells[:, :1] * 1e300), drawn(1), background)
    with pytest.raises(InvalidRequest, match="two samples"):
        explained(RowFormula(COLUMNS, wavy), drawn(1), background, samples=1)
    assert explained(RowFormula(COLUMNS, wavy), drawn(0), background) == ()


def test_agreement_with_the_package() -> None:
    """Means over seeds, feature by feature, within three standard errors of their difference."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = pytest.importorskip("lime.lime_tabular")
    reference, row = drawn(300), drawn(1, 1)
    model = RowFormula(COLUMNS, two_classes(lambda c: logistic(3 * wavy(c)[:, 0])), ("yes", "no"), "probability")
    theirs = []
    for seed in range(60):
        explainer = package.LimeTabularExplainer(
            reference.cells, discretize_continuous=False, feature_selection="none", random_state=seed
        )
        told = explainer.explain_instance(row.cells[0], model.formula, labels=(0,), num_features=5, num_samples=1000)
        theirs.append([dict(told.local_exp[0])[place] for place in range(5)])
    background = background_of(reference)
    ours = [explained(model, row, background, samples=1000, seed=seed)[0].values[0] for seed in range(60)]
    errors = np.sqrt((np.var(theirs, axis=0, ddof=1) + np.var(ours, axis=0, ddof=1)) / 60)
    gap = np.mean(ours, axis=0) - np.mean(theirs, axis=0)
    assert (np.abs(gap) < 3 * errors).all()
    assert np.corrcoef(np.mean(ours, axis=0), np.mean(theirs, axis=0))[0, 1] > 0.99
