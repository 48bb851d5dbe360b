"""SHAP for texts: the fair share of each token in how a text's output differs from that of nothing.

The players are token occurrences; a coalition is the text without the others, the base value the output with all of
them removed. Exact up to ten or eleven tokens, sampled in pairs beyond (see `coalitions`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from explainers import coalitions
from explainers.answers import check_additive, numbers, targets_of
from explainers.coalitions import Design, Scores
from explainers.predictor import TextPredictor
from explainers.seeds import derived
from explainers.text_masks import TextOptions, cut, facts_of, predict_texts
from explainers.types import Attribution, Checkpoint, never_stop


@dataclass(frozen=True, slots=True)
class TextShapleyConfig:
    """`samples`: coalitions at most (at least four per token); 2M + 2048 by default."""

    samples: int | None = None
    seed: int = 0
    options: TextOptions = field(default_factory=TextOptions)


def attribute(
    predictor: TextPredictor,
    texts: Sequence[str],
    ids: Sequence[str],
    config: TextShapleyConfig = TextShapleyConfig(),
    checkpoint: Checkpoint = never_stop,
) -> tuple[Attribution, ...]:
    """One answer per text, which depends on nothing but the text and its id; no tokens, no scores.

    Raises InvalidRequest for a broken delimiter, InconsistentAnswer for outputs that are not finite and scores that do
    not add up.
    """
    return tuple(_answer(predictor, text, id, config, checkpoint) for text, id in zip(texts, ids, strict=True))


def _answer(
    predictor: TextPredictor, text: str, id: str, config: TextShapleyConfig, checkpoint: Checkpoint
) -> Attribution:
    pieces = cut(text, config.options.delimiter)
    players = len(pieces.tokens)
    seed, design = _design(predictor, players, id, config)
    ends = np.repeat([[True], [False]], players, axis=1)  # all, and none
    masks = np.concatenate([ends, design.masks])
    outputs = predict_texts(predictor, pieces.without(masks, config.options), checkpoint)
    full, empty = outputs[0], outputs[1]
    scores = design.scores(outputs[2:], full, empty)
    check_additive(scores.values, scores.empty, scores.full)
    facts = facts_of(predictor, config.options, seed, full) | _facts(design, scores)
    targets = targets_of(predictor.outputs)
    return Attribution("shap", pieces.features, targets, scores.values, scores.empty, scores.errors, facts)


def _design(predictor: TextPredictor, players: int, id: str, config: TextShapleyConfig) -> tuple[int, Design]:
    budget = coalitions.budget(players, config.samples)
    options = config.options.facts | {"seed": str(config.seed)}
    seed = derived(predictor.digest, "shap", budget, options, "", id)
    if coalitions.is_exact(players, budget):
        return seed, coalitions.exact_design(players)
    return seed, coalitions.design(players, budget, seed)


def _facts(design: Design, scores: Scores) -> dict[str, Any]:
    return {
        "game": "removal",
        "n_samples": len(design.masks),
        "exact": design.exact,
        "additivity_r2": numbers(scores.additivity),
    }
