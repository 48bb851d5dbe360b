"""Attention suppression: how much less likely the target becomes when attention to a part of the prompt is damped.

Deiseroth et al., *AtMan: Understanding Transformer Predictions Through Memory Efficient Attention Manipulation*, 2023.
score(c, t) = log p_0(y_t) - log p_c(y_t) in nats, with p_c the pass in which the columns of chunk c carry the control
factor and p_0 the pass without; positive scores support the target. Exact: equal to one full forward pass per chunk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from explainers.controls import FactorRule, Factors, addressed, check_factor, resolve
from explainers.errors import InvalidRequest, MissingCapability
from explainers.granularity import CUTS, automatic, split_at
from explainers.language_model import LanguageModel, TokenSequence
from explainers.suppression import Suppressed, log_probabilities
from explainers.types import (
    AtmanConfig,
    Attribution,
    Checkpoint,
    Control,
    Feature,
    Granularity,
    Image,
    Postprocessing,
    Prompt,
    Span,
    Target,
    Text,
    TokenIds,
    never_stop,
)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A feature and the columns that damping it addresses."""

    feature: Feature
    factors: Factors


def attribute(
    model: LanguageModel, prompt: Prompt, target: str, config: AtmanConfig, checkpoint: Checkpoint = never_stop
) -> Attribution:
    """Scores of all chunks of `prompt` (and of earlier target tokens, for token targets) for `target`.

    Raises InvalidRequest and its kin for input this model cannot take, OutOfMemory, and what `checkpoint` raises.
    """
    started = time.perf_counter()
    _check(config)
    sequence = model.encode(prompt, target)
    granularity = config.granularity or _nearest_to_thirty(prompt, sequence)
    chunks = _prompt_chunks(prompt, sequence, granularity, config)
    if config.target_granularity == "token":
        chunks += _target_chunks(len(prompt), sequence, target, config)
    controls = resolve(sequence, prompt, config.overlap, checkpoint)
    rule = FactorRule(model, sequence, config.threshold, checkpoint)
    standing = rule.combine(controls)
    scores = log_probabilities(
        model,
        sequence,
        standing.factors,
        [rule.combine([chunk.factors], standing).factors for chunk in chunks],
        log_additive=config.log_additive,
        checkpoint=checkpoint,
    )
    _check_finite(model, scores)
    values = (scores.base - scores.variants).T  # (T, F)
    visible = _visible(sequence, chunks)
    facts = _facts(model, sequence, granularity, scores) | {"seconds": time.perf_counter() - started}
    return _attribution(config, sequence, target, chunks, scores.base, values, visible, facts)


def _check(config: AtmanConfig) -> None:
    check_factor(config.control_factor, "/control_factor")
    if config.threshold is not None and not -1 <= config.threshold <= 1:
        raise InvalidRequest("the similarity threshold must lie in -1..1", "/contextual_control_threshold")
    if config.granularity == "custom" and not config.delimiter:
        raise InvalidRequest("custom granularity needs a non-empty delimiter", "/prompt_granularity/delimiter")


def _check_finite(model: LanguageModel, scores: Suppressed) -> None:
    """A model can leave the range of its numbers (float16 above all); what it says then is no score."""
    if not (np.isfinite(scores.base).all() and np.isfinite(scores.variants).all()):
        raise MissingCapability(f"the model's log-probabilities overflow in {model.facts.get('dtype', 'its dtype')}")


def _attribution(
    config: AtmanConfig,
    sequence: TokenSequence,
    target: str,
    chunks: Sequence[Chunk],
    base: NDArray[np.float64],  # (T,)
    values: NDArray[np.float64],  # (T, F)
    visible: NDArray[np.bool_],  # (T, F)
    facts: dict[str, object],
) -> Attribution:
    values = _POSTPROCESSING[config.postprocessing](values)
    targets: tuple[Target, ...] = (Target(target, Span(0, len(target))),)
    if config.target_granularity == "token":
        targets = _target_tokens(sequence, target)
    else:
        values, visible = values.sum(axis=0, keepdims=True), visible[-1:]
        base = base.sum(keepdims=True)
    if config.normalize:
        values = _normalised(values, visible)
    features = tuple(chunk.feature for chunk in chunks)
    return Attribution("atman", features, targets, np.where(visible, values, 0.0), base, facts=facts)


