"""Explaining one row now: an inference that is stored, or one that never was."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.costs import Cost, Estimate, predicting, speed
from app.explain import Explainer
from app.explainability import MOST_SAMPLES, State, find_state, scorer_of, state_of
from app.monitored import Monitored
from app.records import digest_of
from app.refusals import NotFound, TooCostly
from app.rows import Row
from app.runtime import Spent
from app.scores import Explanation, explanation_of, rows_of, stored_explanation
from app.scoring import Outcome, Scorer, algorithms_of, checked
from explainers.errors import InconsistentAnswer, InvalidRequest
from explainers.types import Checkpoint
from storage import inferences, scores
from storage.cells import Cells

MOST_PREDICTIONS = 5_000_000
"""Rows that a model is asked for in one request, at most."""


@dataclass(frozen=True, slots=True, eq=False)
class WhatIf:
    """What a model says of a row that never was, and why; `change` against an inference that was named."""

    outputs: tuple[str, ...]  # K
    predicted: NDArray[np.float64]  # (K,)
    explanation: Explanation
    change: NDArray[np.float64] | None = None  # (K,)


async def explain_inference(
    explainer: Explainer, tenant: str, name: str, inference: str, algorithm: str | None, samples: int | None
) -> Explanation:
    """The stored explanation, or a new one, which is stored if it has the configured number of samples.

    Raises `UnknownModel`, `NotFound`, `TooCostly`, `Limited`, and InvalidRequest for an algorithm that is not offered,
    or where explanations were never enabled.
    """
    model, state, scorer = await ready(explainer, tenant, name)
    chosen = algorithm_of(state, scorer, algorithm)
    usual = samples is None or samples == scorer.config.samples
    async with explainer.database.transaction(tenant=tenant) as session:
        known = await scores.find_by_partner_id(session, model.id, chosen, inference) if usual else None
        if known is not None and known.fingerprint == scorer.fingerprint:
            tokens = await scores.find_tokens(session, model.id, chosen, known.seq) if scorer.reading.is_text else ()
            return told(stored_explanation(scorer, chosen, known, tokens))
        row = await inferences.find(session, model.id, inference)
    if row is None:
        raise NotFound("there is no inference with this partner_inference_id")
    asked = scorer if samples is None or usual else with_samples(scorer, samples)
    cells = scorer.reading.cells([row])
    (outcome,) = await explained(explainer, tenant, asked, chosen, cells, row.partner_inference_id, shared=usual)
    (outcome,) = checked([outcome], scorer.reading.predicted(cells))
    if usual:
        await store(explainer, tenant, model, scorer, chosen, row.seq, outcome)
    return told(explanation_of(scorer, chosen, outcome))


def with_samples(scorer: Scorer, samples: int) -> Scorer:
    if not 2 <= samples <= MOST_SAMPLES:
        raise InvalidRequest(f"must be a whole number from 2 to {MOST_SAMPLES}", "/n_samples")
    other = replace(scorer, config=replace(scorer.config, samples=samples), kept={})
    other.check_samples("/n_samples")
    return other


def told(explanation: Explanation) -> Explanation:
    """Raises InconsistentAnswer with the reason where there is no score at all."""
    if explanation.reason and np.isnan(explanation.values).all():
        raise InconsistentAnswer(f"this cannot be explained: {explanation.reason}")
    return explanation


async def ready(explainer: Explainer, tenant: str, name: str) -> tuple[Monitored, State, Scorer]:
    model, state = await find_state(explainer, tenant, name)
    if not state.works:
        detail = f": {state.detail}" if state.detail else ""
        raise InvalidRequest(f"explanations are not enabled for this model{detail}")
    return model, state, await scorer_of(explainer, tenant, model, state)


def algorithm_of(state: State, scorer: Scorer, asked: str | None) -> str:
    known = algorithms_of(scorer.reading)
    chosen = asked or state.acting.algorithm
    if chosen not in known:
        raise InvalidRequest(f"must be one of: {', '.join(known)}", "/algorithm")
    return chosen


async def explained(
    explainer: Explainer, tenant: str, scorer: Scorer, algorithm: str, cells: Cells, id: str, *, shared: bool = True
) -> list[Outcome]:
    if scorer.predictions(algorithm) > MOST_PREDICTIONS:
        raise TooCostly(scorer.predictions(algorithm), MOST_PREDICTIONS)
    took = Spent()

    async def cost() -> Cost:
        return cost_of(explainer, tenant, scorer, algorithm, scorer.predictions_of(algorithm, cells))

    async def estimate() -> Estimate:
        return Estimate(cost)

    def work(checkpoint: Checkpoint) -> list[Outcome]:
        return scorer.explain(algorithm, cells, [id], checkpoint, shared=shared)

    async with explainer.gate.admitted(estimate) as charge:
        try:
            outcomes = await explainer.runtime.run(work, spent=took)
        finally:
            charge.seconds = took.seconds
    with suppress(InvalidRequest):  # a text that is too long has an outcome that says so, and no cost
        predictions = scorer.predictions_of(algorithm, cells)
        explainer.rates.note(speed(tenant, scorer.predictor.digest, algorithm), predictions, took.seconds)
    explainer.meters.explained_rows.labels(algorithm).inc(len(outcomes))
    return outcomes


def cost_of(explainer: Explainer, tenant: str, scorer: Scorer, algorithm: str, predictions: int) -> Cost:
    digest, inputs = scorer.predictor.digest, len(scorer.reading.inputs)
    return predicting(explainer.rates, tenant, digest, algorithm, predictions, inputs)


async def forecast_inference(
    explainer: Explainer, tenant: str, name: str, inference: str, algorithm: str | None, samples: int | None
) -> Cost:
    """What explaining an inference takes at most, were it not stored. Raises as `explain_inference`."""
    model, state, scorer = await ready(explainer, tenant, name)
    chosen = algorithm_of(state, scorer, algorithm)
    row = await found(explainer, tenant, model, inference)
    asked = scorer if samples is None else with_samples(scorer, samples)
    return cost_of(explainer, tenant, asked, chosen, asked.predictions_of(chosen, scorer.reading.cells([row])))


async def forecast_what_if(
    explainer: Explainer,
    tenant: str,
    name: str,
    given: Sequence[tuple[str, Any]],
    *,
    algorithm: str | None = None,
    original: str | None = None,
) -> Cost:
    """As `forecast_inference`, for `what_if`."""
    model, state, scorer = await ready(explainer, tenant, name)
    check_compared(scorer, original)
    if original is not None:
        await found(explainer, tenant, model, original)
    cells = scorer.reading.cells([row_of(model, given)])
    own = 1 if original is None else 2
    chosen = algorithm_of(state, scorer, algorithm)
    return cost_of(explainer, tenant, scorer, chosen, own + scorer.predictions_of(chosen, cells))


async def store(
    explainer: Explainer, tenant: str, model: Monitored, scorer: Scorer, algorithm: str, seq: int, outcome: Outcome
) -> None:
    rows, tokens = rows_of(scorer, [seq], [outcome])
    async with explainer.database.transaction(tenant=tenant) as session:
        if (await state_of(session, model, keep=True)).fingerprint != scorer.fingerprint:
            return
        await scores.add(session, model.id, algorithm, rows)
        if tokens is not None and len(tokens.seqs):
            await scores.add_tokens(session, model.id, algorithm, tokens)


async def what_if(
    explainer: Explainer,
    tenant: str,
    name: str,
    given: Sequence[tuple[str, Any]],
    *,
    algorithm: str | None = None,
    original: str | None = None,
) -> WhatIf:
    """The prediction for a row of inputs and its explanation; nothing is stored.

    A model of texts is asked against an `original` inference. Raises as `explain_inference`, and InvalidRequest for
    inputs that are missing, unknown or named twice.
    """
    model, state, scorer = await ready(explainer, tenant, name)
    check_compared(scorer, original)
    before = None if original is None else await prediction_of(explainer, tenant, model, scorer, original)
    row = row_of(model, given)
    cells = scorer.reading.cells([row])
    id = digest_of([row.numbers, row.texts]).hex()
    chosen = algorithm_of(state, scorer, algorithm)
    predicted = await explainer.runtime.run(lambda _: scorer.predict(cells))
    (outcome,) = await explained(explainer, tenant, scorer, chosen, cells, id)
    change = None if before is None else predicted[0] - before
    return WhatIf(scorer.outputs, predicted[0], told(explanation_of(scorer, chosen, outcome)), change)


async def prediction_of(
    explainer: Explainer, tenant: str, model: Monitored, scorer: Scorer, inference: str
) -> NDArray[np.float64]:  # (K,)
    """What the model says of a stored inference."""
    cells = scorer.reading.cells([await found(explainer, tenant, model, inference)])
    outputs = await explainer.runtime.run(lambda _: scorer.predict(cells))
    first: NDArray[np.float64] = outputs[0]
    return first


def check_compared(scorer: Scorer, original: str | None) -> None:
    if scorer.reading.is_text and original is None:
        raise InvalidRequest("a model of texts is asked against an inference: name it in compare_to")


async def found(explainer: Explainer, tenant: str, model: Monitored, inference: str) -> Any:
    """The row of an inference; raises `NotFound`."""
    async with explainer.database.transaction(tenant=tenant) as session:
        row = await inferences.find(session, model.id, inference)
    if row is None:
        raise NotFound("there is no inference with this partner_inference_id")
    return row


def row_of(model: Monitored, given: Sequence[tuple[str, Any]]) -> Row:
    inputs: Mapping[str, Any] = {each.name: each for each in model.definition.of_stage("PIPELINE_INPUT")}
    row, seen = model.layout.empty(), set[str]()
    for place, (name, value) in enumerate(given):
        pointer = f"/model_pipeline_input/{place}"
        if name not in inputs:
            raise InvalidRequest("names no input of this model", f"{pointer}/attribute_name")
        if name in seen:
            raise InvalidRequest("is given twice", f"{pointer}/attribute_name")
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidRequest("must be a finite number", f"{pointer}/attribute_value")
        seen.add(name)
        model.layout.put(row, model.layout.places[name], value)
    for name in inputs:
        if name not in seen:
            raise InvalidRequest(f"lacks '{name}'", "/model_pipeline_input")
    return row
