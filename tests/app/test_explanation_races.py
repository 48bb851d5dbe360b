"""Explanations while others change what they rest on: configurations, predictors, definitions, archives, tenants."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest

from app.dialects.arthur.model_routes import MODELS
from app.explainability import FAILED, find_state, follow_up, scorer_of, settle
from app.monitored import find_in_use
from app.refusals import UnknownModel
from app.scoring import Scorer
from storage import inferences, scores
from storage.monitored_tables import Inference, ReferenceRow
from storage.samples import sample
from tests.app import predictors
from tests.app.conftest import Running
from tests.app.predictors import INPUTS, definition, records, rows
from tests.app.test_explainability import (
    asked,
    created,
    enabled,
    explained,
    explanation,
    referenced,
    registered,
    sent,
    settled,
    told,
)


@pytest.fixture(scope="module")
def artifact(models_dir: Path) -> Path:
    return predictors.boosted(models_dir, "races")


@pytest.fixture(scope="module")
def other(models_dir: Path) -> Path:
    """Other weights for the same columns."""
    return predictors.boosted(models_dir, "races-2", trees=7)


async def test_changes_at_the_same_time_are_all_kept(running: Running, artifact: Path) -> None:
    name, id = await explained(running, artifact, count=2, explanation_nsamples=60)
    await asyncio.gather(enabled(running, id, seed=5), enabled(running, id, explanation_nsamples=70))
    config = (await running.client.get(f"{MODELS}/{id}/enrichments/explainability")).json()["config"]
    assert (config["seed"], config["explanation_nsamples"]) == (5, 70)
    await settled(running, name)


async def test_what_was_prepared_before_a_stop_does_not_start_again(running: Running, artifact: Path) -> None:
    _, id = await explained(running, artifact, count=1, explanation_nsamples=60)
    explainer = running.server.explainer
    model, before = await find_state(explainer, "default", id)
    assert (await running.client.delete(f"{MODELS}/{id}/explainability")).status_code == 204
    assert not await settle(explainer, "default", model, before, before, asked=True)
    assert not (await running.client.get(f"{MODELS}/{id}/enrichments/explainability")).json()["enabled"]


async def test_nothing_is_explained_for_an_archived_model(running: Running, artifact: Path) -> None:
    name, id = await explained(running, artifact, count=1, explanation_nsamples=60)
    explainer = running.server.explainer
    model, before = await find_state(explainer, "default", id)
    assert (await running.client.delete(f"{MODELS}/{id}")).status_code == 204
    with pytest.raises(UnknownModel):
        await settle(explainer, "default", model, before, before, asked=True)
    jobs = [job for job in (await running.client.get("/jobs?limit=500")).json()["jobs"] if job["model"] == name]
    assert {job["state"] for job in jobs} <= {"succeeded", "cancelled"}


async def test_a_name_used_again_has_jobs_of_its_own(running: Running, artifact: Path) -> None:
    """A job that an archived model of the same name left behind is not widened for its heir."""
    name, id = await explained(running, artifact, count=1, explanation_nsamples=60)
    explainer = running.server.explainer
    old = await find_in_use(explainer.database, "default", id)
    assert (await running.client.delete(f"{MODELS}/{id}")).status_code == 204
    async with explainer.database.transaction(tenant="default") as session:
        await follow_up(session, old, 0)
        heir = await created_in(running, session, name)
        await follow_up(session, heir, 0)
    states = [job["state"] for job in (await running.client.get("/jobs")).json()["jobs"] if job["model"] == name]
    assert len(states) == 3


async def created_in(running: Running, _: Any, name: str) -> Any:
    id = await created(running, definition(name))
    return await find_in_use(running.server.explainer.database, "default", id)


async def test_a_removed_predictor_explains_no_more(running: Running, artifact: Path, other: Path) -> None:
    name, id = await explained(running, artifact, count=3, explanation_nsamples=60)
    before = told(await explanation(running, id, "u-0"))
    assert (await running.client.delete(f"/models/{name}")).status_code == 204
    shown = (await running.client.get(f"{MODELS}/{id}/enrichments/explainability")).json()
    assert shown["status"] == FAILED and "whence models add" in shown["status_detail"]
    refused = await running.client.get(f"{MODELS}/{id}/inferences/u-0/explanation")
    assert refused.status_code == 400 and "whence models add" in refused.json()["message"]
    assert len(await asked(running, id)) == 3 * 6
    await registered(running, other, name)
    await settled(running, name)
    refused = await running.client.get(f"{MODELS}/{id}/inferences/u-0/explanation")
    assert refused.status_code == 400 and "predicts something else" in refused.json()["message"]
    assert (await running.client.delete(f"/models/{name}")).status_code == 204
    await registered(running, artifact, name)
    await settled(running, name)
    assert told(await explanation(running, id, "u-0")) == before


async def test_other_labels_change_no_numbers(running: Running, artifact: Path) -> None:
    """Without a reference set too, and when inferences have come meanwhile."""
    name = f"races-{uuid4()}"
    await registered(running, artifact, name)
    id = await created(running, definition(name))
    await sent(running, id, records(artifact, rows(6)))
    await enabled(running, id, explanation_nsamples=60)
    await sent(running, id, records(artifact, rows(6, seed=2), prefix="late"))
    await settled(running, name)
    before = await explanation(running, id, "u-1")
    assert (await running.client.put(f"{MODELS}/{id}", json={"display_name": "Churn"})).status_code == 200
    jobs = len(await settled(running, name))
    assert await explanation(running, id, "u-1") == before
    await enabled(running, id)
    assert len(await settled(running, name)) == jobs + 1
    after = await explanation(running, id, "u-1")
    assert after["facts"]["background"] != before["facts"]["background"]


async def test_enabling_again_explains_what_a_cancelled_job_left(running: Running, artifact: Path) -> None:
    name, id = await explained(running, artifact, count=4, explanation_nsamples=60)
    explainer = running.server.explainer
    async with explainer.database.transaction(tenant="default") as session:
        found = await inferences.read(session, UUID(id))
        row = await scores.find(session, UUID(id), "lime", found[1].seq)
        await session.delete(row)
    assert len(await asked(running, id)) == 3 * 6
    await enabled(running, id)
    await settled(running, name)
    assert len(await asked(running, id)) == 4 * 6


async def test_positions_are_not_changed_under_scores(running: Running, artifact: Path) -> None:
    _, id = await explained(running, artifact, count=1, explanation_nsamples=60)
    attributes = definition("any")["attributes"]
    attributes[0]["position"], attributes[1]["position"] = 1, 0
    moved = await running.client.put(f"{MODELS}/{id}", json={"attributes": attributes})
    assert moved.status_code == 409
    assert told(await explanation(running, id, "u-0"))


async def test_another_schema_for_a_model_in_use_is_refused(running: Running, artifact: Path) -> None:
    name = f"races-{uuid4()}"
    await created(running, definition(name))
    changed = definition(name)
    changed["attributes"][0]["value_type"] = "INTEGER"
    body = {"name": name, "kind": "tabular", "path": artifact.name, "schema": changed}
    refused = await running.client.post("/models", json=body)
    assert refused.status_code == 409 and "archive it first" in refused.json()["message"], refused.text
    assert (await running.client.get(f"/models/{name}")).status_code == 404


async def test_tenants_do_not_meet(running: Running, artifact: Path) -> None:
    name, id = await explained(running, artifact, count=1, explanation_nsamples=60)
    stranger = await running.key("admin", tenant=f"other-{uuid4().hex[:8]}")
    (job,) = await settled(running, name)
    paths = [f"{MODELS}/{id}/inferences/u-0/explanation", f"{MODELS}/{id}/enrichments", f"/jobs/{job['id']}"]
    for path in paths:
        assert (await running.client.get(path, headers=stranger)).status_code == 404
    body = {"enabled": True}
    path = f"{MODELS}/{id}/enrichments/explainability"
    assert (await running.client.patch(path, json=body, headers=stranger)).status_code == 404
    assert (await running.client.delete(f"{MODELS}/{id}/explainability", headers=stranger)).status_code == 404
    assert (await running.client.post(f"{MODELS}/{id}/what_if", json=tried(), headers=stranger)).status_code == 404
    own = (await running.client.post(MODELS, json=definition(name), headers=stranger)).json()["id"]
    refused = await running.client.patch(f"{MODELS}/{own}/enrichments/explainability", json=body, headers=stranger)
    assert refused.status_code == 400 and "whence models add" in refused.json()["message"]
    assert (await running.client.get("/jobs", headers=stranger)).json()["jobs"] == []


def tried() -> dict[str, Any]:
    row = [{"attribute_name": each, "attribute_value": 1.0} for each in INPUTS]
    return {"model_pipeline_input": row}


async def test_a_dry_run_computes_nothing(running: Running, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, id = await explained(running, artifact, count=1, explanation_nsamples=60)
    calls: list[Any] = []
    monkeypatch.setattr(Scorer, "explain", lambda *_, **__: calls.append(1))
    monkeypatch.setattr(Scorer, "predict", lambda *_, **__: calls.append(1))
    path = f"{MODELS}/{id}/inferences/u-0/explanation"

    async def cost(**parameters: Any) -> Any:
        told = (await running.client.get(path, params={"dry_run": "true", **parameters})).json()
        assert told["cost"]["forwards"] == told["predictions"] and told["cost"]["seconds"] > 0
        return told["predictions"]

    assert await cost() == 60 and await cost(n_samples=200) == 200
    assert await cost(algorithm="shap") == 50 + 1 + 50 * 6
    answer = await running.client.post(f"{MODELS}/{id}/what_if", json=tried() | {"dry_run": True})
    assert answer.json()["predictions"] == 61 and not calls
    assert (await running.client.get(f"{MODELS}/{id}/inferences/x/explanation?dry_run=true")).status_code == 404
    wrong = await running.client.post(f"{MODELS}/{id}/what_if", json={"model_pipeline_input": [], "dry_run": True})
    assert wrong.status_code == 400


async def test_a_sample_is_even_and_the_same_each_time(running: Running) -> None:
    id = await created(running, definition(f"races-{uuid4()}"))
    values = np.arange(3000.0)[:, None] * np.ones(3)
    await referenced(running, id, values)
    async with running.server.explainer.database.transaction(tenant="default") as session:
        whole = await sample(session, ReferenceRow, UUID(id), 5000)
        part, again = [await sample(session, ReferenceRow, UUID(id), 600) for _ in range(2)]
        nothing = await sample(session, Inference, UUID(id), 600)
    assert np.array_equal(whole.numbers[:, 0], np.arange(3000.0)) and len(nothing) == 0
    assert len(part) == 600 and np.array_equal(part.numbers, again.numbers, equal_nan=True)
    assert part.numbers[:, 0].mean() == pytest.approx(1500, abs=150)


async def test_limits_of_a_key_hold_for_rows_and_backfills(running: Running, artifact: Path) -> None:
    """As if every prediction took a second: what is asked for would take longer than a minute of the key."""
    _, id = await explained(running, artifact, count=2, explanation_nsamples=60)
    explainer = running.server.explainer
    model, state = await find_state(explainer, "default", id)
    digest = (await scorer_of(explainer, "default", model, state)).predictor.digest
    small = await running.key("explain", "ingest", seconds_per_minute=30)
    for speed in (("default", digest, "shap"), ("default", digest, "shap", "stored")):
        for _ in range(9):
            explainer.rates.note(speed, 1000, 1000.0)
    path = f"{MODELS}/{id}/inferences/u-0/explanation"
    assert (await running.client.get(path, headers=small)).status_code == 200  # stored
    row = await running.client.get(path, params={"algorithm": "shap"}, headers=small)
    tried_row = await running.client.post(f"{MODELS}/{id}/what_if", json=tried() | {"algorithm": "shap"}, headers=small)
    shap = {"enabled": True, "config": {"explanation_algo": "shap"}}
    backfill = await running.client.patch(f"{MODELS}/{id}/enrichments/explainability", json=shap, headers=small)
    for refused in (row, tried_row, backfill):
        limit = refused.json()["limit"]
        assert (refused.status_code, limit["name"], limit["allowed"]) == (413, "seconds_per_minute", 30)
        assert limit["asked"] > 300
    state = (await running.client.get(f"{MODELS}/{id}/enrichments/explainability")).json()
    assert state["config"].get("explanation_algo") != "shap"
