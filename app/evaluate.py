"""How likely is the model to say what was expected? Nothing is stored."""

from __future__ import annotations

from dataclasses import dataclass

from app.complete import within_deadline
from app.device import Priority
from app.explain import Explainer
from app.models import load_model
from app.turns import take_turns
from explainers.evaluation import Evaluation, EvaluationConfig, evaluating
from explainers.types import Prompt


@dataclass(frozen=True, slots=True)
class Expectation:
    """The model should say `expected` after `prompt`."""

    model: str
    prompt: Prompt
    expected: str
    config: EvaluationConfig


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation, and the weights that were asked."""

    model_digest: str
    evaluation: Evaluation


async def evaluate_completion(
    explainer: Explainer, tenant: str, asked: Expectation, *, nice: bool = False
) -> Evaluated:
    """Raises `UnknownModel`, `QueueFull`, `Conflict` past the deadline, InvalidRequest and its kin."""
    model = await load_model(explainer.database, explainer.runtime, tenant, asked.model)
    work = take_turns(
        explainer.runtime,
        lambda checkpoint: evaluating(model, asked.prompt, asked.expected, asked.config, checkpoint),
        Priority(nice=nice),
    )
    return Evaluated(model.digest, await within_deadline(explainer, work))
