"""SHAP for table rows: the fair share of each input in how a row's output differs from the background's.

Lundberg and Lee, *A Unified Approach to Interpreting Model Predictions*, 2017. The game is the interventional one: a
coalition is worth the mean output over the background with the coalition's inputs taken from the row. Scores and base
value add up to the output. Up to eleven inputs all coalitions are evaluated and scores are exact; more are sampled, and
carry a standard error (of sampling; what another background would say is another question).

Coalitions and their solver are shared by all rows of a bucket and kept; each row has its own model calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from explainers import coalitions
from explainers.answers import check_additive, check_outputs, features_of, numbers, targets_of
from explainers.background import Background, readied
from explainers.coalitions import Design, Scores
from explainers.predictor import Predictor, predict_distinct
from explainers.seeds import bucket, derived
from explainers.table import Table
from explainers.types import Attribution, Checkpoint, Feature, Target, never_stop

BUCKETS = 8
"""Of sampled coalitions: rows of different ones err independently."""

BLOCK_BYTES = 8 * 2**20
"""Of cells made at a time."""

WORTH_SORTING = 0.8
"""Equal rows are looked for where no more than this share of rows is expected to differ."""


@dataclass(frozen=True, slots=True)
class ShapleyConfig:
    """`samples`: coalitions at most (at least four per input); 2M + 2048 by default.

    All 2^M where that is fewer, where there are eleven inputs at most, or where with the background it is no more than
    `exact_rows` rows per explained row.
    """

    samples: int | None = None
    exact_rows: int = 2**18
    seed: int = 0


def predictions(config: ShapleyConfig, background: Background, rows: int) -> int:
    """How many rows the model will be asked for at most."""
    everything: int = 2 ** len(background.table.columns) - 2
    return len(background) + rows * (1 + len(background) * min(_budget(config, background), everything))


def attribute(
    predictor: Predictor,
    rows: Table,
    ids: Sequence[str],
    background: Background,
    config: ShapleyConfig = ShapleyConfig(),
    checkpoint: Checkpoint = never_stop,
) -> tuple[Attribution, ...]:
    """One answer per row; a row's answer depends on nothing but itself and its id.

    Where the model accepts no nulls, they are imputed, and their scores are NaN. Raises InvalidRequest for foreign
    columns, InconsistentAnswer for outputs that are not finite and scores that do not add up.
    """
    asked = _Asked.of(predictor, rows, background, config, checkpoint)
    outputs = predict_distinct(predictor, asked.rows, checkpoint)  # (R, K)
    check_outputs(outputs, len(rows), predictor.outputs)
    answers: dict[int, Attribution] = {}
    for part, places in asked.parts(ids).items():
        seed, design = asked.design(part)
        step = max(1, BLOCK_BYTES // (8 * max(1, asked.cells_per_pair * len(design.masks))))
        for start in range(0, len(places), step):
            block = places[start : start + step]
            values = asked.values(design.masks, asked.rows.cells[block], checkpoint)  # (r, S, K)
            for place, found in zip(block, values, strict=True):
                answers[place] = asked.answer(design, seed, place, found, outputs[place])
    return tuple(answers[place] for place in range(len(rows)))


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    predictor: Predictor
    rows: Table  # (R, M), imputed where need be
    missing: NDArray[np.bool_]  # (R, M), what was imputed
    background: Background
    base: NDArray[np.float64]  # (K,)
    config: ShapleyConfig
    features: tuple[Feature, ...]
    targets: tuple[Target, ...]

    @staticmethod
    def of(
        predictor: Predictor, rows: Table, background: Background, config: ShapleyConfig, checkpoint: Checkpoint
    ) -> _Asked:
        background, rows, missing = readied(background, rows, predictor.accepts_nulls)
        outputs = predict_distinct(predictor, background.table, checkpoint)  # (B, K)
        check_outputs(outputs, len(background), predictor.outputs)
        base = _averages(outputs[None], background.weights)[0]
        features, targets = features_of(rows.columns), targets_of(predictor.outputs)
        return _Asked(predictor, rows, missing, background, base, config, features, targets)

    @property
    def cells_per_pair(self) -> int:
        """Of one row and one coalition."""
        return self.background.table.cells.size

    def parts(self, ids: Sequence[str]) -> dict[int, list[int]]:
        """The rows that share coalitions; all, where all coalitions are taken."""
        exact = coalitions.is_exact(len(self.features), _budget(self.config, self.background))
        parts: dict[int, list[int]] = {}
        for place, id in enumerate(ids):
            parts.setdefault(0 if exact else bucket(id, BUCKETS), []).append(place)
        return parts

    def design(self, part: int) -> tuple[int, Design]:
        budget = _budget(self.config, self.background)
        options = {"seed": self.config.seed}
        seed = derived(self.predictor.digest, "shap", budget, options, self.background.id, part)
        inputs = len(self.features)
        if coalitions.is_exact(inputs, budget):
            return seed, coalitions.exact_design(inputs)
        return seed, coalitions.shared_design(inputs, budget, seed)

    def values(
        self, masks: NDArray[np.bool_], rows: NDArray[np.float64], checkpoint: Checkpoint
    ) -> NDArray[np.float64]:  # (S, M), (r, M) -> (r, S, K)
        """What each coalition is worth to each row, in blocks of bounded memory."""
        found = np.empty((len(rows) * len(masks), len(self.targets)))
        step = max(1, BLOCK_BYTES // (8 * max(1, self.cells_per_pair)))
        for start in range(0, len(found), step):
            checkpoint()
            pairs = np.arange(start, min(start + step, len(found)))
            row, mask = np.divmod(pairs, len(masks))
            found[pairs] = self._worth(rows[row], masks[mask], len(masks), checkpoint)
        return found.reshape(len(rows), len(masks), len(self.targets))

    def _worth(
        self, rows: NDArray[np.float64], masks: NDArray[np.bool_], coalitions: int, checkpoint: Checkpoint
    ) -> NDArray[np.float64]:  # (n, M), (n, M) -> (n, K)
        known = self.background.table.cells
        mixed = np.where(masks[:, None], rows[:, None], known)  # (n, B, M)
        table = self.rows.with_cells(mixed.reshape(-1, mixed.shape[2]))
        if _different(rows, known, min(coalitions, len(masks))) < WORTH_SORTING:
            outputs = predict_distinct(self.predictor, table, checkpoint)
        else:
            outputs = self.predictor.predict(table)
        check_outputs(outputs, len(table), self.predictor.outputs)
        return _averages(outputs.reshape(len(rows), len(known), -1), self.background.weights)

    def answer(
        self, design: Design, seed: int, place: int, found: NDArray[np.float64], output: NDArray[np.float64]
    ) -> Attribution:
        scores = design.scores(found, output, self.base)
        check_additive(scores.values, scores.empty, scores.full)
        missing = self.missing[place]
        values, errors = (np.where(missing, np.nan, array) for array in (scores.values, scores.errors))
        facts = self._facts(design, scores, seed, output, missing)
        return Attribution("shap", self.features, self.targets, values, scores.empty, errors, facts)

    def _facts(
        self,
        design: Design,
        scores: Scores,
        seed: int,
        output: NDArray[np.float64],
        missing: NDArray[np.bool_],
    ) -> Mapping[str, Any]:
        columns = self.rows.columns
        return {
            "game": "interventional",
            "output": self.predictor.space,
            "model_digest": self.predictor.digest,
            "background": self.background.id,
            "background_rows": len(self.background),
            "n_samples": len(design.masks),
            "exact": design.exact,
            "seed": seed,
            "additivity_r2": numbers(scores.additivity),
            "prediction": numbers(output),
            "imputed": [column.name for column, gone in zip(columns, missing, strict=True) if gone],
        }


def _different(rows: NDArray[np.float64], known: NDArray[np.float64], masks: int) -> float:  # (n, M), (B, M)
    """About what share of mixed rows differ, when an input that is alike in row and background can be either's."""
    once = rows[np.flatnonzero(np.append(True, (rows[1:] != rows[:-1]).any(axis=1)))]
    alike = (once[:, None] == known) | (np.isnan(once[:, None]) & np.isnan(known))  # (r, B, M)
    free = 2.0 ** (alike.shape[2] - alike.sum(axis=2))
    return float(np.minimum(1.0, free / masks).mean())


def _budget(config: ShapleyConfig, background: Background) -> int:
    inputs = len(background.table.columns)
    return coalitions.budget(inputs, config.samples, config.exact_rows // len(background))


def _averages(outputs: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:  # (n, B, K) -> (n, K)
    """One background row after the other: in the same order whatever n is, to the last bit."""
    mean = np.zeros((len(outputs), outputs.shape[2]))
    for place, weight in enumerate(weights):
        mean += weight * outputs[:, place]
    return mean
