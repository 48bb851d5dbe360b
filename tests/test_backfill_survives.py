"""Explaining stored inferences, by a server that is killed in the middle: nothing is lost, and nothing done twice."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import xgboost
from numpy.typing import NDArray

from tests import shard_log
from tests.clients.server import objects, running, whence
from tests.postgres import reachable_folder
from tests.test_jobs_survive import SECRET, client, wait, worker
from tests.test_under_load import wait_until_gone

MODELS = "/api/v3/models"
INPUTS, COUNT = 9, 120
NAMES = [f"input_{place}" for place in range(INPUTS)]
KIND = "explain-inferences"


def values(seed: int, count: int) -> NDArray[np.float64]:  # (count, INPUTS)
    return np.random.default_rng(seed).normal(size=(count, INPUTS)).round(3)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose Shapley values take twenty-five thousand predictions for each row."""
    rows = values(0, 500)
    model = xgboost.XGBRegressor(n_estimators=30, max_depth=4, random_state=0, n_jobs=1).fit(rows, rows.prod(axis=1))
    path = tmp_path_factory.mktemp("model") / "product.json"
    model.save_model(path)
    return path


@pytest.fixture(scope="module")
def data_dir(artifact: Path) -> Iterator[Path]:
    with reachable_folder() as folder:
        objects(whence(folder, "models", "add", "product", str(artifact), "--kind", "tabular", "--json"))
        yield folder


def definition() -> dict[str, Any]:
    inputs = [
        {"name": name, "value_type": "FLOAT", "stage": "PIPELINE_INPUT", "position": place}
        for place, name in enumerate(NAMES)
    ]
    output = {"name": "product", "value_type": "FLOAT", "stage": "PREDICTED_VALUE", "position": 0}
    body = {"partner_model_id": "product", "input_type": "TABULAR", "output_type": "REGRESSION"}
    return body | {"attributes": [*inputs, output]}


def records(artifact: Path) -> list[dict[str, Any]]:
    model, rows = xgboost.XGBRegressor(), values(1, COUNT)
    model.load_model(artifact)
    pairs = zip(rows.tolist(), model.predict(rows).astype(float).tolist(), strict=True)
    return [
        {
            "partner_inference_id": f"u-{place}",
            "inference_timestamp": "2026-03-01T08:00:00Z",
            "inference_data": dict(zip(NAMES, row, strict=True)) | {"product": output},
        }
        for place, (row, output) in enumerate(pairs)
    ]


def prepared(client: httpx.Client, artifact: Path) -> str:
    """The id of the model, which is being explained."""
    id = client.post(MODELS, json=definition()).raise_for_status().json()["id"]
    sent = client.post(f"{MODELS}/{id}/inferences", json=records(artifact)).json()
    assert sent["counts"] == {"success": COUNT, "failure": 0, "total": COUNT}
    config = {"enabled": True, "config": {"explanation_algo": "shap"}}
    assert client.patch(f"{MODELS}/{id}/enrichments/explainability", json=config).status_code == 202
    return str(id)


def job(client: httpx.Client) -> dict[str, Any]:
    (found,) = [each for each in client.get("/jobs").json()["jobs"] if each["kind"] == KIND]
    return dict(found)


def scored(client: httpx.Client, id: str) -> dict[str, list[float]]:
    """The scores of each inference."""
    body = {
        "select": [{"property": "partner_inference_id"}, {"property": "explainer_score"}],
        "from": "enriched",
    }
    found: dict[str, list[float]] = {}
    for row in client.post(f"{MODELS}/{id}/inferences/query", json=body).json()["query_result"]:
        found.setdefault(row["partner_inference_id"], []).append(row["explainer_score"])
    return found


def test_a_killed_server_goes_on_where_it_was(data_dir: Path, artifact: Path) -> None:
    with running(data_dir, returncode=-signal.SIGKILL, WHENCE_API_KEY=SECRET) as server, client(server) as one:
        id = prepared(one, artifact)
        wait(lambda: COUNT // 4 <= job(one)["done"] < COUNT)
        before = scored(one, id)
        server.process.kill()
    assert 0 < len(before) < COUNT
    wait_until_gone(data_dir)
    with running(data_dir, WHENCE_API_KEY=SECRET) as server, client(server) as one:
        wait(lambda: job(one)["attempts"] == 2 and job(one)["done"] > 0)
        assert job(one)["done"] >= len(before)  # what was done is counted, not done again
        wait(lambda: job(one)["state"] == "succeeded")
        ended = job(one)
        assert (ended["done"], ended["total"], ended["attempts"]) == (COUNT, COUNT, 2)
        after = scored(one, id)
    assert len(after) == COUNT and all(len(each) == INPUTS and None not in each for each in after.values())
    assert {name: after[name] for name in before} == before


def test_a_cancelled_job_stops_and_another_goes_on(data_dir: Path, artifact: Path) -> None:
    with running(data_dir, WHENCE_API_KEY=SECRET) as server, client(server) as one:
        id = one.get(f"{MODELS}/product", params={"id_type": "partner_model_id"}).json()["id"]
        path = f"{MODELS}/{id}/enrichments/explainability"
        assert one.patch(path, json={"config": {"seed": 1}}).status_code == 202

        def newest() -> dict[str, Any]:
            return dict(one.get("/jobs").json()["jobs"][0])

        wait(lambda: newest()["state"] == "running" and newest()["done"] > 0)
        assert one.delete(f"/jobs/{newest()['id']}").json()["state"] == "cancelled"
        wait(lambda: len(scored(one, id)) == len(scored(one, id)))
        some = len(scored(one, id))
        assert 0 < some < COUNT
        assert one.patch(path, json={"enabled": False}).status_code == 202
        assert one.patch(path, json={"enabled": True}).status_code == 202
        wait(lambda: newest()["state"] == "succeeded")
        assert len(scored(one, id)) == COUNT


def test_killed_and_frozen_workers_change_nothing(data_dir: Path, artifact: Path) -> None:
    """Shapley values of nine inputs are exact: under another seed the same are computed again, by three workers."""
    settings = {"WHENCE_API_KEY": SECRET, "WHENCE_WORKER": "false"}
    with running(data_dir, **settings) as server, client(server) as one:
        id = one.get(f"{MODELS}/product", params={"id_type": "partner_model_id"}).json()["id"]
        before = scored(one, id)
        assert len(before) == COUNT
        shard_log.begin(data_dir)
        path = f"{MODELS}/{id}/enrichments/explainability"
        with worker(data_dir) as killed, worker(data_dir) as frozen, worker(data_dir):
            assert one.patch(path, json={"config": {"seed": 2}}).status_code == 202
            wait(lambda: len(shard_log.stored(shard_log.read(data_dir))) >= 5)
            frozen.send_signal(signal.SIGSTOP)
            killed.kill()
            wait(lambda: one.get("/jobs").json()["jobs"][0]["state"] == "succeeded")
            ended = one.get("/jobs").json()["jobs"][0]
            frozen.send_signal(signal.SIGCONT)
        stored = shard_log.stored(shard_log.read(data_dir))  # the frozen one has ended, too
        assert len(stored) == len(set(stored)) > 10
        assert (ended["done"], ended["total"]) == (COUNT, COUNT)
        assert scored(one, id) == before
