"""How likely a model is to say what was expected, under the prompt's controls; and what it would say by itself."""

from __future__ import annotations

from dataclasses import dataclass

from explainers.controls import FactorRule, resolve
from explainers.decoding import CompletionConfig, Steps, completing, outcome_of, prompt_tokens
from explainers.errors import InvalidRequest
from explainers.language_model import LanguageModel, TokenSequence
from explainers.plan import check_finite
from explainers.suppression import log_probabilities
from explainers.types import Checkpoint, Overlap, Prompt, never_stop

POINTER = "/completion_expected"


@dataclass(frozen=True, slots=True)
class EvaluationConfig:
    """How the prompt's controls act."""

    threshold: float | None = None
    log_additive: bool = True
    overlap: Overlap = "partial"


@dataclass(frozen=True, slots=True)
class Evaluation:
    log_probability: float  # in nats, of all expected tokens together
    tokens: int
    characters: int
    greedy: str  # as many tokens of the model's own
    correct_greedy: bool
    prompt_tokens: int
    warnings: tuple[str, ...] = ()


def evaluate(
    model: LanguageModel,
    prompt: Prompt,
    expected: str,
    config: EvaluationConfig = EvaluationConfig(),
    checkpoint: Checkpoint = never_stop,
) -> Evaluation:
    """The log-probability of `expected` after the prompt, and the greedy completion of the same length.

    Raises InvalidRequest and its kin, OutOfMemory, and whatever `checkpoint` raises.
    """
    return outcome_of(evaluating(model, prompt, expected, config, checkpoint))


def evaluating(
    model: LanguageModel, prompt: Prompt, expected: str, config: EvaluationConfig, checkpoint: Checkpoint = never_stop
) -> Steps[Evaluation]:
    """`evaluate`, which pauses after each pass."""
    sequence = _encoded(model, prompt, expected)
    controls = resolve(sequence, prompt, config.overlap, checkpoint)
    factors = FactorRule(model, sequence, config.threshold, checkpoint).combine(controls).factors
    scores = log_probabilities(
        model, sequence, factors, [], log_additive=config.log_additive, checkpoint=checkpoint
    ).base
    check_finite(model, scores)
    yield
    alike = CompletionConfig(
        maximum_tokens=len(sequence.target),
        threshold=config.threshold,
        log_additive=config.log_additive,
        overlap=config.overlap,
        ends=False,
    )
    (greedy,) = (yield from completing(model, prompt, alike, checkpoint)).items
    return Evaluation(
        log_probability=float(scores.sum()),
        tokens=len(sequence.target),
        characters=len(expected),
        greedy=greedy.text,
        correct_greedy=greedy.generated == sequence.target,
        prompt_tokens=prompt_tokens(sequence),
        warnings=sequence.warnings,
    )


def _encoded(model: LanguageModel, prompt: Prompt, expected: str) -> TokenSequence:
    try:
        return model.encode(prompt, expected)
    except InvalidRequest as error:
        if error.pointer != "/target":
            raise
        raise type(error)(str(error).replace("the target", "it"), POINTER) from None
