"""What a request will take, known before any of it is done: one measure for all kinds of work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from app.forecasts import FASTEST, MOST_PREDICTIONS_PER_SECOND, Expected, Rates
from app.questions import Forecast, Question, forecast, spoken
from app.runtime import Registration
from explainers import cost as passes
from explainers.context import ContextQuestion, largest, sources_of
from explainers.decoding import CompletionConfig, Completions, encoded, most_generated
from explainers.language_model import LanguageModel, TokenSequence
from explainers.registry import METHODS
from explainers.types import AblationConfig, Image, Prompt, Text, TokenIds

TILES = 144
"""Of an image, at most."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What work takes at most. `forwards` are passes through the model, of a predictor rows or texts that it is asked
    for; `bytes` memory beyond the weights, or of what is read; `seconds` those of the device.

    Not `measured`: nothing like it was timed yet, and it takes at least so many seconds.
    """

    tokens: int = 0
    chunks: int = 0
    forwards: int = 0
    bytes: int = 0
    seconds: float = 0.0
    measured: bool = True


@dataclass(frozen=True, slots=True)
class Estimate:
    """How a cost is found when it is needed. `most` bounds its seconds from above without a look at the request."""

    cost: Callable[[], Awaitable[Cost]]
    most: Callable[[], float] | None = None


Estimating: TypeAlias = Callable[[], Awaitable[Estimate]]
"""Gets at hand what an estimate needs, such as the model."""


def known(cost: Cost) -> Estimating:
    """Of work whose cost is known already."""

    async def found() -> Cost:
        return cost

    async def estimating() -> Estimate:
        return Estimate(found, lambda: cost.seconds)

    return estimating


# -- language models ---------------------------------------------------------------------------------------------------


def speeds_of(registration: Registration, work: str) -> tuple[tuple[object, ...], tuple[object, ...]]:
    """By what such work is timed: itself, and whatever this model does; nobody learns of strangers' times."""
    whole = (registration.tenant, *registration.weights)
    return (*whole, work), whole


def note(rates: Rates, registration: Registration, work: str, operations: float, seconds: float) -> None:
    """Remembers how long finished work has kept the device."""
    for key in speeds_of(registration, work):
        rates.note(key, operations, seconds)


def expected(rates: Rates, registration: Registration, model: LanguageModel, work: str, operations: float) -> Expected:
    fastest = FASTEST.get(model.device.type, FASTEST["cuda"])
    return rates.expected(*speeds_of(registration, work), operations, fastest)


def explaining(rates: Rates, registration: Registration, model: LanguageModel, question: Question) -> Estimate:
    def most() -> float:
        return expected(rates, registration, model, question.method, most_operations(model, question)).seconds

    async def cost() -> Cost:
        return await asyncio.to_thread(explanation_cost, rates, registration, model, question)

    # What the model will say first is bounded by its context alone.
    return Estimate(cost, most if question.generate is None else None)


def most_operations(model: LanguageModel, question: Question) -> float:
    method = METHODS[question.method]
    samples = question.config.samples if isinstance(question.config, AblationConfig) else 0
    chunks = max(samples, len(question.target) + sum(most_chunks(item) for item in question.prompt))
    return passes.most_arithmetic(
        model, chunks, gradient=method.gradient, evaluate=question.evaluate, uncertainty=question.uncertainty
    )


def most_chunks(item: Text | TokenIds | Image) -> int:
    """Pieces of an item, none of which is empty."""
    match item:
        case Text():
            return len(item.data.encode(errors="replace"))
        case TokenIds():
            return len(item.ids)
        case Image():
            return TILES


def explanation_cost(rates: Rates, registration: Registration, model: LanguageModel, question: Question) -> Cost:
    """Blocks: cuts the prompt into tokens and pieces. Raises what answering would raise about the question itself."""
    # Similar tokens need the model's embeddings, and change no count.
    asked = replace(question, config=replace(question.config, threshold=None))
    if asked.generate is not None:
        return generation_and_explanation(rates, registration, model, asked, asked.generate)
    return of_forecast(rates, registration, model, question, forecast(model, asked))


def of_forecast(
    rates: Rates, registration: Registration, model: LanguageModel, question: Question, found: Forecast
) -> Cost:
    work = found.cost
    time = expected(rates, registration, model, question.method, work.operations)
    tokens = len(found.plan.sequence.prompt) + len(found.plan.sequence.target)
    return Cost(tokens, len(found.plan.chunks), work.forwards + work.backwards, work.bytes, *time)


def generation_and_explanation(
    rates: Rates, registration: Registration, model: LanguageModel, question: Question, config: CompletionConfig
) -> Cost:
    """As if the model said as much as it may, and each token of it took as much as any other."""
    sequence = encoded(model, spoken(model, question.prompt))
    said = most_generated(model, sequence, config)
    spoken_first = completion_cost(rates, registration, model, spoken(model, question.prompt), config)
    explained = explanation_cost(rates, registration, model, replace(question, target="a", generate=None))
    times = (sequence.positions + said) / sequence.positions
    if question.config.target_granularity == "token" or question.config.postprocessing != "none":
        times *= max(1, said)
    return Cost(
        spoken_first.tokens,
        explained.chunks + said,
        spoken_first.forwards + round(explained.forwards * times),
        max(spoken_first.bytes, round(explained.bytes * times)),
        spoken_first.seconds + explained.seconds * times,
        spoken_first.measured and explained.measured,
    )