_POSTPROCESSING: Mapping[Postprocessing, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "none": np.positive,
    "absolute": np.abs,
    "square": np.square,
}


def _normalised(values: NDArray[np.float64], visible: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Min-max to 0..1 over the visible features of each target; all equal gives 0."""
    if not values.shape[1]:
        return values
    low = np.where(visible, values, np.inf).min(axis=1, keepdims=True)
    high = np.where(visible, values, -np.inf).max(axis=1, keepdims=True)
    span = np.where(np.isfinite(high - low) & (high > low), high - low, np.inf)
    return np.where(visible, values - np.where(np.isfinite(low), low, 0.0), 0.0) / span


def _visible(sequence: TokenSequence, chunks: Sequence[Chunk]) -> NDArray[np.bool_]:  # (T, F)
    """Prompt chunks are features of every target token, a target token only of those after it."""
    first_target = sequence.first_scored + 1
    earliest = [max(min(chunk.factors, default=0) - first_target, -1) for chunk in chunks]
    return np.arange(len(sequence.target))[:, None] > np.array(earliest, dtype=int)[None, :]


def _facts(
    model: LanguageModel, sequence: TokenSequence, granularity: Granularity, scores: Suppressed
) -> dict[str, object]:
    return {
        "granularity": granularity,
        "prompt_tokens": len(sequence.prompt),
        "target_tokens": len(sequence.target),
        "forwards": scores.forwards,
        "rows": scores.rows,
        "dtype": str(model.facts.get("dtype", "")),
        "device": str(model.device),
        "warnings": list(sequence.warnings),
    }


def _nearest_to_thirty(prompt: Prompt, sequence: TokenSequence) -> Granularity:
    texts = [item.data for item in prompt if isinstance(item, Text)]
    ids = sum(len(item.ids) for item in prompt if isinstance(item, TokenIds))
    counts: list[tuple[Granularity, int]] = [("token", len(sequence.tokens))]
    counts += [(name, ids + sum(len(cut(text)) for text in texts)) for name, cut in CUTS.items()]
    return automatic(counts)


def _prompt_chunks(
    prompt: Prompt, sequence: TokenSequence, granularity: Granularity, config: AtmanConfig
) -> list[Chunk]:
    chunks = []
    for index, item in enumerate(prompt):
        if isinstance(item, Text) and granularity != "token":
            chunks += [
                Chunk(
                    Feature(item.data[span.start : span.stop], index, span),
                    addressed(sequence, index, Control(span, config.control_factor), config.overlap),
                )
                for span in _cut(item.data, granularity, config.delimiter)
            ]
        elif not isinstance(item, Image):
            chunks += _token_chunks(item, index, sequence, config)
    return chunks


def _token_chunks(item: Text | TokenIds, index: int, sequence: TokenSequence, config: AtmanConfig) -> list[Chunk]:
    """One chunk per token: exactly that token with the full factor, also where tokens share a character."""
    chunks = []
    for position in sequence.tokens_of(index):
        token = sequence.tokens[position]
        feature = Feature(str(sequence.prompt[position]), index, token.index)
        if isinstance(item, Text) and token.span is not None:
            feature = Feature(item.data[token.span.start : token.span.stop], index, token.span)
        chunks.append(Chunk(feature, {len(sequence.start) + position: config.control_factor}))
    return chunks


def _cut(text: str, granularity: Granularity, delimiter: str | None) -> list[Span]:
    return split_at(text, delimiter) if granularity == "custom" and delimiter else CUTS[granularity](text)


def _target_chunks(item: int, sequence: TokenSequence, target: str, config: AtmanConfig) -> list[Chunk]:
    """Every target token but the last, as a feature of those after it."""
    return [
        Chunk(
            Feature(target[span.start : span.stop], item, span),
            {sequence.first_scored + 1 + position: config.control_factor},
        )
        for position, span in enumerate(sequence.target_spans[:-1])
    ]


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
