"""The first question: from which part of the prompt?

Compute first, then write in one transaction: no pool connection is held while a model works, and an id is answered
only after its transaction has been committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, Protocol, TypeAlias, TypeVar
from uuid import UUID

from app import costs
from app.admission import Gate
from app.costs import Cost, Estimate
from app.device import Priority, Steps
from app.flights import SingleFlight, Watch
from app.forecasts import Rates
from app.meters import Meters
from app.models import find_model, language_model, registration_of
from app.open_indexes import OpenIndexes
from app.questions import Forecast, Question, answer, forecast, has_turns, spoken
from app.records import Record, attribution_from, attribution_record, text_of
from app.refusals import Limited, NotFound, UnknownModel
from app.runtime import Registration, Runtime
from app.scoring import Scorers
from app.shelf import Shelf
from explainers.language_model import LanguageModel
from explainers.types import Attribution, Prompt
from storage import errors as storage_errors
from storage import explanations
from storage.database import Database
from storage.explanations import EVERYTHING, Filter

KIND = "completion"
CONTEXT_KIND = "context-attribution"
MAPS = (KIND, CONTEXT_KIND)
"""Kinds of questions whose answers are scores of a prompt's parts."""
BATCH = 10
"""Whole explanations in memory at a time: one can have images of megabytes."""


@dataclass(frozen=True, slots=True)
class Explained:
    """An answer and the row that keeps it."""

    id: UUID
    model_digest: str
    attribution: Attribution
    seconds: float
    forwards: int

    @property
    def method(self) -> str:
        return self.attribution.method


class Asked(Protocol):
    """A question as the store knows it."""

    @property
    def model(self) -> str:
        """The name of who is asked."""

    @property
    def record(self) -> Record:
        """What decides the answer beside the weights; with a `prompt` and a `target`, so that it can be drawn."""

    @property
    def key(self) -> bytes:
        """The name of the question: with exact weights it names one computation."""


class Answered(Protocol):
    """An answer to a question of any kind, as it is counted."""

    @property
    def id(self) -> UUID: ...

    @property
    def method(self) -> str: ...

    @property
    def seconds(self) -> float: ...

    @property
    def forwards(self) -> int: ...


Estimating: TypeAlias = Callable[[Registration], Coroutine[Any, Any, Estimate]]

Answer = TypeVar("Answer", bound=Answered)

Work: TypeAlias = Callable[[Registration, UUID, Priority, Steps], Coroutine[Any, Any, Explained]]
"""Answers under the id that it is given."""


