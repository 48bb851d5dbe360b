"""TreeSHAP: Shapley values of the game in which an unknown column follows the trees' own training counts.

Lundberg et al., *From local explanations to global understanding with explainable AI for trees*, 2020, path-dependent
form, through `shap.TreeExplainer`. Scores are in the space the trees add up in: log-odds for boosted classifiers, the
answer itself for forests. They need no background, and they do not add up to a boosted classifier's probability.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from explainers import clock
from explainers.errors import MissingCapability
from explainers.predictors.artifact import Contributions, Trees
from explainers.predictors.binding import TablePredictor
from explainers.table import Table
from explainers.types import Attribution, Checkpoint, Feature, Target, never_stop

TOLERANCE = 1e-5
"""Relative to the sizes that are added: boosters compute in float32."""
BLOCK_ROWS = 1024


def attribute(predictor: TablePredictor, table: Table, checkpoint: Checkpoint = never_stop) -> tuple[Attribution, ...]:
    """Contributions of all columns to all outputs, for each row of `table`.

    Raises MissingCapability for a model that is not of trees, or whose contributions do not add up to its output.
    """
    if not isinstance(predictor.artifact, Trees):
        raise MissingCapability(f"TreeSHAP needs a model of trees; this one is {predictor.artifact.format}")
    rows, found = predictor.prepared(table), list[Attribution]()
    features = tuple(Feature(column.name, 0, place) for place, column in enumerate(rows.columns))
    targets = tuple(Target(name) for name in predictor.outputs)
    for start in range(0, len(rows), BLOCK_ROWS):
        checkpoint()
        block, started = rows.take(slice(start, start + BLOCK_ROWS)), clock.working()
        given = predictor.artifact.contributions(block)
        off = _checked(given)
        values, base = _completed(predictor, given)
        facts = _facts(given, (clock.working() - started) / len(block))
        found += [
            Attribution("tree_shap", features, targets, row, base, None, {**facts, "additivity_error": float(error)})
            for row, error in zip(values, off, strict=True)
        ]
    return tuple(found)


def _checked(given: Contributions) -> NDArray[np.float64]:  # (n,)
    """How far the contributions of each row are from adding up to the trees' output."""
    gap = np.abs(given.values.sum(axis=2) + given.base - given.margins)  # (n, G)
    scale = np.maximum(1.0, np.abs(given.base) + np.abs(given.values).sum(axis=2))
    if not (gap <= TOLERANCE * scale).all():  # not a number is not within it
        raise MissingCapability(
            f"contributions along the trees' paths miss the model's {given.output} by {np.nanmax(gap):.2g}: this model "
            "cannot be explained by TreeSHAP"
        )
    widest: NDArray[np.float64] = gap.max(axis=1, initial=0.0)
    return widest


def _completed(
    predictor: TablePredictor, given: Contributions
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:  # (n, K, M), (K,)
    """The scores of all outputs. Of two classes with one margin, the other class has its opposite."""
    outputs, groups = len(predictor.outputs), given.values.shape[1]
    if groups == outputs:
        return given.values, given.base
    if groups != 1 or outputs != 2 or predictor.schema.task != "classification":
        raise MissingCapability(f"the trees add up to {groups} outputs; {outputs} are declared")
    positive = 1 if predictor.positive is None else predictor.positive  # a classifier's own second class
    signs = np.where(np.arange(2) == positive, 1.0, -1.0)  # (K,)
    shift = np.where(signs < 0, 1.0, 0.0) if given.output == "probability" else np.zeros(2)
    return given.values * signs[:, None], given.base * signs + shift


def _facts(given: Contributions, seconds: float) -> Mapping[str, Any]:
    return {"game": "path_dependent", "output": given.output, "seconds": seconds, "warnings": [], **given.facts}
