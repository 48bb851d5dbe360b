"""The third question: from which training example?

Answered as the first one is: computed once for all who ask the same at the same time, stored, and served from the
store. The key names the index, so that a new index has new answers; how many results were asked for is no part of it,
since fewer are the head of more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid5

from app.chat import rendered
from app.complete import Request, run
from app.costs import Cost, Estimate
from app.deployments import model_named
from app.device import Priority, Steps
from app.explain import Computation, Explainer, compute_once
from app.flights import Watch
from app.index_files import IndexFiles
from app.influence_indexes import base_of, index_for, mask_from
from app.models import find_model, language_model, registration_of
from app.open_indexes import Opened
from app.records import Record, digest_of
from app.refusals import IndexNotReady
from app.runtime import Registration, Spent
from app.turns import take_turns
from explainers.chat_template import Message
from explainers.decoding import Completion, CompletionConfig, nobody
from explainers.errors import InvalidRequest
from explainers.influence.examples import Example, Mask
from explainers.influence.levels import LEVELS
from explainers.influence.pairs import Pair, read_pairs
from explainers.influence.rendering import asked_words, render_question
from explainers.influence.sketching import FineTune
from explainers.influence.texts import Words
from explainers.influence.tracing import Influence, Traced, tracing
from explainers.language_model import LanguageModel
from explainers.types import Prompt, Text
from storage import explanations, influence
from storage.training_tables import InfluenceIndex, TrainingFile

KIND = "influence"
METHOD = "gain-weighted-gradients"
ANSWER_TOKENS = 512
MOST_RESULTS = 1_000
PAIRS = UUID("8d0f6f0e-55a3-4f2b-9c39-0f8f3c1f6b0e")
"""The namespace of training pairs."""


@dataclass(frozen=True, slots=True)
class Question:
    """`answer` None: what the model itself says, greedily. Raises InvalidRequest for what is no question."""

    model: str
    question: str
    answer: str | None = None
    system_prompt: str | None = None

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise InvalidRequest("must not be blank", "/question")
        for name in ("question", "answer", "system_prompt"):
            if "\0" in (getattr(self, name) or ""):
                raise InvalidRequest("must not hold a NUL character", f"/{name}")

    @property
    def record(self) -> Record:
        return {"question": self.question, "answer": self.answer, "system_prompt": self.system_prompt}


def question_from(model: str, record: Mapping[str, Any]) -> Question:
    return Question(model, record["question"], record["answer"], record["system_prompt"])


@dataclass(frozen=True, slots=True)
class Found:
    """A stored answer: `content` has all `results`, best first, the `answer` they explain, and its `lift`."""

    id: UUID
    model_digest: str
    content: Mapping[str, Any]
    seconds: float
    forwards: int

    @property
    def method(self) -> str:
        return METHOD


@dataclass(frozen=True, slots=True)
class Forecast:
    """What answering would take; `seconds` is None before a first answer was timed. `cost` is what admission counts."""

    model_digest: str
    tokens: int
    forwards: int
    pairs: int
    bytes: int
    seconds: float | None
    cost: Cost


@dataclass(frozen=True, slots=True)
class Ready:
    """A model and the index that answers for it."""

    registration: Registration
    index: InfluenceIndex
    files: tuple[TrainingFile, ...]

    @property
    def digest(self) -> str:
        return str((self.index.facts or {})["digest"])


async def influence_of(
    explainer: Explainer,
    tenant: str,
    question: Question,
    *,
    nice: bool = False,
    id: UUID | None = None,
    watch: Watch | None = None,
) -> Found:
    """The stored answer to this very question, or a new one, computed once for all who ask at the same time.

    Raises `UnknownModel`, `IndexNotReady`, `Limited`, `QueueFull`, `StillRunning`, MissingCapability for a model
    without training data, and what is wrong with the question.
    """
    ready = await ready_for(explainer, tenant, question)
    key = digest_of(KIND, ready.digest, question.record)
    stored = await find_stored(explainer, tenant, ready.registration.name, key)
    if stored is not None:
        explainer.meters.answers.labels(KIND, "stored").inc()
        return stored
    new = id or explanations.new_id()

    computation: Computation[Found] = Computation(
        KIND,
        question.model,
        new,
        estimate=lambda: estimated(explainer, ready, question),
        work=lambda priority, steps: compute(explainer, ready, question, new, priority, steps),
        store=lambda found: store(explainer, ready, question, found, key),
    )
    flight = (tenant, KIND, ready.registration, key)
    return await compute_once(explainer, flight, computation, nice=nice, watch=watch)


async def admit_job(explainer: Explainer, tenant: str, question: Question) -> None:
    """Raises as `influence_of`, for a job."""
    ready = await ready_for(explainer, tenant, question)
    key = digest_of(KIND, ready.digest, question.record)
    if await find_stored(explainer, tenant, ready.registration.name, key) is None:
        await explainer.gate.check_job(lambda: estimated(explainer, ready, question))


async def named(explainer: Explainer, tenant: str, question: Question) -> Question:
    """The same question to the model that a deployment's id stands for. Raises `UnknownModel`, `Conflict`."""
    return replace(question, model=await model_named(explainer.database, tenant, question.model))