@dataclass(frozen=True, slots=True)
class Computation(Generic[Answer]):
    """Of the answer to a question of that kind to that model, under the `id` of a new one."""

    kind: str
    model: str
    id: UUID
    estimate: Callable[[], Coroutine[Any, Any, Estimate]]
    work: Callable[[Priority, Steps], Awaitable[Answer]]
    store: Callable[[Answer], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Forecasted:
    """`seconds` is None as long as no answer of this model has been timed; `cost` is what admission counts with."""

    model_digest: str
    method: str
    forecast: Forecast
    seconds: float | None
    cost: Cost


@dataclass(frozen=True, slots=True)
class Stored:
    """A row of the store, as it was asked and answered."""

    id: UUID
    kind: str
    model: str
    model_digest: str
    request: Mapping[str, Any]
    attribution: Attribution
    seconds: float
    forwards: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class StoredOther:
    """The same of another kind of question than MAPS: its answer is `content`, plain JSON."""

    id: UUID
    kind: str
    model: str
    model_digest: str
    request: Mapping[str, Any]
    content: Mapping[str, Any]
    seconds: float
    forwards: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Explainer:
    """What answering needs: the store, the models and the flights of requests under way.

    `deadline` is the longest time in seconds that one who asks waits; None: as long as it takes. What is kept on disk
    lies on the `shelf`. What is computed has to pass the `gate` of whoever asks.
    """

    database: Database
    runtime: Runtime
    flights: SingleFlight[Any]
    deadline: float | None
    shelf: Shelf
    rates: Rates = field(default_factory=Rates)
    scorers: Scorers = field(default_factory=Scorers)
    indexes: OpenIndexes = field(default_factory=OpenIndexes)
    gate: Gate = field(default_factory=Gate)

    @property
    def meters(self) -> Meters:
        return self.runtime.meters


async def explain_completion(
    explainer: Explainer,
    tenant: str,
    question: Question,
    *,
    fresh: bool = False,
    nice: bool = False,
    id: UUID | None = None,
    watch: Watch | None = None,
) -> Explained:
    """The stored answer to this very question, or a new one, computed once for all who ask at the same time.

    `id` is what a new one is stored under, unless somebody else's is on its way already.
    Raises `UnknownModel`, `Limited`, `QueueFull`, `StillRunning`, and what the method says about the question.
    """

    async def estimate(registration: Registration) -> Estimate:
        return await estimated(explainer, registration, question)

    async def work(registration: Registration, new: UUID, priority: Priority, steps: Steps) -> Explained:
        return await compute(explainer, registration, question, new, priority, steps)

    return await answer_once(
        explainer, tenant, KIND, question, work, estimate, fresh=fresh, nice=nice, id=id, watch=watch
    )


async def estimated(explainer: Explainer, registration: Registration, question: Question) -> Estimate:
    model = language_model(await explainer.runtime.model(registration))
    return costs.explaining(explainer.rates, registration, model, question)


async def answer_once(
    explainer: Explainer,
    tenant: str,
    kind: str,
    asked: Asked,
    work: Work,
    estimate: Estimating,
    *,
    fresh: bool = False,
    nice: bool = False,
    id: UUID | None = None,
    watch: Watch | None = None,
) -> Explained:
    """The stored answer, or what `work` finds, stored under `id`; raises what that raises, and as above."""
    registration, stored = await look_up(explainer.database, tenant, asked.model, asked.key)
    if stored is not None and not fresh:
        explainer.meters.answers.labels(kind, "stored").inc()
        return stored
    new = id or explanations.new_id()
    computation: Computation[Explained] = Computation(
        kind,
        asked.model,
        new,
        estimate=lambda: estimate(registration),
        work=lambda priority, steps: work(registration, new, priority, steps),
        store=lambda explained: store(explainer.database, registration, kind, asked, explained),
    )
    # A fresh answer must not come from a flight that began before it was asked for as fresh.
    return await compute_once(explainer, (tenant, registration, asked.key, fresh), computation, nice=nice, watch=watch)


async def compute_once(
    explainer: Explainer, flight: Hashable, computation: Computation[Answer], *, nice: bool, watch: Watch | None
) -> Answer:
    """The new answer, or that of the flight which is under way already, stored by whoever computes it."""

    async def start(priority: Priority, steps: Steps) -> Answer:
        return await compute_and_store(explainer, computation, priority, steps)

    named, deadline = str(computation.id), explainer.deadline
    answer: Answer = await own_or_shared(
        explainer,
        lambda: explainer.flights.join(flight, named, start, deadline=deadline, nice=nice, watch=watch),
    )
    source = "computed" if answer.id == computation.id else "shared"
    explainer.meters.answers.labels(computation.kind, source).inc()
    return answer


async def compute_and_store(
    explainer: Explainer, computation: Computation[Answer], priority: Priority, steps: Steps
) -> Answer:
    """Once the key that asks may have it; raises `Limited`."""
    named = {"whence.kind": computation.kind, "whence.model": computation.model}
    with explainer.runtime.traces.span("answer", **named) as span:
        async with explainer.gate.admitted(computation.estimate) as charge:
            answer = await computation.work(priority, steps)
            charge.seconds = answer.seconds
        await computation.store(answer)
        span.set_attributes({"whence.method": answer.method, "whence.forwards": answer.forwards})
    explainer.meters.explanation_seconds.labels(answer.method).observe(answer.seconds)
    return answer


async def own_or_shared(explainer: Explainer, join: Callable[[], Awaitable[Answer]]) -> Answer:
    """What a flight brings; one that was not let in for the sake of somebody else's limit is begun anew."""
    while True:
        try:
            return await join()
        except Limited as refusal:
            if refusal.key == explainer.gate.key:
                raise


async def look_up(database: Database, tenant: str, model: str, key: bytes) -> tuple[Registration, Explained | None]:
    """The model that is asked, and the stored answer to the same question; raises `UnknownModel`."""
    with suppress(storage_errors.InvalidValue):
        row = await explanations.find(database, tenant, model, key)
        if row is not None:
            known = row.id is not None
            return registration_of(row), answer_from(row) if known else None
    raise UnknownModel(model)


def answer_from(row: Any) -> Explained:
    return Explained(row.id, row.model_digest, attribution_from(row.attribution), row.seconds, row.forwards)


async def compute(
    explainer: Explainer,
    registration: Registration,
    question: Question,
    new: UUID,
    priority: Priority,
    steps: Steps,
) -> Explained:
    """Answers on the device thread, which waits for no chat template."""
    model = language_model(await explainer.runtime.model(registration))
    prompt = await as_read(model, question.prompt)
    attribution = await explainer.runtime.run(
        lambda checkpoint: answer(model, question, checkpoint, steps, prompt), priority, on=model
    )
    facts = attribution.facts
    costs.note(explainer.rates, registration, question.method, facts["operations"], facts["explaining_seconds"])
    return Explained(new, model.digest, attribution, float(facts["seconds"]), int(facts["forwards"]))


async def as_read(model: LanguageModel, prompt: Prompt) -> Prompt:
    """As `spoken`; the event loop waits for no chat template."""
    return await asyncio.to_thread(spoken, model, prompt) if has_turns(prompt) else prompt


async def forecast_completion(explainer: Explainer, tenant: str, question: Question) -> Forecasted:
    """What answering would take; nothing is run, and nothing stored."""
    registration = registration_of(await find_model(explainer.database, tenant, question.model))
    model = language_model(await explainer.runtime.model(registration))
    prompt = await as_read(model, question.prompt)
    found = await explainer.runtime.run(lambda _: forecast(model, question, prompt), on=model)
    speed = costs.speeds_of(registration, question.method)[0]
    seconds = explainer.rates.seconds(speed, found.cost.operations)
    cost = costs.of_forecast(explainer.rates, registration, model, question, found)
    return Forecasted(model.digest, question.method, found, seconds, cost)


async def store(database: Database, registration: Registration, kind: str, asked: Asked, explained: Explained) -> None:
    await explanations.add(
        database,
        registration.tenant,
        id=explained.id,
        kind=kind,
        model=registration.name,
        model_digest=explained.model_digest,
        request_key=asked.key,
        request=asked.record,
        attribution=attribution_record(explained.attribution),
        seconds=explained.seconds,
        forwards=explained.forwards,
        prompt=text_of(asked.record["prompt"]),
        target=asked.record["target"] or "".join(each.text for each in explained.attribution.targets),
    )


async def fetch_explanation(database: Database, tenant: str, name: str) -> Stored | StoredOther:
    """One stored explanation of this tenant; raises `NotFound` for anything else."""
    try:
        wanted = UUID(name)
        async with database.transaction(tenant=tenant) as session:
            row = await explanations.get(session, wanted)
    except (ValueError, storage_errors.NotFound):
        raise NotFound("there is no explanation with this id") from None
    return stored_from(row)


async def list_explanations(
    database: Database, tenant: str, filter: Filter = EVERYTHING, *, cursor: str | None = None, limit: int = 50
) -> explanations.Page:
    """One page of the tenant's explanations, newest first; of a search perhaps a short one, see there."""
    async with database.transaction(tenant=tenant) as session:
        return await explanations.page(session, filter, cursor=cursor, limit=limit)


async def batches(
    database: Database, tenant: str, filter: Filter = EVERYTHING
) -> AsyncIterator[list[Stored | StoredOther]]:
    """All that are meant, newest first, some at a time; between them no connection is held."""
    after: tuple[datetime, UUID] | None = None
    while True:
        async with database.transaction(tenant=tenant) as session:
            found = await explanations.stretch(session, filter, after=after)
        for start in range(0, len(found.ids), BATCH):
            async with database.transaction(tenant=tenant) as session:
                rows = await explanations.whole(session, found.ids[start : start + BATCH])
            yield [stored_from(row) for row in rows]
        after = found.end
        if after is None:
            return


def stored_from(row: Any) -> Stored | StoredOther:
    same = ("id", "kind", "model", "model_digest", "request", "seconds", "forwards", "created_at")
    values = {name: getattr(row, name) for name in same}
    if row.kind not in MAPS:
        return StoredOther(**values, content=row.attribution)
    return Stored(**values, attribution=attribution_from(row.attribution))
