"""From a predictor and its inferences to stored scores: registered, switched on, computed by jobs and on demand."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from app.dialects.arthur.model_routes import MODELS
from app.models import NewModel
from app.predictors import add_predictor
from app.runtime import Weights
from tests.app import predictors
from tests.app.conftest import Running
from tests.app.predictors import INPUTS, definition, records, rows

SCORES = [{"property": f"explainer_{name}"} for name in ("algo", "predicted_attribute", "attribute", "score")]

OF_TOKENS = ("algo", "predicted_attribute", "token", "score", "local_fit_r2", "n_samples")


@pytest.fixture(scope="module")
def artifact(models_dir: Path) -> Path:
    return predictors.boosted(models_dir)


@pytest.fixture(scope="module")
def text_folder(models_dir: Path) -> Path:
    return predictors.text_classifier(models_dir / "notes")


async def registered(running: Running, path: Path, name: str, kind: str = "tabular") -> None:
    explainer = running.server.explainer
    await add_predictor(explainer, path.parent, "default", NewModel(name, kind, path.name))


async def created(running: Running, body: dict[str, Any]) -> str:
    response = await running.client.post(MODELS, json=body)
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


async def explained(running: Running, artifact: Path, count: int = 12, **config: Any) -> tuple[str, str]:
    """Name and id of a model with a reference set and inferences, all of them explained."""
    name = f"churn-{uuid4()}"
    await registered(running, artifact, name)
    id = await created(running, definition(name))
    await referenced(running, id, rows(60, seed=1))
    await sent(running, id, records(artifact, rows(count)))
    await enabled(running, id, **config)
    await settled(running, name)
    return name, id


async def referenced(running: Running, id: str, values: Any) -> None:
    content = json.dumps([dict(zip(INPUTS, row, strict=True)) for row in values.tolist()])
    files = {"reference_data": ("rows.json", content)}
    assert (await running.client.post(f"{MODELS}/{id}/reference_data", files=files)).status_code == 207


async def sent(running: Running, id: str, given: list[dict[str, Any]]) -> None:
    response = await running.client.post(f"{MODELS}/{id}/inferences", json=given)
    assert response.json()["counts"]["failure"] == 0, response.text


async def enabled(running: Running, id: str, **config: Any) -> None:
    body = {"enabled": True, "config": config}
    response = await running.client.patch(f"{MODELS}/{id}/enrichments/explainability", json=body)
    assert (response.status_code, response.json()) == (202, "ok"), response.text


async def settled(running: Running, name: str) -> list[dict[str, Any]]:
    """The jobs of a model once all have ended well."""
    end = time.monotonic() + 200
    while time.monotonic() < end:
        found = [job for job in (await running.client.get("/jobs?limit=500")).json()["jobs"] if job["model"] == name]
        if found and all(job["finished_at"] for job in found):
            assert {job["state"] for job in found} == {"succeeded"}, found
            return found
        await asyncio.sleep(0.05)
    raise AssertionError("the jobs did not end")


async def asked(running: Running, id: str, **query: Any) -> list[dict[str, Any]]:
    body = {"select": SCORES, "from": "enriched"} | query
    response = await running.client.post(f"{MODELS}/{id}/inferences/query", json=body)
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["query_result"]
    return found


async def explanation(running: Running, id: str, inference: str, **parameters: Any) -> dict[str, Any]:
    response = await running.client.get(f"{MODELS}/{id}/inferences/{inference}/explanation", params=parameters)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def told(explanation: dict[str, Any]) -> dict[tuple[str, str], float]:
    return {
        (entry["predicted_attribute_name"], score["attribute_name"]): score["explanation_value"]
        for entry in explanation["explanation"]
        for score in entry["importance_scores"]
    }


def of(inference: str) -> dict[str, Any]:
    return {"filter": [{"property": "partner_inference_id", "comparator": "eq", "value": inference}]}


@pytest.mark.parametrize("algorithm", ["lime", "shap", "tree_shap"])
async def test_enabling_explains_what_is_stored(running: Running, artifact: Path, algorithm: str) -> None:
    name, id = await explained(running, artifact, explanation_algo=algorithm, explanation_nsamples=500)
    found = await asked(running, id)
    assert len(found) == 12 * 2 * 3 and {row["explainer_algo"] for row in found} == {algorithm}
    assert all(row["explainer_score"] is not None for row in found)
    (job,) = await settled(running, name)
    assert (job["kind"], job["done"], job["total"], job["explanation"]) == ("explain-inferences", 12, 12, None)
    stored = {
        (row["explainer_predicted_attribute"], row["explainer_attribute"]): row["explainer_score"]
        for row in await asked(running, id, **of("u-3"))
    }
    assert told(await explanation(running, id, "u-3", algorithm=algorithm)) == stored
    assert all(stored["stays", each] == -stored["leaves", each] for each in INPUTS)


async def test_shap_adds_up_to_the_prediction(running: Running, artifact: Path) -> None:
    _, id = await explained(running, artifact, explanation_algo="shap")
    found = await explanation(running, id, "u-0", algorithm="shap")
    expected = {each["predicted_attribute_name"]: each["expected_value"] for each in found["expected_value"]}
    prediction = predictors.predicted(artifact, rows(12))[0]
    for place, output in enumerate(("stays", "leaves")):
        total = sum(told(found)[output, each] for each in INPUTS) + expected[output]
        assert total == pytest.approx(prediction[place], abs=1e-6)
    assert found["facts"]["exact"] and found["facts"]["background_rows"] == 50


async def test_new_inferences_are_explained_as_they_come(running: Running, artifact: Path) -> None:
    name, id = await explained(running, artifact, count=2, explanation_nsamples=200)
    for place in range(3):
        await sent(running, id, records(artifact, rows(4, seed=place), prefix=f"late-{place}"))
    await settled(running, name)
    assert len(await asked(running, id)) == 14 * 6
    file = ("rows.json", json.dumps(records(artifact, rows(5, seed=7), prefix="file")))
    await running.client.post(f"{MODELS}/{id}/inferences/file", files={"inference_data": file})
    await settled(running, name)
    assert len(await asked(running, id)) == 19 * 6


async def test_without_streaming_they_are_explained_when_asked(running: Running, artifact: Path) -> None:
    name, id = await explained(
        running, artifact, count=2, explanation_nsamples=200, streaming_explainability_enabled=False
    )
    await sent(running, id, records(artifact, rows(3, seed=5), prefix="late"))
    assert len(await settled(running, name)) == 1 and len(await asked(running, id)) == 2 * 6
    found = told(await explanation(running, id, "late-1"))
    stored = await asked(running, id, **of("late-1"))
    assert {
        (row["explainer_predicted_attribute"], row["explainer_attribute"]): row["explainer_score"] for row in stored
    } == found


async def test_a_share_of_the_inferences_is_explained(running: Running, artifact: Path) -> None:
    name, id = await explained(
        running, artifact, count=60, explanation_nsamples=100, inference_consumer_score_percent="0.5"
    )
    half = {row["inference_id"] for row in await asked(running, id, select=[{"property": "inference_id"}, *SCORES])}
    assert 10 < len(half) < 50
    await enabled(running, id, inference_consumer_score_percent=1)
    await settled(running, name)
    assert len(await asked(running, id)) == 60 * 6


async def test_a_changed_configuration_never_mixes(running: Running, artifact: Path) -> None:
    name, id = await explained(running, artifact, explanation_nsamples=200)
    before = told(await explanation(running, id, "u-1"))
    other = told(await explanation(running, id, "u-1", n_samples=300))
    assert told(await explanation(running, id, "u-1")) == before != other
    await enabled(running, id, explanation_nsamples=300)
    await settled(running, name)
    assert told(await explanation(running, id, "u-1")) == other and len(await asked(running, id)) == 12 * 6
    await enabled(running, id, explanation_nsamples=200)
    await settled(running, name)
    assert told(await explanation(running, id, "u-1")) == before
    await enabled(running, id, explanation_algo="shap")
    await settled(running, name)
    assert {row["explainer_algo"] for row in await asked(running, id)} == {"lime", "shap"}
    assert len(await asked(running, id)) == 2 * 12 * 6


async def test_scores_do_not_depend_on_company(running: Running, artifact: Path) -> None:
    _, together = await explained(running, artifact, count=30, explanation_nsamples=300)
    name = f"churn-{uuid4()}"
    await registered(running, artifact, name)
    alone = await created(running, definition(name))
    await referenced(running, alone, rows(60, seed=1))
    await enabled(running, alone, explanation_nsamples=300)
    await sent(running, alone, records(artifact, rows(30))[::-1][:3])
    await settled(running, name)
    for inference in ("u-29", "u-27"):
        assert told(await explanation(running, alone, inference)) == told(
            await explanation(running, together, inference)
        )


async def test_another_prediction_than_the_stored_one_is_told(running: Running, artifact: Path) -> None:
    name, id = await explained(running, artifact, count=1, explanation_nsamples=100)
    (wrong,) = records(artifact, rows(1), prefix="wrong")
    wrong["inference_data"] |= {"stays": 0.123456789, "leaves": 0.876543211}
    await sent(running, id, [wrong])
    await settled(running, name)
    assert {row["explainer_score"] for row in await asked(running, id, **of("wrong-0"))} == {None}
    refused = await running.client.get(f"{MODELS}/{id}/inferences/wrong-0/explanation")
    assert refused.status_code == 400 and "predicts something else" in refused.json()["message"]


async def test_disabling_keeps_what_there_is(running: Running, artifact: Path) -> None:
    _, id = await explained(running, artifact, count=3, explanation_nsamples=100)
    assert (await running.client.delete(f"{MODELS}/{id}/explainability")).status_code == 204
    assert len(await asked(running, id)) == 3 * 6
    assert (await running.client.get(f"{MODELS}/{id}/inferences/u-0/explanation")).status_code == 400
    shown = (await running.client.get(f"{MODELS}/{id}/enrichments/explainability")).json()
    assert (shown["enabled"], shown["status"], shown["config"]["explanation_nsamples"]) == (False, "Disabled", 100)
    model = (await running.client.get(f"{MODELS}/{id}")).json()
    assert (model["explainability"]["enabled"], model["explainability"]["explanation_algo"]) == (False, "lime")


async def test_what_if(running: Running, artifact: Path) -> None:
    _, id = await explained(running, artifact, count=2, explanation_algo="shap")
    row = dict(zip(INPUTS, rows(2)[0].tolist(), strict=True))
    body = {"model_pipeline_input": [{"attribute_name": each, "attribute_value": row[each]} for each in INPUTS]}
    answer = (await running.client.post(f"{MODELS}/{id}/what_if", json=body)).json()
    same = await explanation(running, id, "u-0", algorithm="shap")
    assert told(answer) == pytest.approx(told(same), abs=1e-12)
    outputs = {each["attribute_name"]: each["attribute_value"] for each in answer["predicted_values"]}
    assert list(outputs.values()) == pytest.approx(predictors.predicted(artifact, rows(2))[0].tolist())
    compared = (await running.client.post(f"{MODELS}/{id}/what_if", json=body | {"compare_to": "u-1"})).json()
    gap = predictors.predicted(artifact, rows(2))
    assert [each["change"] for each in compared["predicted_values"]] == pytest.approx((gap[0] - gap[1]).tolist())


@pytest.mark.parametrize(
    ("inputs", "pointer"),
    [
        ([], "/model_pipeline_input"),
        ([("income", 1), ("tenure", 1)], "/model_pipeline_input"),
        ([("income", 1), ("tenure", 1), ("age", 1), ("age", 1)], "/model_pipeline_input/3/attribute_name"),
        ([("income", 1), ("tenure", 1), ("height", 1)], "/model_pipeline_input/2/attribute_name"),
    ],
    ids=["none", "missing", "twice", "unknown"],
)
async def test_a_bad_what_if(running: Running, artifact: Path, inputs: list[Any], pointer: str) -> None:
    _, id = await explained(running, artifact, count=1, explanation_nsamples=50)
    body = {"model_pipeline_input": [{"attribute_name": name, "attribute_value": value} for name, value in inputs]}
    response = await running.client.post(f"{MODELS}/{id}/what_if", json=body)
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (400, pointer)


async def test_listing_of_scores(running: Running, artifact: Path) -> None:
    _, id = await explained(running, artifact, count=1, explanation_nsamples=200)
    by_value = await explanation(running, id, "u-0", sort="-value", uncertainty=True)
    for entry in by_value["explanation"]:
        values = [score["value"] for score in entry["importance_scores"]]
        assert values == sorted(values, reverse=True) and entry["local_fit_r2"] is not None
        assert all(score["stderr"] > 0 for score in entry["importance_scores"])
    page = await explanation(running, id, "u-0", sort="attribute_name", page=2, page_size=2)
    assert [[s["attribute_name"] for s in e["importance_scores"]] for e in page["explanation"]] == [["tenure"]] * 2
    for wrong in ({"sort": "size"}, {"sort": "--value"}, {"algorithm": "magic"}, {"n_samples": 1}, {"page": 0}):
        parameters: dict[str, Any] = wrong
        path = f"{MODELS}/{id}/inferences/u-0/explanation"
        assert (await running.client.get(path, params=parameters)).status_code == 400
    assert (await running.client.get(f"{MODELS}/{id}/inferences/a/b/explanation")).status_code == 404


async def test_texts(running: Running, text_folder: Path) -> None:
    name = f"notes-{uuid4()}"
    await registered(running, text_folder, name, "text-classifier")
    id = await created(running, predictors.text_definition(name))
    row = await running.server.explainer.runtime.read(Weights("text-classifier", str(text_folder), device="cpu"))
    texts = ["Anna lives in Oslo", "", "Ben"]
    outputs = row.predict_texts(texts)  # type: ignore[union-attr]
    given = [
        {
            "partner_inference_id": f"n/{place}",
            "inference_timestamp": predictors.WHEN,
            "inference_data": {"note": text, "routine": output[0], "urgent": output[1]},
        }
        for place, (text, output) in enumerate(zip(texts, outputs.tolist(), strict=True))
    ]
    await sent(running, id, given)
    for algorithm in ("lime", "shap", "integrated_gradients"):
        await enabled(running, id, explanation_algo=algorithm, explanation_nsamples=200)
        await settled(running, name)
        call = {"function": "nlp_explanation", "parameters": {"nlp_predicted_attribute": "urgent"}}
        found = await asked(running, id, select=[call])
        assert len(found) == 3
        tokens = [row["nlp_explanation"][0]["importance_scores"][0]["tokens"] for row in found]
        assert [[token["token"] for token in each] for each in tokens] == [["Anna", "lives", "in", "Oslo"], [], ["Ben"]]
        by_token = await asked(running, id, select=[{"property": f"explainer_{x}"} for x in OF_TOKENS], **of("n/0"))
        urgent = [row for row in by_token if row["explainer_predicted_attribute"] == "urgent"]
        mine = [row["explainer_score"] for row in urgent if row["explainer_algo"] == algorithm]
        assert mine == [token["value"] for token in tokens[0]]
        assert {row["explainer_n_samples"] for row in urgent if row["explainer_algo"] == "lime"} == {200}
        assert all(row["explainer_local_fit_r2"] is not None for row in urgent if row["explainer_algo"] == "lime")
        answer = await explanation(running, id, "n/0", algorithm=algorithm)
        scores = answer["explanation"][1]["importance_scores"][0]["tokens"]
        assert [token["value"] for token in scores] == [token["value"] for token in tokens[0]]
        if algorithm == "shap":
            base = answer["expected_value"][1]["expected_value"]
            assert sum(token["value"] for token in scores) + base == pytest.approx(outputs[0, 1], abs=1e-6)
    tried = {"model_pipeline_input": [{"attribute_name": "note", "attribute_value": "Anna lives in Rome"}]}
    path = f"{MODELS}/{id}/what_if"
    assert (await running.client.post(path, json=tried)).status_code == 400
    compared = (await running.client.post(path, json=tried | {"compare_to": "n/0"})).json()
    changed = row.predict_texts(["Anna lives in Rome"])[0] - outputs[0]  # type: ignore[union-attr]
    assert [each["change"] for each in compared["predicted_values"]] == pytest.approx(changed.tolist(), abs=1e-6)


async def test_enabling_without_a_predictor(running: Running, artifact: Path) -> None:
    name = f"churn-{uuid4()}"
    id = await created(running, definition(name))
    await sent(running, id, records(artifact, rows(3)))
    path = f"{MODELS}/{id}/enrichments"
    nothing = await running.client.patch(f"{path}/explainability", json={"enabled": True})
    assert nothing.status_code == 400 and "whence models add" in nothing.json()["message"]
    config = json.dumps({"explainability": {"enabled": True, "config": {"explanation_nsamples": 100}}})
    pickle = b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR."
    files = {"explainer.pkl": ("/home/me/explainer.pkl", pickle), "user_project.zip": ("p.zip", b"PK")}
    accepted = await running.client.patch(path, data={"config": config}, files=files)
    assert accepted.status_code == 202, accepted.text
    shown = (await running.client.get(path)).json()
    assert shown["explainability"]["status"] == "Failed" and name in shown["explainability"]["status_detail"]
    kept = shown["explainability"]["config"]["files"]["explainer.pkl"]
    assert kept == {"sha256": hashlib.sha256(pickle).hexdigest(), "bytes": len(pickle)}
    assert shown["hotspots"] == {"enabled": False, "status": "Disabled", "config": {}}
    await registered(running, artifact, name)
    await settled(running, name)
    assert (await running.client.get(f"{path}/explainability")).json()["status"] == "Ready"
    assert len(await asked(running, id)) == 3 * 6
    background = (await running.client.get(f"{path}/explainability")).json()["config"]["background"]
    assert (background["source"], background["rows"]) == ("inferences", 3)
    await referenced(running, id, rows(20, seed=1))
    end = {"status": "uploaded", "total_record_count": 20}
    assert (await running.client.patch(f"{MODELS}/{id}/reference_data", json=end)).status_code == 200
    await settled(running, name)
    renewed = (await running.client.get(f"{path}/explainability")).json()["config"]["background"]
    assert (renewed["source"], renewed["rows"]) == ("reference", 20) and renewed["id"] != background["id"]
    assert len(await asked(running, id)) == 3 * 6


async def test_a_predictor_and_a_definition_must_agree(running: Running, artifact: Path) -> None:
    name = f"churn-{uuid4()}"
    await registered(running, artifact, name)
    fewer = definition(name)
    del fewer["attributes"][2]
    refused = await running.client.post(MODELS, json=fewer)
    assert refused.status_code == 400 and "3" in refused.json()["message"], refused.text
    other = f"churn-{uuid4()}"
    await created(running, fewer | {"partner_model_id": other})
    body = {"name": other, "kind": "tabular", "path": artifact.name}
    response = await running.client.post("/models", json=body)
    assert response.status_code == 400 and "input columns" in response.json()["message"], response.text
    assert (await running.client.get(f"/models/{other}")).status_code == 404


async def test_a_predictor_brings_its_schema_or_is_uploaded(running: Running, artifact: Path) -> None:
    name = f"churn-{uuid4()}"
    schema = definition(name)
    files = {"file": ("C:\\models\\churn.json", await asyncio.to_thread(artifact.read_bytes))}
    data = {"name": name, "kind": "tabular", "schema": json.dumps(schema)}
    response = await running.client.post("/models", data=data, files=files)
    assert response.status_code == 201, response.text
    assert response.json()["facts"]["format"] == "xgboost"
    known = await running.client.get(f"{MODELS}/{name}", params={"id_type": "partner_model_id"})
    assert known.status_code == 200
    assert await created(running, schema) == known.json()["id"]
    assert (await running.client.post(MODELS, json=schema)).status_code == 409
    for wrong in ({"file": ("churn.pkl", b"\x80\x04.")}, {"file": ("churn.json", b"\x80\x04.")}, {"nothing": b""}):
        other = {**data, "name": f"{name}-2"}
        assert (await running.client.post("/models", data=other, files=wrong)).status_code == 400
    told = await running.client.post("/explain", json={"model": name, "prompt": "a", "target": " b"})
    assert (told.status_code, told.json()["code"]) == (400, "MISSING_CAPABILITY")


@pytest.mark.parametrize(
    "config",
    [
        {"explanation_algo": "magic"},
        {"explanation_algo": "integrated_gradients"},
        {"explanation_nsamples": 1},
        {"explanation_nsamples": True},
        {"explanation_nsamples": 10**9},
        {"inference_consumer_score_percent": 2},
        {"inference_consumer_score_percent": "nan"},
        {"inference_consumer_score_percent": [1]},
        {"streaming_explainability_enabled": "yes"},
        {"seed": -1},
    ],
    ids=lambda config: "-".join(f"{name}-{value}" for name, value in config.items()),
)
async def test_a_bad_configuration(running: Running, artifact: Path, config: dict[str, Any]) -> None:
    name = f"churn-{uuid4()}"
    await registered(running, artifact, name)
    id = await created(running, definition(name))
    body = {"enabled": True, "config": config}
    response = await running.client.patch(f"{MODELS}/{id}/enrichments/explainability", json=body)
    assert (response.status_code, response.json()["code"]) == (400, "INVALID_REQUEST")
    assert response.json()["errors"][0]["pointer"] == f"/config/{next(iter(config))}"


async def test_other_enrichments_are_not_offered(running: Running, artifact: Path) -> None:
    _, id = await explained(running, artifact, count=1, explanation_nsamples=50)
    path = f"{MODELS}/{id}/enrichments"
    refused = await running.client.patch(f"{path}/hotspots", json={"enabled": True})
    assert (refused.status_code, refused.json()["code"]) == (400, "MISSING_CAPABILITY")
    assert (await running.client.patch(f"{path}/hotspots", json={"enabled": False})).status_code == 202
    assert (await running.client.get(f"{path}/other")).status_code == 404
    for body in ([], {"enabled": "yes"}, {"config": []}):
        assert (await running.client.patch(f"{path}/explainability", json=body)).status_code == 400


async def test_archiving_ends_the_jobs(running: Running, artifact: Path) -> None:
    name, id = await explained(running, artifact, count=2, explanation_nsamples=100)
    assert (await running.client.delete(f"{MODELS}/{id}")).status_code == 204
    assert (await running.client.get(f"{MODELS}/{id}/enrichments")).status_code == 404
    assert (await running.client.get(f"{MODELS}/{id}")).json()["explainability"]["enabled"]
    again = await created(running, definition(name))
    assert (await running.client.get(f"{MODELS}/{again}")).json()["explainability"] is None


async def test_nulls_are_values_or_have_a_reason(running: Running, artifact: Path) -> None:
    name, id = await explained(running, artifact, count=1, explanation_nsamples=200)
    values = rows(2, seed=3)
    values[0, 1] = np.nan
    given = records(artifact, values, prefix="null")
    given[0]["inference_data"]["tenure"] = None
    await sent(running, id, given)
    await settled(running, name)
    found = await asked(running, id, **of("null-0"))
    assert len(found) == 6 and all(row["explainer_score"] is not None for row in found)  # boosters take nulls
