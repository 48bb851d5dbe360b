"""How the inferences of a model are explained: switched on, configured, prepared, and followed by a job.

Context: a predictor, the monitored model of its name, the reference set and the configuration arrive in any order.
Decision: everything that decides a score but the algorithm is prepared at once when explanations are enabled or one of
the four changes, and named by a fingerprint; a job then explains what has no scores of that fingerprint yet.
Consequence: whoever asks a moment later sees the scores of now or none, never a mixture of two configurations.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.backgrounds import background_from, background_record
from app.bindings import Reading, bound, reading_of
from app.costs import Cost, Estimate, predicting
from app.explain import Explainer
from app.models import registration_of
from app.monitored import Monitored, find_active, find_named, monitored_from
from app.refusals import Conflict, TooCostly, UnknownModel
from app.scoring import Scorer, algorithms_of
from explainers.background import Background, summarise
from explainers.errors import ExplainerError, InvalidRequest
from explainers.loaders import PREDICTORS
from explainers.surrogates import SurrogateConfig
from storage import explainability as rows
from storage import inferences, jobs, models, monitored_models, reference
from storage.ids import time_ordered
from storage.monitored_tables import Inference, ReferenceRow
from storage.queue import SCORES
from storage.samples import sample

KIND = "explain-inferences"
"""Of the jobs that explain stored inferences; those of one model follow one another."""

SHARDS = "explain-shards"
"""Of the jobs that help such a one."""

KEPT_JOBS = 20
MOST_SAMPLES = 100_000
MOST_SUMMARISED = 100_000
MOST_CELLS = 4_000_000
"""Rows that a background is made of, and their values, at most: drawn evenly where there are more."""
LARGEST_CONFIG = 65_536
"""Characters of its JSON; it is read whenever inferences come."""
MOST_TRIES = 5
"""To change what others change at the same time."""
MOST_PREDICTIONS = 20_000_000
"""Rows that a model is asked for to explain one, at most."""

READY, FAILED, DISABLED = "Ready", "Failed", "Disabled"


@dataclass(frozen=True, slots=True)
class Config:
    """What of a configuration acts; a `share` of the inferences, 0 to 1, is explained."""

    algorithm: str
    samples: int
    streaming: bool
    share: float
    seed: int

    @property
    def sampling(self) -> SurrogateConfig:
        return SurrogateConfig(self.samples, self.seed)


DEFAULTS: Mapping[str, Any] = {
    "explanation_algo": "lime",
    "explanation_nsamples": 2000,
    "streaming_explainability_enabled": True,
    "inference_consumer_score_percent": 1.0,
    "seed": 0,
}
"""The members of a configuration that act; all others are kept as they were given."""


@dataclass(frozen=True, slots=True)
class State:
    """How a model is explained. `config` is as its owner said it, `uploads` are the digests of files never opened."""

    enabled: bool = False
    status: str = DISABLED
    detail: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    uploads: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: int | None = None
    background: Mapping[str, Any] | None = None

    @property
    def acting(self) -> Config:
        """Raises InvalidRequest that names what is wrong."""
        return config_from(self.config)

    @property
    def works(self) -> bool:
        return self.enabled and self.status == READY


def config_from(given: Mapping[str, Any]) -> Config:
    config = {**DEFAULTS, **{name: value for name, value in given.items() if name in DEFAULTS and value is not None}}
    streaming = config["streaming_explainability_enabled"]
    if not isinstance(streaming, bool):
        raise InvalidRequest("must be true or false", "/config/streaming_explainability_enabled")
    return Config(
        str(config["explanation_algo"]),
        whole(config, "explanation_nsamples", 2, MOST_SAMPLES),
        streaming,
        share_of(config["inference_consumer_score_percent"]),
        whole(config, "seed", 0, 2**53),
    )


def share_of(value: Any) -> float:
    """A number from 0 to 1, or its digits: Arthur's documentation has it as a string."""
    with suppress(TypeError, ValueError, OverflowError):
        if not isinstance(value, bool) and 0 <= (share := float(value)) <= 1:
            return share
    raise InvalidRequest("must be a number from 0 to 1", "/config/inference_consumer_score_percent")


