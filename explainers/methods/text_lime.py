"""LIME for texts: how much of an output each token carries, by what it becomes when random tokens are removed.

Ribeiro, Singh and Guestrin 2016. Between one and all tokens are removed, each number of them equally often; weights
fall with the cosine distance from the whole text. Each occurrence is a token of its own.

The original ridge of 1 hides the effect of short texts: what is left of them weighs next to nothing, and a true effect
of 0.70 reads 0.20 for one token. So up to ten tokens every mask is taken, as often as it would be drawn, with next to
no ridge; longer texts are sampled with a small one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from explainers.answers import numbers, targets_of
from explainers.errors import InvalidRequest
from explainers.local_fit import LocalFit, fitted
from explainers.predictor import TextPredictor
from explainers.seeds import derived, generator
from explainers.text_masks import TextOptions, cut, facts_of, predict_texts
from explainers.types import Attribution, Checkpoint, never_stop

ENUMERATED = 10
"""Tokens up to which all masks are taken: 1,024 texts at most."""

RIDGE, RIDGE_OF_ALL = 1e-3, 1e-6

WIDTH = 25.0
"""Of the kernel, where 100 is the distance of texts that share nothing."""


@dataclass(frozen=True, slots=True)
class TextLimeConfig:
    """`samples` per text, itself included."""

    samples: int = 2000
    seed: int = 0
    options: TextOptions = field(default_factory=TextOptions)


def attribute(
    predictor: TextPredictor,
    texts: Sequence[str],
    ids: Sequence[str],
    config: TextLimeConfig = TextLimeConfig(),
    checkpoint: Checkpoint = never_stop,
) -> tuple[Attribution, ...]:
    """One answer per text, which depends on nothing but the text and its id; no tokens, no scores.

    Raises InvalidRequest for too few samples or a broken delimiter, InconsistentAnswer for outputs that are not finite.
    """
    if config.samples < 2:
        raise InvalidRequest("LIME needs two samples at least", "/n_samples")
    return tuple(_answer(predictor, text, id, config, checkpoint) for text, id in zip(texts, ids, strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class _Masks:
    kept: NDArray[np.bool_]  # (n, M), distinct, the whole text first
    counts: NDArray[np.float64]  # (n,), how often each is drawn
    exact: bool


def _answer(
    predictor: TextPredictor, text: str, id: str, config: TextLimeConfig, checkpoint: Checkpoint
) -> Attribution:
    pieces = cut(text, config.options.delimiter)
    options = config.options.facts | {"seed": str(config.seed)}
    seed = derived(predictor.digest, "lime", config.samples, options, "", id)
    masks = _masks(len(pieces.tokens), config.samples, seed)
    outputs = predict_texts(predictor, pieces.without(masks.kept, config.options), checkpoint)
    fit = _fit(masks, outputs)
    errors = np.zeros_like(fit.errors) if masks.exact else fit.errors
    facts = facts_of(predictor, config.options, seed, outputs[0]) | _facts(masks, fit)
    return Attribution("lime", pieces.features, targets_of(predictor.outputs), fit.slopes, None, errors, facts)


def _facts(masks: _Masks, fit: LocalFit) -> dict[str, Any]:
    return {
        "n_samples": round(masks.counts.sum()),
        "distinct_samples": len(masks.kept),
        "exact": masks.exact,
        "local_fit_r2": numbers(fit.r2),
        "effective_samples": fit.samples,
        "intercept": numbers(fit.intercepts),
    }


def _fit(masks: _Masks, outputs: NDArray[np.float64]) -> LocalFit:
    tokens = masks.kept.shape[1]
    cosine = np.sqrt(masks.kept.sum(axis=1) / max(1, tokens))
    kernel = np.exp(-((100 * (1 - cosine)) ** 2) / (2 * WIDTH**2))
    ridge = RIDGE_OF_ALL if masks.exact else RIDGE
    return fitted(masks.kept.astype(float), outputs, kernel, ridge, masks.counts)


def _masks(tokens: int, samples: int, seed: int) -> _Masks:
    if not tokens:
        return _Masks(np.ones((1, 0), dtype=bool), np.ones(1), True)
    return _enumerated(tokens, samples) if tokens <= ENUMERATED else _sampled(tokens, samples, seed)


def _enumerated(tokens: int, samples: int) -> _Masks:
    kept = (np.arange(2**tokens)[::-1, None] >> np.arange(tokens) & 1).astype(bool)
    removed = tokens - kept[1:].sum(axis=1)
    of_size = np.array([comb(tokens, size) for size in range(tokens + 1)])
    return _Masks(kept, np.concatenate([[1.0], (samples - 1) / (tokens * of_size[removed])]), True)


def _sampled(tokens: int, samples: int, seed: int) -> _Masks:
    random = generator(seed)
    removed = random.integers(1, tokens + 1, size=(samples - 1, 1))
    kept = random.random((samples - 1, tokens)).argsort(axis=1).argsort(axis=1) >= removed
    packed = np.packbits(np.concatenate([np.ones((1, tokens), dtype=bool), kept]), axis=1)
    distinct, counts = np.unique(packed, axis=0, return_counts=True)
    masks = np.unpackbits(distinct[::-1], axis=1, count=tokens).astype(bool)
    return _Masks(masks, counts[::-1].astype(float), False)
