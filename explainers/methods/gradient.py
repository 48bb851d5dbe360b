"""First-order attention suppression: what damping a part of the prompt would do, predicted from one derivative.

The score of a chunk is the fall of the target's log-probability that `atman` measures, to first order in the change of
the columns' factors. One forward and one backward pass for the whole target, whatever the number of chunks; with token
targets (or where scores are post-processed token by token) one backward pass per target token. Approximate: it
cannot see saturation, nor what several damped tokens do together.
"""

from __future__ import annotations

from explainers import clock
from explainers.language_model import LanguageModel
from explainers.plan import Plan, attribution, check_finite, plan
from explainers.sensitivity import sensitivity
from explainers.types import AtmanConfig, Attribution, Checkpoint, Prompt, never_stop


def attribute(
    model: LanguageModel, prompt: Prompt, target: str, config: AtmanConfig, checkpoint: Checkpoint = never_stop
) -> Attribution:
    """Predicted scores of all chunks of `prompt` (and of earlier target tokens, for token targets) for `target`."""
    return explain(plan(model, prompt, target, config, checkpoint), checkpoint)


def explain(asked: Plan, checkpoint: Checkpoint = never_stop) -> Attribution:
    """The predicted scores of what a plan asks for."""
    started, additive, by_token = clock.working(), asked.config.log_additive, asked.by_target_token
    found = sensitivity(
        asked.model, asked.sequence, asked.base, log_additive=additive, per_token=by_token, checkpoint=checkpoint
    )
    values = found.predicted(asked.base, asked.variants, log_additive=additive)
    check_finite(asked.model, found.base, values)
    facts = {"forwards": found.forwards, "backwards": found.backwards, "rows": found.rows}
    return attribution(asked, "gradient", values, found.base, facts | {"seconds": clock.working() - started})