def whole(config: Mapping[str, Any], name: str, least: int, most: int) -> int:
    value = config[name]
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidRequest(f"must be a whole number from {least} to {most}", f"/config/{name}")
    return value


async def state_of(session: AsyncSession, model: Monitored, *, keep: bool = False) -> State:
    """With `keep` it cannot change until the transaction ends."""
    row = await rows.find(session, model.id, keep=keep)
    if row is None:
        return State()
    return State(**{name: getattr(row, name) for name in State.__dataclass_fields__})


async def find_state(explainer: Explainer, tenant: str, name: str) -> tuple[Monitored, State]:
    """A model in use and how it is explained; raises `UnknownModel`."""
    async with explainer.database.transaction(tenant=tenant) as session:
        model = await find_active(session, name)
        return model, await state_of(session, model)


async def configure(
    explainer: Explainer,
    tenant: str,
    name: str,
    *,
    enabled: bool | None = None,
    config: Mapping[str, Any] | None = None,
    uploads: Mapping[str, Any] | None = None,
) -> State:
    """Changes what is given; when it is enabled then, prepares it, and has what lacks scores explained.

    Raises `UnknownModel`, InvalidRequest for what cannot be, `TooCostly`, and `Conflict` where others change the same.
    """
    for _ in range(MOST_TRIES):
        model, before = await find_state(explainer, tenant, name)
        wanted = changed(before, enabled, config or {}, uploads or {})
        check_size(wanted)
        known = algorithms_of(reading_of(model.layout))
        if wanted.acting.algorithm not in known:
            raise InvalidRequest(f"must be one of: {', '.join(known)}", "/config/explanation_algo")
        after = await prepared(explainer, tenant, model, wanted) if wanted.enabled else wanted
        if await settle(explainer, tenant, model, before, after, asked=bool(enabled)):
            return after
    raise busy()


def changed(before: State, enabled: bool | None, config: Mapping[str, Any], uploads: Mapping[str, Any]) -> State:
    """As its owner wants it. Who enables anew has what was made of inferences made of those of now."""
    wanted = replace(
        before,
        enabled=before.enabled if enabled is None else enabled,
        config={**before.config, **config},
        uploads={**before.uploads, **uploads},
    )
    if not wanted.enabled:
        return replace(wanted, status=DISABLED, detail=None)
    of_inferences = wanted.background is not None and wanted.background["source"] == "inferences"
    return replace(wanted, background=None) if enabled and of_inferences else wanted


def check_size(state: State) -> None:
    if len(json.dumps([dict(state.config), dict(state.uploads)])) > LARGEST_CONFIG:
        raise InvalidRequest(f"the configuration has more than {LARGEST_CONFIG} characters", "/config")


def busy() -> Conflict:
    return Conflict("how this model is explained is being changed by others: try again")


async def disable(explainer: Explainer, tenant: str, name: str) -> None:
    """Nothing more is explained; what was computed stays. Raises `UnknownModel`."""
    async with explainer.database.transaction(tenant=tenant) as session:
        model = await find_active(session, name)
        await begun(session, model)
        await put(session, model, changed(await state_of(session, model), False, {}, {}))


async def archive(explainer: Explainer, tenant: str, name: str) -> None:
    """Ends the use of a model, and the jobs that explain it; its rows stay. Raises `UnknownModel`."""
    async with explainer.database.transaction(tenant=tenant) as session:
        model = await find_active(session, name)
        await begun(session, model)
        await monitored_models.archive(session, model.id)
        await jobs.cancel_all(session, kind=KIND, model=model.definition.partner_model_id)
    explainer.scorers.drop((tenant, model.id))


