"""Scores of table rows against those of the field's packages, on the same model, rows and background.

Each comparison takes our answers as they are and computes the other side itself. What is random on both sides is
compared in standard errors of the difference of means over seeds; what is exact, digit by digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from explainers.background import Background, is_discrete
from explainers.errors import InvalidRequest, MissingCapability
from explainers.methods.lime import WIDTH
from explainers.predictors.artifact import Artifact
from explainers.predictors.binding import TablePredictor
from explainers.predictors.lightgbm_trees import LightgbmTrees
from explainers.predictors.xgboost_trees import XgboostTrees
from explainers.table import Table
from explainers.types import Attribution
from explainers.verdicts import Finding, gap, in_errors, package, seeded, warnings_ignored

ENUMERATED = 1e-6
"""How far two solvers of the same enumerated game may differ, relative to the largest output: float32 models."""

PACKAGE_SEEDS = (0, 1)
"""Of shap's sampled coalitions: their spread is the only error that the package offers."""


@warnings_ignored()
def lime_agrees(
    predictor: TablePredictor,
    background: Background,
    rows: Table,
    found: Sequence[Sequence[Attribution]],  # (S, R): by seed and row
    samples: int,
) -> Finding:
    """Against `lime.lime_tabular`: continuous, all features, the same numbers of samples and seeds; no nulls."""
    tabular = package("lime.lime_tabular")
    seeds = range(len(found))
    theirs = np.array(
        [[_package_lime(tabular, predictor, background, row, samples, seed) for row in rows.cells] for seed in seeds]
    )  # (S, R, K, M)
    ours = np.array([[answer.values for answer in answers] for answers in found])
    told = np.array([[answer.uncertainty for answer in answers] for answers in found], dtype=float)
    note = f"{len(rows)} rows, {len(found)} seeds, {samples} samples"
    return in_errors(ours.mean(axis=0), theirs.mean(axis=0), errors_of_means(ours, theirs, told), note)


def errors_of_means(
    ours: NDArray[np.float64], theirs: NDArray[np.float64], told: NDArray[np.float64]
) -> NDArray[np.float64]:  # (S, ...) x 3 -> (...)
    """Of the difference of two means over S seeds: by our own errors, or the spread of seeds where that is larger."""
    one = (told**2).mean(axis=0)
    if len(ours) > 1:
        one = np.maximum(one, (ours.var(axis=0, ddof=1) + theirs.var(axis=0, ddof=1)) / 2)
    return np.asarray(np.sqrt(2 * one / len(ours)))


def _package_lime(
    tabular: Any,
    predictor: TablePredictor,
    background: Background,
    row: NDArray[np.float64],  # (M,)
    samples: int,
    seed: int,
) -> NDArray[np.float64]:  # (K, M)
    """The package's slopes. It would move constant numbers, so it is not shown them; their slope is 0."""
    discrete = is_discrete(background.table.columns)
    shown = np.flatnonzero(discrete | (background.deviations > 0))
    if not len(shown):
        raise InvalidRequest("all columns are constant")

    def predict(cells: NDArray[np.float64]) -> NDArray[np.float64]:
        whole = np.tile(background.means, (len(cells), 1))
        whole[:, shown] = cells
        whole[0] = row
        return predictor.predict(background.table.with_cells(whole))

    explainer = _explainer(tabular, background, shown, discrete[shown], seed)
    outputs = range(len(predictor.outputs))
    told = explainer.explain_instance(row[shown], predict, labels=outputs, num_features=len(shown), num_samples=samples)
    slopes = np.zeros((len(outputs), len(row)))
    for output in outputs:
        for place, slope in told.local_exp[output]:
            slopes[output, shown[place]] = slope
    return slopes


def _explainer(
    tabular: Any, background: Background, shown: NDArray[np.int_], discrete: NDArray[np.bool_], seed: int
) -> Any:
    """With two rows for training data, whose means and deviations are the background's."""
    means, deviations = background.means[shown], background.deviations[shown]
    means, deviations = np.where(discrete, 0.0, means), np.where(discrete, 0.0, deviations)
    places = np.flatnonzero(discrete).tolist()
    known = {
        "feature_values": {place: background.levels[shown[place]] for place in places},
        "feature_frequencies": {place: background.shares[shown[place]] for place in places},
    }
    unused: dict[str, list[float]] = {name: [] for name in ("means", "mins", "maxs", "stds")}
    return tabular.LimeTabularExplainer(
        np.stack([means - deviations, means + deviations]),
        mode="classification",  # which only means that every output is explained
        categorical_features=places,
        kernel_width=WIDTH * np.sqrt(len(background.means)),
        feature_selection="none",
        discretize_continuous=False,
        random_state=seed,
        training_data_stats=known | unused,
    )


