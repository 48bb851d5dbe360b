"""What would the model say? Completions of a prompt while its controls act.

Nothing is stored: a completion that is not ready within the deadline is stopped, and says so. One that is streamed has
no deadline, and stops as soon as nobody listens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from app import costs
from app.costs import Estimate
from app.device import Priority
from app.explain import Explainer
from app.listeners import Once
from app.models import find_model, language_model, registration_of
from app.refusals import Conflict
from app.runtime import Registration, Spent
from app.turns import take_turns
from explainers.cost import candidates
from explainers.decoding import Completion, CompletionConfig, Completions, Listener, Piece, completing, nobody
from explainers.language_model import LanguageModel
from explainers.types import Prompt

Outcome = TypeVar("Outcome")


@dataclass(frozen=True, slots=True)
class Request:
    """Go on with this prompt."""

    model: str
    prompt: Prompt
    config: CompletionConfig


@dataclass(frozen=True, slots=True)
class Completed:
    """Completions, and the weights that made them."""

    model_digest: str
    completions: Completions


@dataclass(frozen=True, slots=True)
class Finished:
    """One candidate of a stream that has come to its end."""

    model_digest: str
    completion: Completion


Event: TypeAlias = Piece | Finished | Completed
"""What a stream tells: pieces of candidates, each candidate when it has finished, everything at the end."""


async def complete_prompt(explainer: Explainer, tenant: str, asked: Request, *, nice: bool = False) -> Completed:
    """All candidates, finished.

    Raises `UnknownModel`, `Limited`, `QueueFull`, `Conflict` past the deadline, InvalidRequest.
    """
    loaded = await find_loaded(explainer, tenant, asked.model)
    return await within_deadline(explainer, admitted(explainer, loaded, asked, Priority(nice=nice), nobody))


async def stream_completion(
    explainer: Explainer, tenant: str, asked: Request, *, nice: bool = False
) -> AsyncGenerator[Event, None]:
    """The same, piece by piece; closing the generator stops the work."""
    loaded = await find_loaded(explainer, tenant, asked.model)
    events: asyncio.Queue[Event | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def listen(event: Piece | Completion) -> None:
        told = Finished(loaded.model.digest, event) if isinstance(event, Completion) else event
        loop.call_soon_threadsafe(events.put_nowait, told)

    task = asyncio.create_task(admitted(explainer, loaded, asked, Priority(nice=nice), listen))
    task.add_done_callback(lambda _: events.put_nowait(None))
    try:
        while (event := await events.get()) is not None:
            yield event
        yield task.result()
    finally:
        task.cancel()
        await asyncio.wait({task})


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is asked, and its registration."""

    registration: Registration
    model: LanguageModel


async def find_loaded(explainer: Explainer, tenant: str, name: str) -> Loaded:
    registration = registration_of(await find_model(explainer.database, tenant, name))
    return Loaded(registration, language_model(await explainer.runtime.model(registration)))


async def admitted(
    explainer: Explainer, loaded: Loaded, asked: Request, priority: Priority, listen: Listener
) -> Completed:
    """As `run`, when the key may have it; it pays for what the device has done, also where it is stopped."""
    rates, registration, model, spent = explainer.rates, loaded.registration, loaded.model, Spent()

    async def estimate() -> Estimate:
        return costs.completing(rates, registration, model, asked.prompt, asked.config)

    async with explainer.gate.admitted(estimate) as charge:
        try:
            found = await run(explainer, model, asked, priority, listen, spent=spent)
        finally:
            charge.seconds = spent.seconds
    branches = candidates(asked.config)
    costs.note_completion(rates, registration, model, found.completions, branches, spent.seconds)
    return found


async def run(
    explainer: Explainer,
    model: LanguageModel,
    asked: Request,
    priority: Priority,
    listen: Listener,
    *,
    spent: Spent | None = None,
) -> Completed:
    """Generates on the device thread, where `listen` is called too."""
    told = Once(listen)
    completions = await take_turns(
        explainer.runtime,
        lambda checkpoint: completing(model, asked.prompt, asked.config, checkpoint, told.from_the_start()),
        priority,
        on=model,
        spent=spent,
    )
    return Completed(model.digest, completions)


async def within_deadline(explainer: Explainer, work: Awaitable[Outcome]) -> Outcome:
    """Raises `Conflict` when the work is not ready in time; it is stopped then."""
    try:
        async with asyncio.timeout(explainer.deadline):
            return await work
    except TimeoutError:
        raise Conflict(
            f"not ready within {explainer.deadline:g} seconds, and stopped: ask for fewer tokens, or for a stream"
        ) from None