async def ready_for(explainer: Explainer, tenant: str, question: Question) -> Ready:
    """Raises `UnknownModel`, `IndexNotReady`, MissingCapability."""
    registration = registration_of(await find_model(explainer.database, tenant, question.model))
    index = await index_for(explainer, registration)
    async with explainer.database.transaction(tenant=tenant) as session:
        files = tuple(await influence.files_of(session, index.id))
    if not files:
        told = f"the influence index of model '{registration.name}' was replaced just now: repeat the call"
        raise IndexNotReady(told, str(index.job))
    return Ready(registration, index, files)


async def find_stored(explainer: Explainer, tenant: str, model: str, key: bytes) -> Found | None:
    row = await explanations.find(explainer.database, tenant, model, key)
    if row is None or row.id is None:
        return None
    return Found(row.id, row.model_digest, row.attribution, row.seconds, row.forwards)


async def store(explainer: Explainer, ready: Ready, question: Question, found: Found, key: bytes) -> None:
    await explanations.add(
        explainer.database,
        ready.registration.tenant,
        id=found.id,
        kind=KIND,
        model=ready.registration.name,
        model_digest=found.model_digest,
        request_key=key,
        request=question.record,
        attribution=dict(found.content),
        seconds=found.seconds,
        forwards=found.forwards,
        prompt="\n".join(filter(None, (question.question, question.system_prompt))),
        target=found.content["answer"],
    )


async def compute(
    explainer: Explainer, ready: Ready, question: Question, new: UUID, priority: Priority, steps: Steps
) -> Found:
    """Answers where there is no answer yet, then traces it."""
    spent, steps.total = Spent(), 2
    tune = await tune_of(explainer, ready.registration)
    opened = await opened_of(explainer, ready, tune.model)
    answer, mask, passes = question.answer, mask_from(ready.index.config), 0
    if answer is None:
        said = await generated(explainer, tune.model, question, priority, spent)
        answer, passes = said.text, len(said.generated)
        if said.finish_reason == "maximum_tokens":  # an end that was never said explains nothing
            mask = replace(mask, end=False)
    steps.done = 1
    content = await traced(explainer, ready, tune, opened, question, answer, mask, priority, spent)
    explainer.rates.note(speed_of(ready), 1.0, spent.seconds)
    return Found(new, tune.model.digest, content, spent.seconds, passes + passes_of(tune))


def passes_of(tune: FineTune) -> int:
    return 1 if tune.base is None else 2


def speed_of(ready: Ready) -> tuple[object, ...]:
    return (ready.registration.tenant, *ready.registration.weights, KIND)


async def tune_of(explainer: Explainer, registration: Registration) -> FineTune:
    model = language_model(await explainer.runtime.model(registration))
    base = await base_of(explainer, registration)
    return FineTune(model, None if base is None else language_model(await explainer.runtime.model(base)))


async def opened_of(explainer: Explainer, ready: Ready, model: LanguageModel) -> Opened:
    files = IndexFiles(explainer.shelf, ready.registration.tenant, ready.index.id)
    return await explainer.indexes.get(await files.bring(ready.digest), model)


async def generated(
    explainer: Explainer, model: LanguageModel, question: Question, priority: Priority, spent: Spent
) -> Completion:
    """What chat completions say at temperature 0. Raises InvalidRequest for no answer."""
    prompt, config = await prompt_of(model, question), CompletionConfig(default_tokens=ANSWER_TOKENS)
    asked = Request(question.model, prompt, config)
    (said,) = (await run(explainer, model, asked, priority, nobody, spent=spent)).completions.items
    if not said.text:
        raise InvalidRequest("the model answers this question with nothing at all: give an answer", "/answer")
    return said


