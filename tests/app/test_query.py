"""Queries over HTTP: which model is asked, what comes back, and how mistakes are told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest

from app.dialects.arthur.model_routes import MODELS
from app.dialects.arthur.query_routes import DAYS, DRIFT, ROWS, TABLE
from tests.app.conftest import Running
from tests.app.test_monitored import created, record

COUNT = {"select": [{"function": "count"}]}


@pytest.fixture
async def asked(running: Running) -> AsyncIterator[tuple[str, str]]:
    """Id and name of a model with three inferences."""
    name = f"churn/{uuid4()}"
    id = await created(running, partner_model_id=name)
    records = [record(f"u-{n}", income=100 * n, churn_yes=n / 4, churn_no=1 - n / 4) for n in range(1, 4)]
    assert (await running.client.post(f"{MODELS}/{id}/inferences", json=records)).json()["counts"]["success"] == 3
    yield id, name
    await running.client.delete(f"{MODELS}/{id}")


async def answer(running: Running, path: str, body: Any, **parameters: Any) -> Any:
    response = await running.client.post(path, json=body, params=parameters)
    assert response.status_code == 200, response.text
    return response.json()["query_result"]


async def test_both_paths_and_all_names(running: Running, asked: tuple[str, str]) -> None:
    id, name = asked
    expected = [{"count": 3}]
    assert await answer(running, f"{MODELS}/{id}/inferences/query", COUNT) == expected
    for named in asked:
        assert await answer(running, "/query", COUNT | {"model_id": named}) == expected
        assert await answer(running, "/query", COUNT, model_id=named) == expected
    both = await running.client.post("/query", json=COUNT | {"model_id": id}, params={"model_id": name})
    assert (both.status_code, both.json()["errors"][0]["pointer"]) == (400, "/model_id")
    gone = await running.client.post("/query", json=COUNT | {"model_id": "x"})
    assert (gone.status_code, gone.json()["code"]) == (404, "UNKNOWN_MODEL")


async def test_the_documented_examples(running: Running, asked: tuple[str, str]) -> None:
    found = await answer(running, "/query", DAYS | {"model_id": asked[1]})
    assert found == [{"day": "2026-03-01T00:00:00.000Z", "count": 2, "income": 250.0}]
    rows = await answer(running, f"{MODELS}/{asked[0]}/inferences/query", ROWS)
    assert [row["partner_inference_id"] for row in rows] == ["u-3", "u-2", "u-1"]
    assert rows[0]["tenure"] == 3 and rows[0]["gt_churn_yes"] is None and rows[0]["batch_id"] is None


async def test_pages(running: Running, asked: tuple[str, str]) -> None:
    body = {"select": [{"property": "income"}], "model_id": asked[0]}
    pages = [await answer(running, "/query", body, page=page, page_size=2) for page in (1, 2, 3)]
    assert pages == [[{"income": 100.0}, {"income": 200.0}], [{"income": 300.0}], []]


async def test_a_mistake_is_told_with_its_place_and_the_nearest_name(running: Running, asked: tuple[str, str]) -> None:
    body = {"select": [{"property": "incom"}], "model_id": asked[0]}
    response = await running.client.post("/query", json=body)
    assert response.status_code == 400
    assert response.json()["errors"][0]["pointer"] == "/select/0/property" and "'income'" in response.json()["detail"]
    explained = {"select": [{"property": "explainer_score"}], "from": "enriched", "model_id": asked[0]}
    assert (await running.client.post("/query", json=explained)).status_code == 400


@pytest.mark.parametrize("body", [{}, {"select": []}, {"select": [{"property": "'; DROP TABLE inferences; --"}]}])
async def test_what_is_no_query(running: Running, asked: tuple[str, str], body: dict[str, Any]) -> None:
    response = await running.client.post("/query", json=body | {"model_id": asked[0]})
    assert (response.status_code, response.json()["code"]) == (400, "INVALID_REQUEST")


async def test_queries_need_the_scope_and_the_tenant(running: Running, asked: tuple[str, str]) -> None:
    body = COUNT | {"model_id": asked[0]}
    headers = await running.key("ingest")
    assert (await running.client.post("/query", json=body, headers=headers)).status_code == 403
    stranger = await running.key("read", tenant="stranger")
    assert (await running.client.post("/query", json=body, headers=stranger)).status_code == 404


@pytest.mark.parametrize("name", ["u-9", "a/b", "query", "/x/", "1", "é😀", "...", "a b%2Fc", "x" * 255, "%", "'; --"])
async def test_one_inference(running: Running, asked: tuple[str, str], name: str) -> None:
    sent = await running.client.post(f"{MODELS}/{asked[0]}/inferences", json=[record(name, income=9)])
    assert sent.json()["counts"]["success"] == 1
    path = f"{MODELS}/{asked[0]}/inferences/query"
    (row,) = await answer(running, path, ROWS | {"filter": [{"property": "income", "comparator": "eq", "value": 9}]})
    found = await running.client.get(f"{path}/{quote(name)}")
    assert (found.status_code, found.json()) == (200, {"query_result": [row]})
    assert row["partner_inference_id"] == name


@pytest.mark.parametrize("name", ["u-1x", "", "%00", "a%00", "%ff", "U-1", "u-%", "\ud7ff", "x" * 9000], ids=range(9))
async def test_an_inference_that_is_not_there(running: Running, asked: tuple[str, str], name: str) -> None:
    response = await running.client.get(f"{MODELS}/{asked[0]}/inferences/query/{name}")
    assert (response.status_code, response.json()["code"]) == (404, "NOT_FOUND"), response.text


async def test_an_inference_of_no_model(running: Running, asked: tuple[str, str]) -> None:
    for id in (str(uuid4()), asked[1], "x"):
        response = await running.client.get(f"{MODELS}/{id}/inferences/query/u-1")
        assert (response.status_code, response.json()["code"]) == (404, "UNKNOWN_MODEL")
    stranger = await running.key("read", tenant="other")
    gone = await running.client.get(f"{MODELS}/{asked[0]}/inferences/query/u-1", headers=stranger)
    assert (gone.status_code, gone.json()["code"]) == (404, "UNKNOWN_MODEL")


DRIFTS = ("data_drift", "data_drift_psi_bucket_calculation_table")


async def upload_reference(running: Running, id: str) -> None:
    rows = [{"income": 100 * n, "tenure": 3, "churn_yes": 0.5, "churn_no": 0.5} for n in range(1, 11)]
    files = {"reference_data": ("reference.json", json.dumps(rows).encode())}
    response = await running.client.post(f"{MODELS}/{id}/reference_data", files=files)
    assert response.status_code == 207 and response.json()["counts"]["success"] == 10, response.text


async def test_the_documented_drift(running: Running, asked: tuple[str, str]) -> None:
    id, _ = asked
    await upload_reference(running, id)
    path = f"{MODELS}/{id}/inferences/query"
    (row,) = await answer(running, f"{path}/data_drift", DRIFT)
    assert list(row) == ["income", "tenure", "rollup"] and row["rollup"] == "2026-03-01T00:00:00Z"
    assert row["income"] > 1 and row["tenure"] == 0
    table = await answer(running, f"{path}/data_drift_psi_bucket_calculation_table", TABLE | {"num_bins": 20})
    assert sum(each["psi"] for each in table) == pytest.approx(row["income"])
    assert {each["base_total"] for each in table} == {10} and {each["target_total"] for each in table} == {3}
    assert table[0]["bucket"] == "bucket_1" and table[0]["base_bucket_min"] == 100
    limits = {name: value for name, value in DRIFT.items() if name not in {"target", "rollup"}}
    (found,) = await answer(running, f"{path}/data_drift", limits | {"metric": "Thresholds"})
    assert list(found["income"]) == ["PSI", "KLDivergence", "JSDivergence", "HellingerDistance"]


async def test_drift_of_classes(running: Running, asked: tuple[str, str]) -> None:
    everything = {"source": "inference"}
    body = {"predicted_classes": ["*"], "metric": "HellingerDistance", "base": everything, "target": everything}
    assert await answer(running, f"{MODELS}/{asked[0]}/inferences/query/data_drift", body) == [{"predictedClass": 0.0}]


@pytest.mark.parametrize("path", DRIFTS)
async def test_mistakes_of_drift_and_who_may_ask(running: Running, asked: tuple[str, str], path: str) -> None:
    body = DRIFT if path == "data_drift" else TABLE
    url = f"{MODELS}/{asked[0]}/inferences/query/{path}"
    wrong = body | {"base": {"source": "referenc"}}
    response = await running.client.post(url, json=wrong)
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (400, "/base/source")
    assert "did you mean 'reference'" in response.json()["detail"]
    assert (await running.client.post(url, json=[])).status_code == 400
    gone = await running.client.post(f"{MODELS}/{uuid4()}/inferences/query/{path}", json=body)
    assert (gone.status_code, gone.json()["code"]) == (404, "UNKNOWN_MODEL")
    stranger = await running.key("read", tenant="stranger")
    assert (await running.client.post(url, json=body, headers=stranger)).status_code == 404
    assert (await running.client.post(url, json=body, headers=await running.key("ingest"))).status_code == 403
