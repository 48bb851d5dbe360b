"""Attention suppression: how much less likely the target becomes when attention to a part of the prompt is damped.

Deiseroth et al., *AtMan: Understanding Transformer Predictions Through Memory Efficient Attention Manipulation*, 2023.
score(c, t) = log p_0(y_t) - log p_c(y_t) in nats, with p_c the pass in which the columns of chunk c carry the control
factor and p_0 the pass without; positive scores support the target. Exact: equal to one full forward pass per chunk.
"""

from __future__ import annotations

from explainers import clock
from explainers.language_model import LanguageModel
from explainers.plan import Plan, attribution, check_finite, plan
from explainers.suppression import log_probabilities
from explainers.types import AtmanConfig, Attribution, Checkpoint, Prompt, never_stop


def attribute(
    model: LanguageModel, prompt: Prompt, target: str, config: AtmanConfig, checkpoint: Checkpoint = never_stop
) -> Attribution:
    """Scores of all chunks of `prompt` (and of earlier target tokens, for token targets) for `target`.

    Raises InvalidRequest and its kin for input this model cannot take, OutOfMemory, and what `checkpoint` raises.
    """
    return explain(plan(model, prompt, target, config, checkpoint), checkpoint)


def explain(asked: Plan, checkpoint: Checkpoint = never_stop) -> Attribution:
    """The scores that a plan asks for."""
    started, model, additive = clock.working(), asked.model, asked.config.log_additive
    scores = log_probabilities(
        model, asked.sequence, asked.base, asked.variants, log_additive=additive, checkpoint=checkpoint
    )
    check_finite(model, scores.base, scores.variants)
    facts = {"forwards": scores.forwards, "rows": scores.rows, "seconds": clock.working() - started}
    return attribution(asked, "atman", (scores.base - scores.variants).T, scores.base, facts)