async def renew(explainer: Explainer, tenant: str, model: Monitored, *, background: bool = False) -> None:
    """Prepares anew what is enabled, after predictor, definition or (`background`) the reference set have changed.

    What stands in the way is told by the state. Raises `UnknownModel` for one that was archived, and `Conflict`.
    """
    for _ in range(MOST_TRIES):
        model, before = await find_state(explainer, tenant, str(model.id))
        if not before.enabled:
            return
        wanted = replace(before, background=None) if background else before
        try:
            after = await prepared(explainer, tenant, model, wanted)
        except (ExplainerError, TooCostly) as error:
            after = replace(before, status=FAILED, detail=str(error))
        if await settle(explainer, tenant, model, before, after):
            return
    raise busy()


async def renew_named(explainer: Explainer, tenant: str, partner_model_id: str) -> None:
    """As `renew`, for the model in use of that name, if there is one."""
    model = await find_named(explainer.database, tenant, partner_model_id)
    if model is not None:
        await renew(explainer, tenant, model)


async def prepared(explainer: Explainer, tenant: str, model: Monitored, wanted: State) -> State:
    """With everything that scores need; raises InvalidRequest for what is missing, which files alone cannot be."""
    row = await models.find(explainer.database, tenant, model.definition.partner_model_id)
    if row is None or row.kind not in PREDICTORS:
        if not wanted.uploads:
            raise InvalidRequest(missing(model))
        detail = f"the uploaded files are kept as digests and never run; {missing(model)}"
        return replace(wanted, status=FAILED, detail=detail)
    reading = reading_of(model.layout)
    background = await background_of(explainer, tenant, model, reading, wanted)
    scorer = await build(explainer, row, reading, wanted, background)
    scorer.check_samples("/config/explanation_nsamples")
    if scorer.predictions(wanted.acting.algorithm) > MOST_PREDICTIONS:
        raise TooCostly(scorer.predictions(wanted.acting.algorithm), MOST_PREDICTIONS)
    await explainer.gate.check_job(lambda: backfilling(explainer, tenant, model, scorer, wanted.acting))
    return replace(wanted, status=READY, detail=None, fingerprint=scorer.fingerprint, background=background)


async def backfilling(explainer: Explainer, tenant: str, model: Monitored, scorer: Scorer, config: Config) -> Estimate:
    """Of explaining all inferences that are stored, as if none of them had scores yet."""

    async def cost() -> Cost:
        async with explainer.database.transaction(tenant=tenant) as session:
            rows = math.ceil(config.share * await inferences.count(session, model.id))
        predictions, inputs = rows * scorer.predictions(config.algorithm), len(scorer.reading.inputs)
        digest = scorer.predictor.digest
        return predicting(explainer.rates, tenant, digest, config.algorithm, predictions, inputs, stored=True)

    return Estimate(cost)


def missing(model: Monitored) -> str:
    name = model.definition.partner_model_id
    return f"there is no predictor: register one as '{name}' (whence models add, or POST /models)"


