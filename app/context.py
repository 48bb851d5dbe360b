"""From which parts of a context does a response come? Asked as Seekr's API does, and stored like every answer.

The work takes turns on the device with whatever else waits. What is not ready within the deadline goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from uuid import UUID

from app import costs
from app.costs import Estimate
from app.deployments import model_named
from app.device import Priority, Steps
from app.explain import CONTEXT_KIND, Explained, Explainer, answer_once
from app.flights import Watch
from app.models import language_model, list_models
from app.records import Record, digest_of
from app.runtime import Registration
from app.turns import take_turns
from explainers.context import (
    METHOD,
    ContextQuestion,
    SourceGranularity,
    attributing,
    check,
    fitting_ablations,
    prompt_text,
)
from explainers.errors import InvalidRequest
from explainers.types import Attribution

KIND = CONTEXT_KIND
REVISION = 1
"""Raised when the numbers change, so that stored answers of the old ones are not served as new."""


@dataclass(frozen=True, slots=True)
class Inquiry:
    """What is asked for; None: the server chooses the model, and how many ablations finding `top_k` sources takes."""

    model: str | None
    context: str
    query: str
    response: str
    highlight: str | None
    granularity: SourceGranularity
    top_k: int
    ablations: int | None


@dataclass(frozen=True)
class ContextAsked:
    """A question to one model, with all that decides its answer."""

    model: str
    question: ContextQuestion

    @cached_property
    def record(self) -> Record:
        asked = self.question
        texts = [{"type": "text", "data": text, "controls": []} for text in (asked.context, asked.query)]
        config = {"granularity": asked.granularity, "highlight": asked.highlight, "ablations": asked.ablations}
        return {"method": METHOD, "prompt": texts, "target": asked.response, "config": config}

    @cached_property
    def key(self) -> bytes:
        return digest_of(KIND, REVISION, self.record)


def asked_from(model: str, record: Mapping[str, Any]) -> ContextAsked:
    """The inverse of `ContextAsked.record`."""
    context, query = (item["data"] for item in record["prompt"])
    return ContextAsked(model, ContextQuestion(context, query, record["target"], **record["config"]))


async def settle(explainer: Explainer, tenant: str, inquiry: Inquiry, default_model: str | None) -> ContextAsked:
    """What the inquiry leaves open, chosen. Raises `UnknownModel`, InvalidRequest for what no model can answer."""
    question = await asyncio.to_thread(question_of, inquiry)
    named = inquiry.model or default_model
    if named is None:
        return ContextAsked(await only_model(explainer, tenant), question)
    return ContextAsked(await model_named(explainer.database, tenant, named), question)


def question_of(inquiry: Inquiry) -> ContextQuestion:
    fitting = fitting_ablations(inquiry.context, inquiry.granularity, inquiry.top_k)
    question = ContextQuestion(
        inquiry.context,
        inquiry.query,
        inquiry.response,
        inquiry.highlight,
        inquiry.granularity,
        fitting if inquiry.ablations is None else inquiry.ablations,
    )
    check(question)
    return question


async def only_model(explainer: Explainer, tenant: str) -> str:
    """The name of the one language model that is registered; raises InvalidRequest when there are none or several."""
    entries = await list_models(explainer.database, explainer.runtime, tenant)
    names = [entry.registration.name for entry in entries if entry.registration.kind == "causal-lm"]
    if len(names) != 1:
        raise InvalidRequest(
            f"must name a model: {len(names)} language models are registered, and WHENCE_CONTEXT_MODEL is not set",
            "/model",
        )
    return names[0]


async def attribute_context(
    explainer: Explainer,
    tenant: str,
    asked: ContextAsked,
    *,
    fresh: bool = False,
    nice: bool = False,
    id: UUID | None = None,
    watch: Watch | None = None,
) -> Explained:
    """The stored answer to this very question, or a new one, computed once for all who ask at the same time.

    Raises `UnknownModel`, `Limited`, `QueueFull`, `StillRunning`, InvalidRequest and its kin.
    """

    async def estimate(registration: Registration) -> Estimate:
        model = language_model(await explainer.runtime.model(registration))
        return costs.attributing(explainer.rates, registration, model, asked.question)

    async def work(registration: Registration, new: UUID, priority: Priority, _: Steps) -> Explained:
        model = language_model(await explainer.runtime.model(registration))
        # A template that is no good says so here, and keeps the device from nobody.
        await asyncio.to_thread(prompt_text, model, asked.question.context, asked.question.query)
        found: Attribution = await take_turns(
            explainer.runtime, lambda checkpoint: attributing(model, asked.question, checkpoint), priority, on=model
        )
        facts = found.facts
        seconds = float(facts["seconds"])
        await asyncio.to_thread(costs.note_attribution, explainer.rates, registration, model, asked.question, seconds)
        return Explained(new, model.digest, found, seconds, int(facts["forwards"]))

    return await answer_once(explainer, tenant, KIND, asked, work, estimate, fresh=fresh, nice=nice, id=id, watch=watch)
