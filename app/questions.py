"""A question about a completion: what decides its answer, as plain JSON, and answering it on the device thread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from app.device import Steps
from app.records import Record, digest_of, request_from, request_record
from explainers import clock
from explainers.cost import Cost, cost
from explainers.decoding import CompletionConfig, complete
from explainers.errors import InvalidRequest, MissingCapability
from explainers.faithfulness import faithfulness
from explainers.language_model import LanguageModel
from explainers.noise import noise_floor
from explainers.plan import Plan, plan
from explainers.registry import METHODS
from explainers.sampling import Sampling
from explainers.types import AtmanConfig, Attribution, Checkpoint, Prompt, Text


@dataclass(frozen=True)
class Question:
    """Why did the model say `target` after `prompt`? With `generate`: why does it say what it says next?

    `evaluate` adds a removal test of the scores, `uncertainty` the noise floor of each.
    """

    model: str
    prompt: Prompt
    target: str
    config: AtmanConfig
    method: str = "atman"
    evaluate: bool = False
    uncertainty: bool = False
    generate: CompletionConfig | None = None

    @cached_property
    def record(self) -> Record:
        """Everything that decides the answer but the model. What is not asked for is not named."""
        extras = {
            "evaluate": self.evaluate,
            "uncertainty": self.uncertainty,
            "generate": None if self.generate is None else asdict(self.generate),
        }
        named = {name: value for name, value in extras.items() if value}
        return request_record(self.method, self.prompt, self.target, self.config) | named

    @cached_property
    def key(self) -> bytes:
        """The name of this question to a revision of its method; with exact weights it names one computation."""
        return digest_of(METHODS[self.method].revision, self.record)

    @property
    def seed(self) -> int:
        return int.from_bytes(self.key[:8])


@dataclass(frozen=True, slots=True)
class Forecast:
    """What an answer will take, found without running the model."""

    plan: Plan
    cost: Cost


def question_from(model: str, record: Mapping[str, Any]) -> Question:
    """The inverse of `Question.record`."""
    method, prompt, target, config = request_from(record)
    generate = completion_from(record["generate"]) if record.get("generate") else None
    evaluate, uncertainty = bool(record.get("evaluate")), bool(record.get("uncertainty"))
    return Question(model, prompt, target, config, method, evaluate, uncertainty, generate)


def completion_from(record: Mapping[str, Any]) -> CompletionConfig:
    biases = tuple((int(token), float(bias)) for token, bias in record["sampling"]["logit_bias"])
    sampling = Sampling(**{**record["sampling"], "logit_bias": biases})
    return CompletionConfig(**{**record, "sampling": sampling, "stop_sequences": tuple(record["stop_sequences"])})


def answer(
    model: LanguageModel,
    question: Question,
    checkpoint: Checkpoint,
    steps: Steps | None = None,
    prompt: Prompt | None = None,
) -> Attribution:
    """Blocks until done: completes where that is asked for, explains, and judges the scores where that is asked for.

    `steps` are told of the passes that explaining and judging take; `prompt` is the question's as `spoken`.
    """
    started = clock.working()
    prompt, target, facts = prompt or spoken(model, question.prompt), question.target, dict[str, Any]()
    if question.generate is not None:
        target = generated(model, prompt, question.generate, checkpoint)
        facts["completion"] = target
    asked = plan(model, prompt, target, question.config, checkpoint)
    method, expected = METHODS[question.method], taken(asked, question)
    if steps is not None:
        steps.total = max(1, expected.forwards)
        checkpoint = steps.counting(checkpoint)
    begun = clock.working()
    found = method.explain(asked, checkpoint)
    forwards = int(found.facts["forwards"])
    if question.uncertainty and found.uncertainty is None:
        noise = noise_floor(method.explain, asked, found, checkpoint)
        found, forwards = replace(found, uncertainty=noise.floor), forwards + noise.forwards
    if question.evaluate:
        judged = faithfulness(model, prompt, target, question.config, found, question.seed, checkpoint)
        facts["faithfulness"], forwards = asdict(judged), forwards + judged.forwards
    if method.approximate:
        facts["approximate"] = True
    if not np.isfinite(found.values).all():
        raise InvalidRequest("the scores of this request are not finite numbers")
    ended = clock.working()
    facts |= {"forwards": forwards, "seconds": ended - started}
    facts |= {"operations": expected.operations, "explaining_seconds": ended - begun}
    return replace(found, facts={**found.facts, **facts})


def forecast(model: LanguageModel, question: Question, prompt: Prompt | None = None) -> Forecast:
    """Plans the answer; raises what answering would raise about the question itself. `prompt` as in `answer`."""
    if question.generate is not None:
        raise InvalidRequest("a dry run needs a target: what the model will say is not known", "/dry_run")
    asked = plan(model, prompt or spoken(model, question.prompt), question.target, question.config)
    return Forecast(asked, taken(asked, question))


def taken(asked: Plan, question: Question) -> Cost:
    method = METHODS[question.method]
    return cost(
        asked,
        gradient=method.gradient,
        exact=method.exact,
        evaluate=question.evaluate,
        uncertainty=question.uncertainty,
    )


def has_turns(prompt: Prompt) -> bool:
    """Whether it holds messages, for a chat template."""
    return any(isinstance(item, Text) and item.turn is not None for item in prompt)


def spoken(model: LanguageModel, prompt: Prompt) -> Prompt:
    """The prompt as the model reads it: messages get what the model's chat template puts around them."""
    if not has_turns(prompt):
        return prompt
    if model.chat is None:
        raise MissingCapability("this model has no chat template: send `prompt` instead of `messages`", "/messages")
    return model.chat.around(prompt, start=bool(model.start))


def generated(model: LanguageModel, prompt: Prompt, config: CompletionConfig, checkpoint: Checkpoint) -> str:
    """What the model says next; raises InvalidRequest when that is nothing."""
    try:
        text = complete(model, prompt, config, checkpoint).items[0].text
    except InvalidRequest as error:
        own = (error.pointer or "").startswith("/prompt")
        raise type(error)(str(error), error.pointer if own else f"/generate{error.pointer or ''}") from error
    if not text:
        raise InvalidRequest("the model says nothing after this prompt: there is nothing to explain", "/generate")
    return text