async def background_of(
    explainer: Explainer, tenant: str, model: Monitored, reading: Reading, wanted: State
) -> Mapping[str, Any] | None:
    """The background so far if it still fits, or a new one: of the reference set, or else of the inferences."""
    if reading.is_text:
        return None
    most = min(MOST_SUMMARISED, MOST_CELLS // len(model.definition.attributes))
    async with explainer.database.transaction(tenant=tenant) as session:
        known = wanted.background
        settled = known is not None and (known["source"] == "reference" or not await reference.count(session, model.id))
        if known is not None and settled and fits(known, reading):
            return known
        cells, source = await sample(session, ReferenceRow, model.id, most), "reference"
        if not len(cells):
            cells, source = await sample(session, Inference, model.id, most), "inferences"
    if not len(cells):
        raise InvalidRequest("there is nothing to compare with: send reference data, or inferences, first")
    summary = await asyncio.to_thread(lambda: summarise(reading.table(cells, reading.schema.columns)))
    return background_record(summary) | {"source": source, "rows": len(cells)}


def fits(background: Mapping[str, Any], reading: Reading) -> bool:
    """Whether a background has the columns and, in their order, the categories that are declared now."""
    declared = reading.schema.columns
    known = [(each["name"], each["kind"], *each["levels"]) for each in background["columns"]]
    wanted = [(each.name, each.kind, *each.levels) for each in declared]
    return len(known) == len(wanted) and all(own[: len(each)] == each for own, each in zip(known, wanted, strict=True))


async def build(
    explainer: Explainer, row: Any, reading: Reading, state: State, background: Mapping[str, Any] | None
) -> Scorer:
    """Raises what is wrong with the predictor, or between it and the definition."""
    model = await explainer.runtime.model(registration_of(row))
    predictor = await explainer.runtime.run(lambda _: bound(model, reading))
    known: Background | None = None if background is None else background_from(background)
    return Scorer(reading, predictor, known, state.acting.sampling)


async def scorer_of(explainer: Explainer, tenant: str, model: Monitored, state: State) -> Scorer:
    """What explains a model whose explanations are ready, kept for the next who asks.

    Raises InvalidRequest where predictor or definition are no longer what they were prepared with.
    """
    key = (tenant, model.id)
    row = await models.find(explainer.database, tenant, model.definition.partner_model_id)
    if row is None or row.kind not in PREDICTORS:
        explainer.scorers.drop(key)
        raise InvalidRequest(missing(model))
    kept = explainer.scorers.get(key)
    if kept is not None and kept.fingerprint == state.fingerprint and kept.predictor.digest == row.digest:
        return kept
    scorer = await build(explainer, row, reading_of(model.layout), state, state.background)
    if scorer.fingerprint != state.fingerprint:
        raise InvalidRequest("the predictor has changed since explanations were enabled: enable them again")
    explainer.scorers.put(key, scorer)
    return scorer


async def settle(
    explainer: Explainer, tenant: str, model: Monitored, before: State, after: State, *, asked: bool = False
) -> bool:
    """Writes the state down, with a job for what lacks scores now, or may lack some where this was `asked` for.

    False where somebody else was faster: state or definition are not what this one was prepared from. Raises
    `UnknownModel`.
    """
    async with explainer.database.transaction(tenant=tenant) as session:
        now = await begun(session, model)
        if now.definition != model.definition or await state_of(session, model) != before:
            return False
        await put(session, model, after)
        if after.works and (asked or not covers(before, after)):
            await follow_up(session, model, 0)
        return True


async def begun(session: AsyncSession, model: Monitored) -> Monitored:
    """The model as it is now; its state is the caller's until the transaction ends. Raises `UnknownModel`."""
    row = await rows.begin(session, model.id)
    if row is None:
        raise UnknownModel(str(model.id))
    return monitored_from(row)


async def put(session: AsyncSession, model: Monitored, state: State) -> None:
    await rows.put(session, model.id, **{name: getattr(state, name) for name in State.__dataclass_fields__})


def covers(before: State, after: State) -> bool:
    """Whether whatever is to be explained now was so before."""
    if not before.works or before.fingerprint != after.fingerprint:
        return False
    old, new = before.acting, after.acting
    return (old.algorithm, old.streaming or not new.streaming) == (new.algorithm, True) and old.share >= new.share


async def follow_up(session: AsyncSession, model: Monitored, after: int) -> None:
    """Has the inferences whose `seq` is greater than `after` explained: by the job that waits already, or a new one."""
    name = model.definition.partner_model_id
    if await jobs.widen(session, kind=KIND, model=name, model_id=model.id, after=after):
        return
    await jobs.forget(session, kind=KIND, model=name, keep=KEPT_JOBS)
    await jobs.forget(session, kind=SHARDS, model=name, keep=0)
    request = {"model_id": str(model.id), "after": after}
    await jobs.add(session, id=time_ordered(), kind=KIND, model=name, request=request, lane=SCORES)


@asynccontextmanager
async def followed_up(session: AsyncSession, model: Monitored) -> AsyncIterator[None]:
    """Inferences stored inside are explained afterwards, where new ones are to be.

    The state is read last: whoever enables explanations waits for the rows of this transaction, or is seen here.
    """
    first = await rows.frontier(session)
    yield
    state = await state_of(session, model)
    if state.works and state.acting.streaming:
        await follow_up(session, model, first)
