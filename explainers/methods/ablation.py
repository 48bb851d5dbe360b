"""Context attribution: parts of the prompt are removed in random halves, and a line is fitted to what the target loses.

After Cohen-Wang et al., *ContextCite: Attributing Model Generation to Context*, 2024, with attention to the parts
removed (factor 0 in the log-additive form) in place of their text, so that positions stay, and a ridge in place of the
lasso: a lasso draws slopes towards zero, and the standard errors of a line do not hold for those. A score is the part's
share of the log-probability, in nats, whatever else is there; its standard error comes with it. Halves come in pairs of
which one keeps what the other removes, drawn by a seed from the question.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from explainers import clock
from explainers.ablations import halves
from explainers.language_model import LanguageModel
from explainers.plan import Plan, attribution, check_finite, gains, kept, plan
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
    started, model = clock.working(), asked.model
    keeps = _halves(asked)  # (N, F) of 0 and 1
    shares = asked.shares()
    variants = [asked.base * kept(shares[keep == 0]) for keep in keeps]
    found = log_probabilities(model, asked.sequence, asked.base, variants, log_additive=True, checkpoint=checkpoint)
    check_finite(model, found.base, found.variants)
    losses = found.base - found.variants  # (N, T)
    if not asked.by_target_token:
        losses = losses.sum(axis=1, keepdims=True)
    fit = _fitted(1.0 - keeps, losses)
    errors = _errors(asked, fit)
    facts = {"forwards": found.forwards, "rows": found.rows, "samples": len(keeps)}
    spent = {"seconds": clock.working() - started}
    return attribution(asked, "ablation", fit.slopes, found.base, facts | spent, errors)


def _halves(asked: Plan) -> NDArray[np.float64]:  # (N, F)
    samples = asked.config.samples if isinstance(asked.config, AblationConfig) else AblationConfig().samples
    if not asked.chunks:
        return np.ones((0, 0))
    # What is done to the scores afterwards leaves the draws alone.
    material = repr((asked.sequence.read, asked.target, [chunk.factors for chunk in asked.chunks], samples)).encode()
    generator = np.random.default_rng(int.from_bytes(hashlib.sha256(material).digest()))
    return halves(generator, samples, len(asked.chunks))


@dataclass(frozen=True, slots=True)
class _Fit:
    slopes: NDArray[np.float64]  # (G, F)
    left: NDArray[np.float64]  # (N, G), what the line leaves of the losses
    reach: NDArray[np.float64]  # (F,), standard error of a slope per standard deviation of what is left
    freedom: float


def _fitted(removed: NDArray[np.float64], losses: NDArray[np.float64]) -> _Fit:  # (N, F), (N, G)
    """Slopes of `losses` in what is removed; the intercept is nobody's."""
    if not removed.size:
        return _Fit(np.zeros((losses.shape[1], 0)), np.zeros_like(losses), np.zeros(0), 1.0)
    centred, moved = removed - removed.mean(axis=0), losses - losses.mean(axis=0)
    inverse = np.linalg.inv(centred.T @ centred + RIDGE * np.eye(centred.shape[1]))
    slopes = inverse @ centred.T @ moved  # (F, G)
    spent = 1 + np.trace(centred @ inverse @ centred.T)
    return _Fit(slopes.T, moved - centred @ slopes, np.sqrt(np.diag(inverse)), max(1.0, len(removed) - spent))


def _errors(asked: Plan, fit: _Fit) -> NDArray[np.float64]:  # (T or 1, F)
    """Standard errors of post-processed scores, to first order; of a sum over the target, those of its fit."""
    steep = gains(asked, fit.slopes)  # (G, F)
    if asked.config.target_granularity == "token":
        squares = (fit.left**2).sum(axis=0)[:, None] * steep**2  # (T, F)
    else:
        squares = ((fit.left @ steep) ** 2).sum(axis=0, keepdims=True)  # (1, F)
    errors: NDArray[np.float64] = fit.reach * np.sqrt(squares / fit.freedom)
    return errors
