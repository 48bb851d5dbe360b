"""Arthur's wire up to the store: models, inferences, ground truth, reference sets, and what each record is told."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import numpy as np
import pandas as pd
import pytest

from app.dialects.arthur.data_schemas import inference_example, truth_example
from app.dialects.arthur.model_routes import CHURN, MODELS
from storage import inferences, reference, scores
from tests.app.conftest import Running

WHEN = "2026-03-01T08:00:00Z"


async def created(running: Running, **changes: Any) -> str:
    body = CHURN | {"partner_model_id": f"churn/{uuid4()}"} | changes
    response = await running.client.post(f"{MODELS}?async_model_provisioning=True", json=body)
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


def record(name: Any, **data: Any) -> dict[str, Any]:
    values = {"income": 1.5, "tenure": 3, "churn_yes": 0.7, "churn_no": 0.3, **data}
    return {"partner_inference_id": name, "inference_timestamp": WHEN, "inference_data": values}


async def rows(running: Running, id: str) -> list[Any]:
    async with running.server.explainer.database.transaction(tenant="default") as session:
        return await inferences.read(session, UUID(id))


async def test_a_model_comes_back_with_what_follows(running: Running) -> None:
    id = await created(running)
    body = (await running.client.get(f"{MODELS}/{id}?id_type=id&expand=attributes")).json()
    assert (body["status"], body["classifier_threshold"], body["explainability"]) == ("Ready", 0.5, None)
    attributes = {attribute["name"]: attribute for attribute in body["attributes"]}
    assert list(attributes) == ["income", "tenure", "churn_yes", "churn_no", "churned", "gt_churn_yes", "gt_churn_no"]
    assert attributes["gt_churn_yes"]["implicit"] and attributes["churn_yes"]["attribute_link"] == "gt_churn_yes"
    named = await running.client.get(f"{MODELS}/{body['partner_model_id']}", params={"id_type": "partner_model_id"})
    assert named.json() == body and body in (await running.client.get(MODELS)).json()


async def test_a_name_is_free_again_once_its_model_is_archived(running: Running) -> None:
    name = str(uuid4())
    id = await created(running, partner_model_id=name)
    again = await running.client.post(MODELS, json=CHURN | {"partner_model_id": name})
    assert (again.status_code, again.json()["code"]) == (409, "CONFLICT")
    assert (await running.client.delete(f"{MODELS}/{id}")).status_code == 204
    body = (await running.client.get(f"{MODELS}/{id}")).json()
    assert (body["archived"], body["status"]) == (True, "Archived")
    gone = await running.client.post(f"{MODELS}/{id}/inferences", json=[record("a")])
    assert (gone.status_code, gone.json()["code"]) == (404, "UNKNOWN_MODEL")
    assert await created(running, partner_model_id=name) != id


async def test_details_change_and_the_set_of_attributes_does_not(running: Running) -> None:
    id = await created(running)
    income = {"name": "income", "value_type": "FLOAT", "stage": "PIPELINE_INPUT", "label": "Income", "max_range": 9}
    changed = await running.client.put(f"{MODELS}/{id}", json={"display_name": "C", "attributes": [income]})
    assert changed.status_code == 200 and changed.json()["display_name"] == "C"
    shown = changed.json()["attributes"][0]
    assert (shown["label"], shown["max_range"], shown["position"]) == ("Income", 9, 0)
    yes = {"name": "churn_yes", "value_type": "FLOAT", "stage": "PREDICTED_VALUE", "label": "Leaves"}
    kept = (await running.client.put(f"{MODELS}/{id}", json={"attributes": [yes]})).json()["attributes"]
    assert (kept[2]["gt_class_link"], kept[2]["attribute_link"], kept[2]["label"]) == ("1", "gt_churn_yes", "Leaves")
    assert kept[0]["label"] == "Income"
    relinked = await running.client.put(f"{MODELS}/{id}", json={"attributes": [yes | {"gt_class_link": "0"}]})
    assert relinked.status_code == 400
    for other in ({"name": "x"}, {"value_type": "STRING"}, {"stage": "NON_INPUT_DATA"}):
        refused = await running.client.put(f"{MODELS}/{id}", json={"attributes": [income | other]})
        assert refused.status_code == 400 and refused.json()["errors"][0]["pointer"].startswith("/attributes/0")


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"attributes": []}, "/attributes"),
        ({"attributes": [{"name": "1", "value_type": "FLOAT", "stage": "PIPELINE_INPUT"}]}, "/attributes/0/name"),
        ({"attributes": [{"name": "a", "value_type": "FLOAT", "stage": "x"}]}, "/attributes/0/stage"),
        ({"input_type": "TEXT"}, "/input_type"),
        ({"partner_model_id": ""}, "/partner_model_id"),
        ({"partner_model_id": "x" * 256}, "/partner_model_id"),
        ({"text_delimiter": ";"}, "/text_delimiter"),
    ],
)
async def test_a_bad_model_is_refused(running: Running, changes: dict[str, Any], pointer: str) -> None:
    response = await running.client.post(MODELS, json=CHURN | changes)
    assert response.status_code == 400
    assert response.json()["errors"][0]["pointer"] == pointer


async def test_the_documented_examples(running: Running) -> None:
    id = await created(running)
    sent = await running.client.post(f"{MODELS}/{id}/inferences", json=inference_example)
    assert (sent.status_code, sent.json()) == (
        207,
        {"counts": {"success": 1, "failure": 0, "total": 1}, "results": [{"message": "success", "status": 200}]},
    )
    again = (await running.client.post(f"{MODELS}/{id}/inferences", json=inference_example)).json()
    assert again["counts"]["failure"] == 1 and again["results"][0]["status"] == 409
    for path in ("inferences", "ground_truth"):
        truth = await running.client.patch(f"{MODELS}/{id}/{path}", json=truth_example)
        assert (truth.status_code, truth.json()["counts"]["success"]) == (207, 1)


async def test_each_record_has_its_result(running: Running) -> None:
    id = await created(running)
    bad = [record(""), record(5), record("x", income="much"), record("y", other=1), 7, record("z") | {"batch_id": 3}]
    late = record("t") | {"inference_timestamp": "soon"}
    less = record("l")
    del less["inference_data"]["tenure"]
    sent = [record("a"), *bad, record("b", income=None), late, less, record("a")]
    body = (await running.client.post(f"{MODELS}/{id}/inferences", json=sent)).json()
    assert [result["status"] for result in body["results"]] == [200, *[400] * 6, 200, 400, 400, 409]
    assert body["counts"] == {"success": 2, "failure": 9, "total": 11}
    assert [row.partner_inference_id for row in await rows(running, id)] == ["a", "b"]
    assert (await rows(running, id))[1].numbers == [None, 3, 0.7, 0.3, None, None, None]
    told = {result.get("partner_inference_id"): result["message"] for result in body["results"]}
    assert "'income' must be a finite number" in told["x"] and "lacks 'tenure'" in told["l"]


async def test_ground_truth_comes_later_with_nan_for_none(running: Running) -> None:
    id = await created(running)
    await running.client.post(f"{MODELS}/{id}/inferences", json=[record("a"), record("b")])
    content = json.dumps(
        [
            {"partner_inference_id": name, "ground_truth_timestamp": WHEN, "ground_truth_data": {"churned": value}}
            for name, value in (("a", 1), ("b", float("nan")), ("c", 1))
        ]
    )
    response = await running.client.patch(
        f"{MODELS}/{id}/inferences", content=content, headers={"Content-Type": "application/json"}
    )
    assert [result["status"] for result in response.json()["results"]] == [200, 200, 404]
    first, second = await rows(running, id)
    assert (first.numbers[4:], second.numbers[4:]) == ([1, 1, 0], [None, None, None])
    assert first.ground_truth_timestamp == datetime(2026, 3, 1, 8, tzinfo=UTC)


async def test_a_ground_truth_replaces_what_it_names(running: Running) -> None:
    other = {"name": "churned_late", "value_type": "INTEGER", "stage": "GROUND_TRUTH"}
    id = await created(running, attributes=[*CHURN["attributes"], other])  # type: ignore[list-item]
    await running.client.post(f"{MODELS}/{id}/inferences", json=[record("a")])
    told = [{"churned": 1, "churned_late": 1}, {"churned_late": 0}, {"churned": 0}, {}]
    truths = [{"partner_inference_id": "a", "ground_truth_timestamp": WHEN, "ground_truth_data": each} for each in told]
    answer = await running.client.patch(f"{MODELS}/{id}/inferences", json=truths)
    assert answer.json()["counts"]["success"] == 4
    (row,) = await rows(running, id)
    assert row.numbers[4:] == [0, 0, 0, 1]  # churned, churned_late, gt_churn_yes, gt_churn_no
    file = json.dumps([{"partner_inference_id": "a", "ground_truth_timestamp": WHEN, "churned_late": 1}]).encode()
    await running.client.post(f"{MODELS}/{id}/inferences/file", files={"ground_truth_data": ("x", file)})
    assert (await rows(running, id))[0].numbers[4:] == [0, 1, 0, 1]


def parquet(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer)
    return buffer.getvalue()


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "partner_inference_id": ["a", "b", "c"],
            "inference_timestamp": pd.to_datetime([WHEN] * 3, utc=True),
            "income": [1.0, float("nan"), 3.0],
            "tenure": [1, 2, 3],
            "churn_yes": [0.1, 0.2, 0.3],
            "churn_no": [0.9, 0.8, 0.7],
        }
    )


async def test_files_of_inferences_and_truth(running: Running, frame: pd.DataFrame) -> None:
    id = await created(running)
    path = f"{MODELS}/{id}/inferences/file"
    response = await running.client.post(
        path, files={"inference_data": ("/a/b.parquet", parquet(frame))}, data={"batch_id": "b1"}
    )
    assert (response.status_code, response.json()["counts"]) == (207, {"success": 3, "failure": 0, "total": 3})
    stored = await rows(running, id)
    assert [row.numbers[0] for row in stored] == [1, None, 3] and {row.batch_id for row in stored} == {"b1"}
    endless = frame.assign(partner_inference_id=["x", "y", "z"], income=[float("inf"), 1.0, 2.0])
    told = (await running.client.post(path, files={"inference_data": ("x", parquet(endless))})).json()
    assert [(failure["partner_inference_id"], failure["status"]) for failure in told["failures"]] == [("x", 400)]
    frame = frame.assign(partner_inference_id=["c", "d", None])
    again = (await running.client.post(path, files={"inference_data": ("x", parquet(frame))})).json()
    assert again["counts"] == {"success": 1, "failure": 2, "total": 3}
    assert {(failure["status"], failure.get("partner_inference_id")) for failure in again["failures"]} == {
        (409, "c"),
        (400, None),
    }
    truth = [{"partner_inference_id": "a", "ground_truth_timestamp": WHEN, "churned": 0}]
    told = await running.client.post(path, files={"ground_truth_data": ("x.json", json.dumps(truth).encode())})
    assert told.json()["counts"] == {"success": 1, "failure": 0, "total": 1}
    assert (await rows(running, id))[0].numbers[4:] == [0, 0, 1]


async def test_a_reference_set_is_appended_to_and_closed(running: Running, frame: pd.DataFrame) -> None:
    id = await created(running)
    path = f"{MODELS}/{id}/reference_data"
    columns = frame.drop(columns=["partner_inference_id", "inference_timestamp"]).assign(churned=[0, 1, 1])
    for _ in range(2):
        sent = await running.client.post(path, files={"reference_data": ("r.parquet", parquet(columns))})
        assert (sent.status_code, sent.json()["counts"]["success"]) == (207, 3)
    wrong = await running.client.patch(path, json={"status": "uploaded", "total_record_count": 5})
    assert wrong.status_code == 400 and "6 rows" in wrong.json()["detail"]
    done = await running.client.patch(path, json={"status": "uploaded", "total_record_count": 6})
    assert (done.status_code, done.json()) == (200, {"message": "success"})
    late = await running.client.post(path, files={"reference_data": ("r.parquet", parquet(columns))})
    assert late.status_code == 409
    async with running.server.explainer.database.transaction(tenant="default") as session:
        cells = await reference.read(session, UUID(id))
    assert cells.numbers[:3, 4:].tolist() == [[0, 0, 1], [1, 1, 0], [1, 1, 0]]


@pytest.mark.parametrize(
    "content",
    [
        b"PAR1",
        b"PAR1 and more PAR1",
        b"",
        b"{}",
        b"[",
        b'{"a": 1}',
        b'[{"income": NaN}]',
        b"\xff\xfe",
        b"PK\x03\x04",
    ],
)
async def test_an_unreadable_file_stores_nothing(running: Running, content: bytes) -> None:
    id = await created(running)
    response = await running.client.post(
        f"{MODELS}/{id}/inferences/file", files={"inference_data": ("x.parquet", content)}
    )
    assert response.status_code == 400, response.text
    assert await rows(running, id) == []


@pytest.mark.parametrize("body", [b"{}", b"null", b"[", b""])
async def test_records_must_be_an_array(running: Running, body: bytes) -> None:
    id = await created(running)
    path, headers = f"{MODELS}/{id}/inferences", {"Content-Type": "application/json"}
    assert (await running.client.post(path, content=body, headers=headers)).status_code == 400
    assert (await running.client.post(path, content=b"[]")).status_code == 415


async def test_one_part_is_needed(running: Running) -> None:
    id = await created(running)
    path = f"{MODELS}/{id}/inferences/file"
    file = ("x", b"[]")
    assert (await running.client.post(path, data={"batch_id": "b"}, files={"other": file})).status_code == 400
    both = {"inference_data": file, "ground_truth_data": file}
    assert (await running.client.post(path, files=both)).status_code == 400
    assert (await running.client.post(path, json=[])).status_code == 415


async def test_scopes_and_tenants(running: Running) -> None:
    id = await created(running)
    for scope, status in (("read", 403), ("explain", 403), ("ingest", 207)):
        headers = await running.key(scope)
        sent = await running.client.post(f"{MODELS}/{id}/inferences", json=[record(scope)], headers=headers)
        assert sent.status_code == status
    stranger = await running.key("admin", tenant="other")
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/inferences")):
        gone = await running.client.request(method, f"{MODELS}/{id}{path}", headers=stranger, json=[])
        assert (gone.status_code, gone.json()["code"]) == (404, "UNKNOWN_MODEL")
    assert (await running.client.get(MODELS, headers=stranger)).json() == []
    me = await running.client.get("/api/v3/users/me", headers=stranger)
    assert me.json() == {"organization_id": "other"}


@pytest.mark.parametrize("batch", ["b1", "2026/03/01", "None", "a b", "ü😀", "...", "%2F"])
async def test_a_batch_is_ended(running: Running, batch: str) -> None:
    id = await created(running, is_batch=True)
    for body in ({"status": "uploaded", "total_record_count": 30}, {"status": "uploaded"}, {}):
        done = await running.client.patch(f"{MODELS}/{id}/batches/{quote(batch)}", json=body)
        assert (done.status_code, done.json()) == (200, {"message": "success"})
    for unknown in (str(uuid4()), "x"):
        gone = await running.client.patch(f"{MODELS}/{unknown}/batches/{quote(batch)}", json={})
        assert (gone.status_code, gone.json()["code"]) == (404, "UNKNOWN_MODEL")


async def test_a_batch_is_ended_by_who_may_send(running: Running) -> None:
    id = await created(running, is_batch=True)
    for scope, status in (("read", 403), ("ingest", 200)):
        done = await running.client.patch(f"{MODELS}/{id}/batches/b", json={}, headers=await running.key(scope))
        assert done.status_code == status
    for bad in ([], {"total_record_count": -1}, {"total_record_count": "3"}, {"status": 1}):
        assert (await running.client.patch(f"{MODELS}/{id}/batches/b", json=bad)).status_code == 400


def placed(name: str, stage: str, position: int) -> dict[str, Any]:
    types = {"tenure": "INTEGER", "churned": "INTEGER"}
    return {"name": name, "value_type": types.get(name, "FLOAT"), "stage": stage, "position": position}


async def scored(running: Running, id: str) -> None:
    """Stores an inference with scores."""
    assert (await running.client.post(f"{MODELS}/{id}/inferences", json=[record("a")])).status_code == 207
    values = np.array([[0.1, 0.2, -0.1, -0.2]])  # (n, K * M)
    async with running.server.explainer.database.transaction(tenant="default") as session:
        (row,) = await inferences.read(session, UUID(id))
        await scores.add(session, UUID(id), "lime", scores.Scores(0, np.array([row.seq]), values, [{}]))


INPUTS = [placed("income", "PIPELINE_INPUT", 1), placed("tenure", "PIPELINE_INPUT", 0)]
OUTPUTS = [placed("churn_yes", "PREDICTED_VALUE", 1), placed("churn_no", "PREDICTED_VALUE", 0)]


@pytest.mark.parametrize("swapped", [INPUTS, OUTPUTS], ids=["inputs", "outputs"])
async def test_positions_are_fixed_once_scores_are_stored(running: Running, swapped: list[dict[str, Any]]) -> None:
    id = await created(running)
    changed = await running.client.put(f"{MODELS}/{id}", json={"attributes": swapped})
    assert changed.status_code == 200
    await scored(running, id)
    before = (await running.client.get(f"{MODELS}/{id}")).json()
    back = [attribute | {"position": 1 - attribute["position"]} for attribute in swapped]
    for attributes in (back, [swapped[0] | {"position": 7}]):
        refused = await running.client.put(f"{MODELS}/{id}", json={"display_name": "C", "attributes": attributes})
        assert (refused.status_code, refused.json()["code"]) == (409, "CONFLICT")
        assert "PIPELINE_INPUT" in refused.json()["detail"]
    assert (await running.client.get(f"{MODELS}/{id}")).json() == before
    labelled = [attribute | {"label": "L"} for attribute in swapped] + [placed("churned", "GROUND_TRUTH_CLASS", 3)]
    kept = await running.client.put(f"{MODELS}/{id}", json={"attributes": labelled})
    assert kept.status_code == 200 and kept.json()["attributes"][4]["position"] == 3


async def test_scores_of_another_model_fix_nothing(running: Running) -> None:
    await scored(running, await created(running))
    id = await created(running)
    assert (await running.client.put(f"{MODELS}/{id}", json={"attributes": INPUTS})).status_code == 200