@warnings_ignored()
def shap_agrees(
    predictor: TablePredictor, background: Background, rows: Table, found: Sequence[Attribution]
) -> Finding:
    """Against `shap.KernelExplainer` without its regularisation, with as many coalitions, on the same background.

    It gets the places of cells among their column's values, since it takes numbers as near as timestamps for equal.
    """
    shap, legacy = package("shap"), package("shap.utils._legacy")
    values, places = _places(np.concatenate([background.table.cells, rows.cells]))

    def predict(places: NDArray[np.float64]) -> NDArray[np.float64]:
        cells = [known[column.astype(int)] for known, column in zip(values, places.T, strict=True)]
        return predictor.predict(rows.with_cells(np.stack(cells, axis=1)))

    names = [column.name for column in rows.columns]
    data = legacy.DenseData(places[: len(background)].copy(), names, None, background.weights.copy())
    kernel = shap.KernelExplainer(predict, data)
    coalitions, exact = found[0].facts["n_samples"], found[0].facts["exact"]
    runs = []
    for seed in PACKAGE_SEEDS[:1] if exact else PACKAGE_SEEDS:
        with seeded(seed):
            runs.append(kernel.shap_values(places[len(background) :], nsamples=coalitions, l1_reg=0, silent=True))
    theirs = np.array(runs).transpose(0, 1, 3, 2)  # (S, R, K, M)
    ours = np.stack([answer.values for answer in found])
    note = f"{len(rows)} rows, {len(background)} background rows, {coalitions} coalitions"
    if exact:
        scale = max(float(np.abs(predictor.predict(rows)).max()), float(np.abs(ours).max()))
        return Finding(gap(ours, theirs[0]), ENUMERATED * scale, f"{note}, exact")
    told = np.stack([np.asarray(answer.uncertainty) for answer in found])
    return in_errors(ours, theirs.mean(axis=0), _kernel_errors(theirs, told), note)


def _places(cells: NDArray[np.float64]) -> tuple[list[NDArray[np.float64]], NDArray[np.float64]]:  # (n, M) -> M, (n, M)
    """The different values of each column in order, nulls last, and where among them each cell is."""
    pairs = [np.unique(column, return_inverse=True) for column in cells.T]
    return [values for values, _ in pairs], np.stack([places.astype(float) for _, places in pairs], axis=1)


def _kernel_errors(theirs: NDArray[np.float64], told: NDArray[np.float64]) -> NDArray[np.float64]:  # (2, R, K, M)
    """Of the difference of our scores to the mean of two runs, whose spread is pooled over the columns of a row."""
    apart = (theirs[0] - theirs[1]) ** 2 / 2
    pooled = np.maximum(apart, apart.mean(axis=2, keepdims=True))
    return np.asarray(np.sqrt(told**2 + pooled / 2))


@warnings_ignored()
def trees_agree(predictor: TablePredictor, rows: Table, found: Sequence[Attribution]) -> Finding:
    """Against a `shap.TreeExplainer` of its own on the model's trees; outputs without trees have the opposite."""
    model, cells = _trees(predictor.artifact, predictor.prepared(rows))
    explainer = package("shap").TreeExplainer(model, feature_perturbation="tree_path_dependent")
    theirs = np.asarray(explainer.shap_values(cells, check_additivity=False), dtype=float)
    theirs = theirs.reshape(len(rows), len(rows.columns), -1).transpose(0, 2, 1)  # (R, G, M)
    if theirs.shape[1] == 1 and len(predictor.outputs) == 2:
        pair = np.concatenate([-theirs, theirs], axis=1)
        theirs = pair if predictor.positive in (None, 1) else pair[:, ::-1]
    ours = np.stack([answer.values for answer in found])
    return Finding(gap(ours, theirs), 0.0, f"{len(rows)} rows")


def _trees(artifact: Artifact, rows: Table) -> tuple[Any, Any]:
    if isinstance(artifact, XgboostTrees):
        types = artifact.feature_types
        matrix = package("xgboost").DMatrix(rows.cells, feature_types=types, enable_categorical=types is not None)
        return artifact.booster, matrix
    if isinstance(artifact, LightgbmTrees):
        return artifact.booster, rows.cells
    raise MissingCapability("the model stays in a process of its own, where shap.TreeExplainer itself explains it")