COMPLETING, EVALUATING = "complete", "evaluate"


def completing(
    rates: Rates, registration: Registration, model: LanguageModel, prompt: Prompt, config: CompletionConfig
) -> Estimate:
    def most() -> float:
        whole = model.context_length
        work = passes.generation_cost(model, whole, whole, passes.candidates(config))[1]
        return expected(rates, registration, model, COMPLETING, work.operations).seconds

    async def cost() -> Cost:
        return await asyncio.to_thread(completion_cost, rates, registration, model, prompt, config)

    return Estimate(cost, most)


def completion_cost(
    rates: Rates, registration: Registration, model: LanguageModel, prompt: Prompt, config: CompletionConfig
) -> Cost:
    tokens, work = passes.completion_cost(model, prompt, config)
    time = expected(rates, registration, model, COMPLETING, work.operations)
    return Cost(tokens, 0, work.forwards, work.bytes, *time)


def note_completion(
    rates: Rates, registration: Registration, model: LanguageModel, found: Completions, branches: int, seconds: float
) -> None:
    each = -(-found.generated_tokens // branches)
    work = passes.generation_cost(model, found.prompt_tokens, each, branches)[1]
    note(rates, registration, COMPLETING, work.operations, seconds)


def evaluating(
    rates: Rates, registration: Registration, model: LanguageModel, prompt: Prompt, completion: str
) -> Estimate:
    def most() -> float:
        whole = model.context_length
        operations = evaluation_cost(model, whole, whole).operations
        return expected(rates, registration, model, EVALUATING, operations).seconds

    def count() -> Cost:
        sequence = model.encode(prompt, completion)
        work = evaluation_cost(model, sequence.positions, len(sequence.target))
        time = expected(rates, registration, model, EVALUATING, work.operations)
        return Cost(sequence.positions + 1, 0, work.forwards, work.bytes, *time)

    async def cost() -> Cost:
        return await asyncio.to_thread(count)

    return Estimate(cost, most)


def evaluation_cost(model: LanguageModel, positions: int, target: int) -> passes.Cost:
    """The prompt and the target are read, then the prompt again, and as many tokens generated."""
    work = passes.generation_cost(model, 2 * positions, target, 1)[1]
    return replace(work, forwards=1 + target)


ATTRIBUTING = "context-attribution"


def attributing(rates: Rates, registration: Registration, model: LanguageModel, question: ContextQuestion) -> Estimate:
    def most() -> float:
        whole = model.context_length
        work = passes.reading_cost(model, whole, whole, 1 + question.ablations)
        return expected(rates, registration, model, ATTRIBUTING, work.operations).seconds

    async def cost() -> Cost:
        sequence, work = await asyncio.to_thread(attribution_cost, model, question)
        time = expected(rates, registration, model, ATTRIBUTING, work.operations)
        sources = await asyncio.to_thread(sources_of, question.context, question.granularity)
        return Cost(sequence.positions + 1, len(sources), work.forwards, work.bytes, *time)

    return Estimate(cost, most)


def attribution_cost(model: LanguageModel, question: ContextQuestion) -> tuple[TokenSequence, passes.Cost]:
    sequence = largest(model, question)
    work = passes.reading_cost(model, sequence.positions, len(sequence.target), 1 + question.ablations)
    return sequence, work


def note_attribution(
    rates: Rates, registration: Registration, model: LanguageModel, question: ContextQuestion, seconds: float
) -> None:
    """Blocks: as `note`, by the bound that its cost is."""
    operations = attribution_cost(model, question)[1].operations
    rates.note(speeds_of(registration, ATTRIBUTING)[0], operations, seconds)


INDEXING = "influence-index"
BYTES_PER_TOKEN = 3
"""Of training data; most tokenizers need fewer tokens."""


def indexing(rates: Rates, registration: Registration, model: LanguageModel, examples: int, size: int) -> Cost:
    """Of an index of so many examples of so many bytes: each token goes forwards and backwards, and forwards through
    the base.
    """
    tokens = -(-size // BYTES_PER_TOKEN)
    times = 3 if registration.base is None else 4
    operations = passes.arithmetic(
        model, tokens * times, min(model.context_length, 1 + tokens // max(1, examples)), tokens
    )
    time = expected(rates, registration, model, INDEXING, operations)
    return Cost(tokens, examples, examples * times, size, *time)


# -- predictors --------------------------------------------------------------------------------------------------------


def predicting(
    rates: Rates, tenant: str, digest: str, algorithm: str, predictions: int, inputs: int, *, stored: bool = False
) -> Cost:
    """Of explaining a row, or those that are stored."""
    one, many = speed(tenant, digest, algorithm), stored_speed(tenant, digest, algorithm)
    own, alike = (many, one) if stored else (one, many)
    time = rates.expected(own, alike, predictions, MOST_PREDICTIONS_PER_SECOND)
    return Cost(0, inputs, predictions, predictions * inputs * 8, *time)


def speed(tenant: str, digest: str, algorithm: str) -> tuple[str, ...]:
    """By what the explanation of a row by a predictor is timed."""
    return tenant, digest, algorithm


def stored_speed(tenant: str, digest: str, algorithm: str) -> tuple[str, ...]:
    """The same of many rows at once, which share what can be shared."""
    return tenant, digest, algorithm, "stored"
