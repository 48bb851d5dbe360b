"""From a question to the passes that answer it, and from their log-probabilities to scores: what all methods share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from explainers.chunks import Chunk, nearest_to_thirty, prompt_chunks, target_chunks, visible
from explainers.controls import FactorRule, check_factor, resolve
from explainers.errors import InvalidRequest, MissingCapability
from explainers.language_model import LanguageModel, TokenSequence
from explainers.types import (
    AtmanConfig,
    Attribution,
    Checkpoint,
    Granularity,
    Postprocessing,
    Prompt,
    Span,
    Target,
    never_stop,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What explaining `target` asks of a model: base factors, and one variant of them per chunk."""

    model: LanguageModel
    sequence: TokenSequence
    items: int  # of the prompt
    target: str
    config: AtmanConfig
    granularity: Granularity
    chunks: tuple[Chunk, ...]  # F
    base: NDArray[np.float64]  # (S,), the caller's own controls
    variants: tuple[NDArray[np.float64], ...]  # F of (S,), the same with one chunk damped

    @property
    def by_target_token(self) -> bool:
        """Whether scores are needed for each target token, or only their sum."""
        return self.config.target_granularity == "token" or self.config.postprocessing != "none"

    def shares(self) -> NDArray[np.float64]:  # (F, S)
        """How much of each column belongs to each chunk: what a control factor of 0 takes away. Needs that factor."""
        shares = np.zeros((len(self.chunks), self.sequence.positions))
        for share, chunk in zip(shares, self.chunks, strict=True):
            share[list(chunk.factors)] = 1 - np.array(list(chunk.factors.values()))
        return shares


def plan(
    model: LanguageModel, prompt: Prompt, target: str, config: AtmanConfig, checkpoint: Checkpoint = never_stop
) -> Plan:
    """Tokens, chunks and factors of a question; no forward pass. Raises InvalidRequest and its kin."""
    _check(config)
    sequence = model.encode(prompt, target)
    granularity = config.granularity or nearest_to_thirty(prompt, sequence)
    chunks = prompt_chunks(prompt, sequence, granularity, config)
    if config.target_granularity == "token":
        chunks += target_chunks(len(prompt), sequence, target, config)
    rule = FactorRule(model, sequence, config.threshold, checkpoint)
    standing = rule.combine(resolve(sequence, prompt, config.overlap, checkpoint))
    variants = [rule.combine([chunk.factors], standing).factors for chunk in chunks]
    return Plan(
        model, sequence, len(prompt), target, config, granularity, tuple(chunks), standing.factors, tuple(variants)
    )


def attribution(
    plan: Plan,
    method: str,
    values: NDArray[np.float64],  # (T, F), falls of log-probability in nats; (1, F), their sum, is enough for a sum
    base: NDArray[np.float64],  # (T,), log-probabilities without any chunk damped
    facts: Mapping[str, Any],
    errors: NDArray[np.float64] | None = None,  # of the scores before they are normalised, in their form
) -> Attribution:
    """Scores as the question wants them: post-processed, summed over the target, normalised; invisible ones 0.

    Errors are divided by the range that normalising divides by, as if it were known exactly.
    """
    seen = visible(plan.sequence, plan.chunks)
    values = _POSTPROCESSING[plan.config.postprocessing](values)
    targets: tuple[Target, ...] = (Target(plan.target, Span(0, len(plan.target))),)
    if plan.config.target_granularity == "token":
        targets = _target_tokens(plan.sequence, plan.target)
    else:
        values, seen = values.sum(axis=0, keepdims=True), seen[-1:]
        base = base.sum(keepdims=True)
    if plan.config.normalize:
        low, span = _range(values, seen)
        values, errors = (values - low) / span, None if errors is None else errors / span
    features = tuple(chunk.feature for chunk in plan.chunks)
    shown, spread = np.where(seen, values, 0.0), None if errors is None else np.where(seen, errors, 0.0)
    return Attribution(method, features, targets, shown, base, spread, _facts(plan) | dict(facts))


def gains(plan: Plan, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """How fast a post-processed score grows with the fall of log-probability behind it."""
    return _GAINS[plan.config.postprocessing](values)


def kept(shares: NDArray[np.float64]) -> NDArray[np.float64]:  # (N, S) -> (S,)
    """The factor of each column when chunks with these shares of it are removed together."""
    left: NDArray[np.float64] = (1 - shares.sum(axis=0)).clip(min=0)
    return np.where(left < 1e-9, 0.0, left)  # shares that add up to all of a column but for rounding


def check_finite(model: LanguageModel, *log_probabilities: NDArray[np.float64]) -> None:
    """A model can leave the range of its numbers (float16 above all); what it says then is no score."""
    if not all(np.isfinite(values).all() for values in log_probabilities):
        raise MissingCapability(f"the model's log-probabilities overflow in {model.facts.get('dtype', 'its dtype')}")


def _check(config: AtmanConfig) -> None:
    check_factor(config.control_factor, "/control_factor")
    if config.threshold is not None and not -1 <= config.threshold <= 1:
        raise InvalidRequest("the similarity threshold must lie in -1..1", "/contextual_control_threshold")
    if config.granularity == "custom" and not config.delimiter:
        raise InvalidRequest("custom granularity needs a non-empty delimiter", "/prompt_granularity/delimiter")


def _facts(plan: Plan) -> dict[str, Any]:
    return {
        "granularity": plan.granularity,
        "prompt_tokens": len(plan.sequence.prompt),
        "target_tokens": len(plan.sequence.target),
        "dtype": str(plan.model.facts.get("dtype", "")),
        "device": str(plan.model.device),
        "warnings": list(plan.sequence.warnings),
    }


_POSTPROCESSING: Mapping[Postprocessing, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "none": np.positive,
    "absolute": np.abs,
    "square": np.square,
}


_GAINS: Mapping[Postprocessing, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "none": np.ones_like,
    "absolute": np.sign,
    "square": lambda values: 2 * values,
}


def _range(
    values: NDArray[np.float64], visible: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:  # (T, 1), (T, 1)
    """The smallest of the visible scores of each target, and their range; infinite when all are equal, or none is."""
    low = np.where(visible, values, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    high = np.where(visible, values, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    return np.where(np.isfinite(low), low, 0.0), np.where(np.isfinite(high - low) & (high > low), high - low, np.inf)


def _target_tokens(sequence: TokenSequence, target: str) -> tuple[Target, ...]:
    """The target cut into its tokens, leading space included; joined they are the target again.

    Where tokens share a character, the last of them carries it.
    """
    spans = sequence.target_spans
    cuts = [0]
    for span, following in pairwise(spans):
        cuts.append(max(cuts[-1], min(span.stop, following.start)))
    cuts.append(len(target))
    return tuple(Target(target[a:b], span) for a, b, span in zip(cuts[:-1], cuts[1:], spans, strict=True))
