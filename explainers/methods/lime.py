"""LIME for table rows: how the output changes around the middle of the data, seen from near the row.

Ribeiro, Singh and Guestrin, *"Why Should I Trust You?"*, 2016, as their package computes it with continuous columns and
all features. Samples are normal around the mean of each number and drawn by frequency for each category; regressors are
standard deviations from the mean, or whether the row's own category (or null) is met; weights fall with the distance
from the row. A score is the slope: the change of the output per standard deviation, or for having this category. It is
not a share of the output; Shapley values are.

Samples do not depend on the row, only weights do. Rows share them in buckets, so that many rows cost a few model calls;
with several buckets, averages over rows still get better with their number.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from explainers.answers import check_outputs, features_of, numbers, targets_of
from explainers.background import Background, is_discrete, readied
from explainers.errors import InvalidRequest
from explainers.local_fit import LocalFit, fitted
from explainers.predictor import ROW_BYTES, Predictor, predict_distinct
from explainers.seeds import bucket, derived, generator
from explainers.table import Table
from explainers.types import Attribution, Checkpoint, Feature, Target, never_stop

RIDGE = 1.0
WIDTH = 0.75
"""Of the kernel, per square root of the number of columns."""


@dataclass(frozen=True, slots=True)
class LimeConfig:
    """`samples` per row, itself included. Around the row itself if `around_instance`: then nothing is shared."""

    samples: int = 2000
    buckets: int = 8
    around_instance: bool = False
    seed: int = 0


def predictions(config: LimeConfig, ids: Sequence[str]) -> int:
    """How many rows the model will be asked for at most."""
    return len(ids) + (config.samples - 1) * len({_part(config, id) for id in ids})


def attribute(
    predictor: Predictor,
    rows: Table,
    ids: Sequence[str],
    background: Background,
    config: LimeConfig = LimeConfig(),
    checkpoint: Checkpoint = never_stop,
    kept: MutableMapping[int, Draws] | None = None,
) -> tuple[Attribution, ...]:
    """One answer per row; a row's answer depends on nothing but itself and its id.

    `kept` holds what rows share, by seed, for the next call: a bucket met before costs no model call but the row's own.

    Where the model accepts no nulls, they are imputed, and their scores are NaN. Raises InvalidRequest for too few
    samples or foreign columns, InconsistentAnswer for outputs that are not finite.
    """
    if config.samples < 2 or config.buckets < 1:
        raise InvalidRequest("LIME needs two samples and one bucket at least", "/n_samples")
    asked = _Asked.of(predictor, rows, background, config)
    outputs = predict_distinct(predictor, asked.rows, checkpoint)  # (R, K)
    check_outputs(outputs, len(rows), predictor.outputs)
    answers: dict[int, Attribution] = {}
    for part, places in _parts(config, ids).items():
        draws = _shared_draws(asked, part, places[0], checkpoint, kept)
        for place in places:
            answers[place] = asked.answer(draws, place, outputs[place])
            checkpoint()
    return tuple(answers[place] for place in range(len(rows)))


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """What rows of one bucket share; n is one less than the samples of each row."""

    cells: NDArray[np.float64]  # (n, M)
    scaled: NDArray[np.float64]  # (n, M), standard deviations from the mean; 0 for nulls and constant columns
    outputs: NDArray[np.float64]  # (n, K)
    seed: int


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    predictor: Predictor
    rows: Table  # (R, M), imputed where need be
    missing: NDArray[np.bool_]  # (R, M), what was imputed
    background: Background
    config: LimeConfig
    features: tuple[Feature, ...]
    targets: tuple[Target, ...]

    @staticmethod
    def of(predictor: Predictor, rows: Table, background: Background, config: LimeConfig) -> _Asked:
        background, rows, missing = readied(background, rows, predictor.accepts_nulls)
        features, targets = features_of(rows.columns), targets_of(predictor.outputs)
        return _Asked(predictor, rows, missing, background, config, features, targets)

    def seed(self, part: int | str) -> int:
        options: dict[str, int | bool] = {"around_instance": self.config.around_instance, "seed": self.config.seed}
        options |= {} if self.config.around_instance else {"buckets": self.config.buckets}
        return derived(self.predictor.digest, "lime", self.config.samples, options, self.background.id, part)

    def answer(self, draws: Draws, place: int, output: NDArray[np.float64]) -> Attribution:
        regressors = _regressors(draws, self.rows.cells[place], self.background)
        fit = fitted(regressors, np.concatenate([output[None], draws.outputs]), _kernel(regressors), RIDGE)
        missing = self.missing[place]
        values, errors = (np.where(missing, np.nan, array) for array in (fit.slopes, fit.errors))
        facts = self._facts(fit, draws.seed, output, missing)
        return Attribution("lime", self.features, self.targets, values, None, errors, facts)

    def _facts(
        self, fit: LocalFit, seed: int, output: NDArray[np.float64], missing: NDArray[np.bool_]
    ) -> Mapping[str, Any]:
        columns = self.rows.columns
        return {
            "output": self.predictor.space,
            "model_digest": self.predictor.digest,
            "background": self.background.id,
            "n_samples": self.config.samples,
            "seed": seed,
            "around_instance": self.config.around_instance,
            "local_fit_r2": numbers(fit.r2),
            "effective_samples": fit.samples,
            "intercept": numbers(fit.intercepts),
            "prediction": numbers(output),
            "imputed": [column.name for column, gone in zip(columns, missing, strict=True) if gone],
        }


def _part(config: LimeConfig, id: str) -> int | str:
    return id if config.around_instance else bucket(id, config.buckets)


def _parts(config: LimeConfig, ids: Sequence[str]) -> dict[int | str, list[int]]:
    """The rows that share draws, by what they share."""
    parts: dict[int | str, list[int]] = {}
    for place, id in enumerate(ids):
        parts.setdefault(_part(config, id), []).append(place)
    return parts


def _shared_draws(
    asked: _Asked, part: int | str, place: int, checkpoint: Checkpoint, kept: MutableMapping[int, Draws] | None
) -> Draws:
    seed = asked.seed(part)
    if kept is None or asked.config.around_instance:
        return _draws(asked, seed, place, checkpoint)
    if seed not in kept:
        kept[seed] = _draws(asked, seed, place, checkpoint)
    return kept[seed]


def _draws(asked: _Asked, seed: int, place: int, checkpoint: Checkpoint) -> Draws:
    background = asked.background
    centre = background.means
    if asked.config.around_instance:
        row = asked.rows.cells[place]
        centre = np.where(np.isnan(row), centre, row)
    random, shape = generator(seed), (asked.config.samples - 1, len(centre))
    cells = centre + background.deviations * random.standard_normal(shape)
    if background.nulls.any() or is_discrete(background.table.columns).any():
        _draw_levels(cells, random.random(shape), background)
    outputs = _predicted(asked, cells, checkpoint)
    return Draws(cells, _scaled(cells, background), outputs, seed)


def _predicted(asked: _Asked, cells: NDArray[np.float64], checkpoint: Checkpoint) -> NDArray[np.float64]:  # (n, K)
    table = asked.rows.with_cells(cells)
    never_alike = ((asked.background.deviations > 0) & ~is_discrete(table.columns)).any()
    if never_alike and cells.nbytes <= ROW_BYTES:
        checkpoint()
        outputs = asked.predictor.predict(table)
    else:
        outputs = predict_distinct(asked.predictor, table, checkpoint)
    check_outputs(outputs, len(cells), asked.predictor.outputs)
    return outputs


def _draw_levels(cells: NDArray[np.float64], chance: NDArray[np.float64], background: Background) -> None:
    """Categories, booleans and nulls in their places, as often as in the reference. `chance` (n, M) is uniform."""
    for column, (levels, shares) in enumerate(zip(background.levels, background.shares, strict=True)):
        if len(levels):
            places = np.searchsorted(shares.cumsum(), chance[:, column], side="right")
            cells[:, column] = levels[places.clip(max=len(levels) - 1)]
        else:
            cells[chance[:, column] < background.nulls[column], column] = np.nan


def _scaled(cells: NDArray[np.float64], background: Background) -> NDArray[np.float64]:  # (n, M) or (M,)
    deviations = background.deviations
    scaled = (cells - background.means) / np.where(deviations > 0, deviations, np.inf)
    return np.where(np.isnan(scaled), 0.0, scaled)


def _regressors(draws: Draws, row: NDArray[np.float64], background: Background) -> NDArray[np.float64]:  # (n + 1, M)
    """Standard deviations from the mean; for a category or a null whether a sample has it too. The row comes first."""
    regressors = np.concatenate([_scaled(row, background)[None], draws.scaled])
    told = is_discrete(background.table.columns) | np.isnan(row)
    if told.any():
        met = draws.cells[:, told]
        regressors[0, told] = 1.0
        regressors[1:, told] = (met == row[told]) | (np.isnan(met) & np.isnan(row[told]))
    return regressors


def _kernel(regressors: NDArray[np.float64]) -> NDArray[np.float64]:  # (n, M) -> (n,)
    apart = regressors - regressors[0]
    squares = np.einsum("nm,nm->n", apart, apart)
    kernel: NDArray[np.float64] = np.exp(-squares / (2 * WIDTH**2 * regressors.shape[1]))
    return kernel
