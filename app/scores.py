"""The scores of rows: as they were computed, as the store keeps them, and as they are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.scoring import Outcome, Scorer
from explainers.answers import array
from explainers.types import Attribution
from storage.scores import Scores, TokenScores

# -- as the store keeps them -------------------------------------------------------------------------------------------

BESIDE = frozenset({"prediction", "local_fit_r2"})
"""Facts that have columns of their own, or that the inference says itself."""


def rows_of(scorer: Scorer, seqs: Sequence[int], outcomes: Sequence[Outcome]) -> tuple[Scores, TokenScores | None]:
    """The rows of n outcomes; those of tokens for texts."""
    outputs, inputs = len(scorer.outputs), 0 if scorer.reading.is_text else len(scorer.reading.inputs)
    scores = Scores(
        scorer.fingerprint,
        np.array(seqs, dtype=np.int64),
        np.stack([_flat(outcome, outputs * inputs, "values") for outcome in outcomes]),
        [_facts(outcome) for outcome in outcomes],
        np.stack([_flat(outcome, outputs * inputs, "uncertainty") for outcome in outcomes]),
        np.stack([_row(outputs, _base(outcome)) for outcome in outcomes]),
        np.stack([_row(outputs, _fit(outcome)) for outcome in outcomes]),
        [outcome if isinstance(outcome, str) else _reason(outcome) for outcome in outcomes],
    )
    return scores, tokens_of(scorer, seqs, outcomes) if scorer.reading.is_text else None


def tokens_of(scorer: Scorer, seqs: Sequence[int], outcomes: Sequence[Outcome]) -> TokenScores:
    """Of the outcomes that are answers."""
    found = [(seq, each) for seq, each in zip(seqs, outcomes, strict=True) if not isinstance(each, str)]
    nothing = [np.full(each.values.shape, np.nan) for _, each in found]
    return TokenScores(
        scorer.fingerprint,
        np.array([seq for seq, _ in found], dtype=np.int64),
        scorer.reading.inputs[0].name,
        [[feature.name for feature in each.features] for _, each in found],
        [list(range(len(each.features))) for _, each in found],
        [each.values for _, each in found],
        [{} for _ in found],
        [gap if each.uncertainty is None else each.uncertainty for gap, (_, each) in zip(nothing, found, strict=True)],
    )


def _flat(outcome: Outcome, places: int, name: str) -> NDArray[np.float64]:
    values = None if isinstance(outcome, str) else getattr(outcome, name)
    return np.full(places, np.nan) if values is None or not places else np.asarray(values, dtype=np.float64).ravel()


def _row(outputs: int, values: Any) -> NDArray[np.float64]:
    return np.full(outputs, np.nan) if values is None else np.array(values, dtype=np.float64)


def _base(outcome: Outcome) -> Any:
    return None if isinstance(outcome, str) else outcome.base_values


def _fit(outcome: Outcome) -> Any:
    return None if isinstance(outcome, str) else outcome.facts.get("local_fit_r2")


def _facts(outcome: Outcome) -> Mapping[str, Any]:
    if isinstance(outcome, str):
        return {}
    return {name: value for name, value in outcome.facts.items() if name not in BESIDE}


def _reason(answer: Attribution) -> str | None:
    imputed = answer.facts.get("imputed")
    return f"null inputs, which the model does not take: {', '.join(imputed)}" if imputed else None


# -- as they are told --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Part:
    """What carries a score: an input, or a token of one at a position."""

    attribute: str
    token: str | None = None
    position: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """The scores of one row. `reason` says why there are none."""

    algorithm: str
    outputs: tuple[str, ...]  # K
    parts: tuple[Part, ...]  # F
    values: NDArray[np.float64]  # (K, F); NaN where there is no score
    errors: NDArray[np.float64] | None  # (K, F)
    base_values: NDArray[np.float64] | None  # (K,)
    fit: NDArray[np.float64] | None  # (K,)
    facts: Mapping[str, Any]
    reason: str | None = None


def explanation_of(scorer: Scorer, algorithm: str, outcome: Outcome) -> Explanation:
    """As it was computed."""
    if isinstance(outcome, str):
        return without_scores(scorer, algorithm, outcome)
    text = scorer.reading.inputs[0].name if scorer.reading.is_text else None
    parts = tuple(
        Part(feature.name) if text is None else Part(text, feature.name, place)
        for place, feature in enumerate(outcome.features)
    )
    fit = _row(len(scorer.outputs), _fit(outcome))
    base = None if outcome.base_values is None else np.asarray(outcome.base_values, dtype=np.float64)
    facts = _facts(outcome)
    return Explanation(
        algorithm, scorer.outputs, parts, outcome.values, outcome.uncertainty, base, fit, facts, _reason(outcome)
    )


def without_scores(scorer: Scorer, algorithm: str, reason: str) -> Explanation:
    names = () if scorer.reading.is_text else scorer.reading.inputs
    nothing = np.full((len(scorer.outputs), len(names)), np.nan)
    parts = tuple(Part(attribute.name) for attribute in names)
    return Explanation(algorithm, scorer.outputs, parts, nothing, None, None, None, {}, reason)


def stored_explanation(scorer: Scorer, algorithm: str, row: Any, tokens: Sequence[Any]) -> Explanation:
    """As the store kept it: a row of scores and, of a text, the rows of its tokens."""
    outputs = len(scorer.outputs)
    if not scorer.reading.is_text:
        parts = tuple(Part(attribute.name) for attribute in scorer.reading.inputs)
        values, errors = row.scores, row.errors
    elif tokens:
        named = zip(tokens[0].tokens, tokens[0].positions, strict=True)
        parts = tuple(Part(tokens[0].attribute, token, position) for token, position in named)
        values, errors = tokens[0].scores, tokens[0].errors
    else:
        return without_scores(scorer, algorithm, row.reason or "")
    shape = (outputs, len(parts))
    base = None if _all_null(row.base_values) else array(row.base_values)
    return Explanation(
        algorithm,
        scorer.outputs,
        parts,
        array(values).reshape(shape),
        None if errors is None else array(errors).reshape(shape),
        base,
        array(row.fit or [None] * outputs),
        row.facts,
        row.reason,
    )


def _all_null(values: Sequence[float | None] | None) -> bool:
    return values is None or all(value is None for value in values)
