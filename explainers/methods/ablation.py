"""Context attribution: parts of the prompt are removed in random halves, and a line is fitted to what the target loses.

After Cohen-Wang et al., *ContextCite: Attributing Model Generation to Context*, 2024, with attention to the parts
removed (factor 0 in the log-additive form) in place of their text, so that positions stay, and a ridge in place of the
lasso. A score is the part's share of the log-probability, in nats, whatever else is there; its standard error comes
with it. Halves come in pairs of which one keeps what the other removes, drawn by a seed from the question.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from explainers.language_model import LanguageModel
from explainers.plan import Plan, attribution, check_finite, kept, plan
from explainers.suppression import log_probabilities
from explainers.types import AblationConfig, Attribution, Checkpoint, Prompt, never_stop

RIDGE = 0.1
"""Keeps the fit defined where there are more pieces than samples; else next to nothing."""


def attribute(
    model: LanguageModel, prompt: Prompt, target: str, config: AblationConfig, checkpoint: Checkpoint = never_stop
) -> Attribution:
    """Fitted scores of all chunks of `prompt` (and of earlier target tokens, for token targets) for `target`."""
    return explain(plan(model, prompt, target, config, checkpoint), checkpoint)


def explain(asked: Plan, checkpoint: Checkpoint = never_stop) -> Attribution:
    """The fitted scores of what a plan with a control factor of 0 asks for."""
    started, model = time.perf_counter(), asked.model
    keeps = _halves(asked)  # (N, F) of 0 and 1
    shares = asked.shares()
    variants = [asked.base * kept(shares[keep == 0]) for keep in keeps]
    found = log_probabilities(model, asked.sequence, asked.base, variants, log_additive=True, checkpoint=checkpoint)
    check_finite(model, found.base, found.variants)
    losses = found.base - found.variants  # (N, T)
    if not asked.by_target_token:
        losses = losses.sum(axis=1, keepdims=True)
    scores, errors = _fitted(1.0 - keeps, losses)
    facts = {"forwards": found.forwards, "rows": found.rows, "samples": len(keeps)}
    answer = attribution(asked, "ablation", scores, found.base, facts | {"seconds": time.perf_counter() - started})
    return replace(answer, uncertainty=_errors_of(asked, answer, errors))


def _halves(asked: Plan) -> NDArray[np.float64]:  # (N, F)
    samples = asked.config.samples if isinstance(asked.config, AblationConfig) else AblationConfig().samples
    if not asked.chunks:
        return np.ones((0, 0))
    material = repr((asked.sequence.read, asked.target, asked.config)).encode()
    generator = np.random.default_rng(int.from_bytes(hashlib.sha256(material).digest()))
    first = generator.integers(0, 2, size=((samples + 1) // 2, len(asked.chunks)))
    return np.stack([first, 1 - first], axis=1).reshape(-1, len(asked.chunks))[:samples].astype(float)


def _fitted(
    removed: NDArray[np.float64], losses: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:  # (N, F), (N, G) -> (G, F), (G, F)
    """Slopes of `losses` in what is removed, and their standard errors; the intercept is nobody's."""
    if not removed.size:
        return np.zeros((losses.shape[1], 0)), np.zeros((losses.shape[1], 0))
    centred, moved = removed - removed.mean(axis=0), losses - losses.mean(axis=0)
    inverse = np.linalg.inv(centred.T @ centred + RIDGE * np.eye(centred.shape[1]))
    slopes = inverse @ centred.T @ moved  # (F, G)
    spent = 1 + np.trace(centred @ inverse @ centred.T)
    variance = ((moved - centred @ slopes) ** 2).sum(axis=0) / max(1.0, len(removed) - spent)  # (G,)
    errors = np.sqrt(variance[:, None] * np.diag(inverse)[None, :])
    return slopes.T, errors


def _errors_of(asked: Plan, answer: Attribution, errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard errors in the unit of the answer's scores; those of post-processed or normalised ones at most that."""
    if len(errors) != len(answer.targets):
        errors = np.sqrt((errors**2).sum(axis=0, keepdims=True))
    return np.where(answer.values == 0, 0.0, errors)
