"""Attention suppression where it matters: first-order scores for all chunks, exact ones for those that look largest.

Gradients rank well but live on a scale of their own. The scores of the chunks that are not computed exactly are
multiplied by the median of exact over predicted size among those that are. `facts["exact"]` says which is which.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from explainers import clock
from explainers.errors import InvalidRequest
from explainers.language_model import LanguageModel
from explainers.plan import Plan, attribution, check_finite, plan
from explainers.sensitivity import sensitivity
from explainers.suppression import log_probabilities
from explainers.types import Attribution, Checkpoint, Prompt, ScreenedConfig, never_stop


def attribute(
    model: LanguageModel, prompt: Prompt, target: str, config: ScreenedConfig, checkpoint: Checkpoint = never_stop
) -> Attribution:
    """Scores of all chunks; exactly computed for the `config.exact` of the largest predicted size."""
    if config.exact < 1:
        raise InvalidRequest("at least one piece must be scored exactly", "/exact_scores")
    return explain(plan(model, prompt, target, config, checkpoint), checkpoint)


def explain(asked: Plan, checkpoint: Checkpoint = never_stop) -> Attribution:
    """The scores of what a plan asks for."""
    started, model, config = clock.working(), asked.model, asked.config
    additive, by_token = config.log_additive, asked.by_target_token
    count = config.exact if isinstance(config, ScreenedConfig) else ScreenedConfig().exact
    screen = sensitivity(
        model, asked.sequence, asked.base, log_additive=additive, per_token=by_token, checkpoint=checkpoint
    )
    predicted = screen.predicted(asked.base, asked.variants, log_additive=additive)  # (G, F)
    largest = np.sort(np.argsort(-np.abs(predicted).sum(axis=0), kind="stable")[:count])  # (k,)
    variants = [asked.variants[column] for column in largest]
    measured = log_probabilities(
        model, asked.sequence, asked.base, variants, log_additive=additive, checkpoint=checkpoint
    )
    exact = (measured.base - measured.variants).T  # (T, k)
    check_finite(model, measured.base, exact, predicted)
    exact = exact if by_token else exact.sum(axis=0, keepdims=True)
    scale = _scale(exact, predicted[:, largest])
    values = predicted * scale
    values[:, largest] = exact
    facts = {
        "forwards": screen.forwards + measured.forwards,
        "backwards": screen.backwards,
        "rows": screen.rows + measured.rows,
        "seconds": clock.working() - started,
        "exact": np.isin(np.arange(len(asked.chunks)), largest).tolist(),
        "scale": scale,
    }
    return attribution(asked, "screened", values, measured.base, facts)


def _scale(exact: NDArray[np.float64], predicted: NDArray[np.float64]) -> float:
    """The median of |exact| / |predicted| where something was predicted; 1 where nothing was."""
    sizes = np.abs(predicted)
    if not sizes.any():
        return 1.0
    counted = sizes > sizes.max() * 1e-3
    return float(np.median(np.abs(exact[counted]) / sizes[counted]))