async def prompt_of(model: LanguageModel, question: Question) -> Prompt:
    """The question as the model's chat template writes it; as it is for a model without one."""
    if model.chat is None:
        if question.system_prompt is not None:
            raise InvalidRequest("this model has no chat template, and so no system prompt", "/system_prompt")
        return (Text(question.question),)
    return await asyncio.to_thread(rendered, model, messages_of(question))


def messages_of(question: Question) -> tuple[Message, ...]:
    before = () if question.system_prompt is None else (Message("system", question.system_prompt),)
    return (*before, Message("user", question.question))


async def traced(
    explainer: Explainer,
    ready: Ready,
    tune: FineTune,
    opened: Opened,
    question: Question,
    answer: str,
    mask: Mask,
    priority: Priority,
    spent: Spent,
) -> dict[str, Any]:
    """What is stored of an answer."""
    example, words = await asyncio.to_thread(read, tune.model, question, answer, mask)
    found: Traced = await take_turns(
        explainer.runtime,
        lambda checkpoint: tracing(
            tune, opened.projection, opened.index, opened.thresholds, example, words, checkpoint
        ),
        priority,
        on=tune.model,
        spent=spent,
    )
    best = found.results[:MOST_RESULTS]
    pairs = await asyncio.to_thread(read_pairs, opened.index.folder, [result.record for result in best])
    results = [result_of(result, pair, ready, found.lift) for result, pair in zip(best, pairs, strict=True)]
    results.sort(key=lambda each: (LEVELS.index(each["influence_level"]), -each["score"], each["id"]))
    facts = {"index": ready.digest, "found": len(found.results), "warnings": opened.facts["warnings"]}
    return {"method": METHOD, "results": results, "answer": answer, "lift": found.lift, "facts": facts}


def read(model: LanguageModel, question: Question, answer: str, mask: Mask) -> tuple[Example, Words]:
    """As the model reads it, and the tokens of what is asked and said."""
    return example_of(model, question, answer, mask), asked_words(model, question.question, answer)


def example_of(model: LanguageModel, question: Question, answer: str | None, mask: Mask) -> Example:
    return render_question(model, question.question, answer, question.system_prompt, mask)


def result_of(result: Influence, pair: Pair, ready: Ready, lift: float | None) -> dict[str, Any]:
    file = ready.files[pair.file]
    return {
        "id": str(pair_id(file, pair.line)),
        "influence_level": result.level,
        "file_id": f"file-{file.id}",
        "line": pair.line,
        "messages": pair.text,
        "score": result.score,
        "impact": result.impact,
        "q_value": result.q_value,
        "group_size": result.group_size,
        "lift": lift,
    }


def pair_id(file: TrainingFile, line: int) -> UUID:
    """The same for the same line of the same content, whatever it was sent as."""
    return uuid5(PAIRS, f"{file.digest.hex()}/{line}")


async def forecast_influence(explainer: Explainer, tenant: str, question: Question) -> Forecast:
    """What answering would take at most; no model is run, and nothing stored. Raises as `influence_of`."""
    return await forecast(explainer, await ready_for(explainer, tenant, question), question)


async def estimated(explainer: Explainer, ready: Ready, question: Question) -> Estimate:
    async def cost() -> Cost:
        return (await forecast(explainer, ready, question)).cost

    return Estimate(cost)


async def forecast(explainer: Explainer, ready: Ready, question: Question) -> Forecast:
    tune = await tune_of(explainer, ready.registration)
    opened = await opened_of(explainer, ready, tune.model)
    example = await asyncio.to_thread(example_of, tune.model, question, question.answer, mask_from(ready.index.config))
    answer = ANSWER_TOKENS if question.answer is None else 0
    size = await asyncio.to_thread(lambda: sum(path.stat().st_size for path in opened.index.folder.iterdir()))
    tokens, forwards = min(len(example.ids) + answer, tune.model.context_length), answer + passes_of(tune)
    seconds = explainer.rates.seconds(speed_of(ready), 1.0)
    pairs = len(opened.index.groups)
    cost = Cost(tokens, pairs, forwards, size, seconds or 0.0, measured=seconds is not None)
    return Forecast(tune.model.digest, tokens, forwards, pairs, size, seconds, cost)
