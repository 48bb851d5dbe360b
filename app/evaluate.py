"""How likely is the model to say what was expected? Nothing is stored."""

from __future__ import annotations

from dataclasses import dataclass

from app import costs
from app.complete import Loaded, find_loaded, within_deadline
from app.costs import Estimate
from app.device import Priority
from app.explain import Explainer
from app.runtime import Spent
from app.turns import take_turns
from explainers.decoding import Steps
from explainers.evaluation import Evaluation, EvaluationConfig, evaluating
from explainers.types import Checkpoint, Prompt


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
    """Raises `UnknownModel`, `Limited`, `QueueFull`, `Conflict` past the deadline, InvalidRequest and its kin."""
    loaded = await find_loaded(explainer, tenant, asked.model)
    evaluation = await within_deadline(explainer, admitted(explainer, loaded, asked, Priority(nice=nice)))
    return Evaluated(loaded.model.digest, evaluation)


async def admitted(explainer: Explainer, loaded: Loaded, asked: Expectation, priority: Priority) -> Evaluation:
    """When the key may have it; it pays for what the device has done, also where it is stopped."""
    rates, registration, model, spent = explainer.rates, loaded.registration, loaded.model, Spent()

    async def estimate() -> Estimate:
        return costs.evaluating(rates, registration, model, asked.prompt, asked.expected)

    def start(checkpoint: Checkpoint) -> Steps[Evaluation]:
        return evaluating(model, asked.prompt, asked.expected, asked.config, checkpoint)

    async with explainer.gate.admitted(estimate) as charge:
        try:
            found = await take_turns(explainer.runtime, start, priority, on=model, spent=spent)
        finally:
            charge.seconds = spent.seconds
    operations = costs.evaluation_cost(model, found.prompt_tokens + found.tokens, found.tokens).operations
    costs.note(rates, registration, costs.EVALUATING, operations, spent.seconds)
    return found
