"""Models and deployments over Seekr's wire, and what it has not."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from app.deployments import deployment_id
from tests import tiny_models
from tests.app.conftest import PROMPT, Running, Start, until
from tests.app.test_limits import hold

pytestmark = pytest.mark.anyio

DEPLOYMENTS = "/v1/flow/deployments"
NEW = {"name": "mill facts", "description": "Who keeps it", "model_type": "Base Model", "n_instances": 1}
OWN = deployment_id("default", "tiny-lm")


def files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def only(running: Running, path: str = DEPLOYMENTS, **params: Any) -> dict[str, Any]:
    response = await running.client.get(path, params=params)
    assert response.status_code == 200, response.text
    (found,) = response.json()["data"]
    return dict(found)


async def chat(running: Running, model: str, **how: Any) -> httpx.Response:
    messages = [{"role": "user", "content": PROMPT}]
    body = {"model": model, "messages": messages, "max_tokens": 4, "temperature": 0, **how}
    return await running.client.post("/v1/inference/chat/completions", json=body)


async def test_models(running: Running, tiny_lm: Path) -> None:
    size = sum(file.stat().st_size for file in files_in(tiny_lm))
    listed = {"id": "tiny-lm", "name": "tiny-lm", "size": size, "model_type": "chat"}
    response = await running.client.get("/v1/flow/models")
    assert response.json() == {"object": "list", "data": [listed]}


async def test_models_that_are_not_ready_or_gone(running: Running, models_dir: Path, tmp_path: Path) -> None:
    folder = tiny_models.save(models_dir / "moved")
    await running.add(folder, "moved")
    listed = (await running.client.get("/v1/flow/models")).json()["data"]
    assert [each["model_type"] for each in listed] == ["language", "chat"]
    folder.rename(tmp_path / "moved")
    running.server.explainer.runtime.forget("default", "moved")
    listed = (await running.client.get("/v1/flow/models")).json()["data"]
    assert listed[0] == {"id": "moved", "name": "moved", "size": None, "model_type": None}
    await running.client.delete("/models/moved")


async def test_every_model_has_a_deployment(running: Running) -> None:
    found = await only(running)
    assert found.items() >= {"id": OWN, "model_id": "tiny-lm", "name": "tiny-lm", "status": "Active"}.items()
    assert found.items() >= {"model_type": "Base Model", "n_instances": 1, "user_id": 0}.items()
    assert re.fullmatch(r"deployment-[0-9a-f-]{36}", OWN)
    assert (await running.client.get(f"{DEPLOYMENTS}/{OWN}")).json() == found
    assert (await running.client.get(DEPLOYMENTS, params={"skip": 1})).json() == {"data": []}
    for params in ({"skip": -1}, {"limit": 0}, {"limit": "x"}):
        response = await running.client.get(DEPLOYMENTS, params=params)
        assert (response.status_code, response.json()["code"]) == (400, "INVALID_REQUEST")


async def test_its_id_answers_and_counts(running: Running) -> None:
    before = await only(running)
    by_name, by_id = await chat(running, "tiny-lm"), await chat(running, OWN)
    assert by_id.json()["choices"] == by_name.json()["choices"] and by_id.json()["model"] == OWN
    assert (await chat(running, OWN, stream=True)).text.endswith("data: [DONE]\n\n")
    after, used = await only(running), by_id.json()["usage"]
    assert after["total_input_tokens"] - before["total_input_tokens"] == 3 * used["prompt_tokens"]
    assert after["total_output_tokens"] - before["total_output_tokens"] == 3 * used["completion_tokens"]


async def test_named_once_and_switched(running: Running) -> None:
    made = (await running.client.post(DEPLOYMENTS, json=NEW | {"model_id": "tiny-lm"})).json()
    assert made.items() >= {"id": OWN, "name": "mill facts", "description": "Who keeps it", "status": "Active"}.items()
    again = await running.client.post(DEPLOYMENTS, json=NEW | {"model_id": OWN})
    assert (again.status_code, again.json()["code"]) == (409, "CONFLICT")
    for _ in range(2):
        off = (await running.client.put(f"{DEPLOYMENTS}/{OWN}/demote")).json()
        assert off["status"] == "Inactive" and off["updated_at"] > made["updated_at"]
    refused = await chat(running, OWN)
    assert (refused.status_code, refused.json()["code"]) == (409, "CONFLICT")
    assert (await chat(running, "tiny-lm")).status_code == 200
    assert (await running.client.put(f"{DEPLOYMENTS}/{OWN}/promote")).json()["status"] == "Active"
    assert (await chat(running, OWN)).status_code == 200


async def test_a_fine_tune(running: Running, models_dir: Path) -> None:
    await running.add(tiny_models.save(models_dir / "tuned"), "tuned")
    async with running.server.explainer.database.transaction(tenant="default") as session:
        await session.execute(text("UPDATE models SET base = 'tiny-lm' WHERE name = 'tuned'"))
    wrong = await running.client.post(DEPLOYMENTS, json=NEW | {"model_id": "tuned"})
    assert (wrong.status_code, wrong.json()["errors"][0]["pointer"]) == (400, "/model_type")
    body = NEW | {"model_id": "tuned", "model_type": "Fine-tuned Run"}
    assert (await running.client.post(DEPLOYMENTS, json=body)).json()["model_type"] == "Fine-tuned Run"
    await running.client.delete("/models/tuned")


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"model_id": "nobody"}, 404, "UNKNOWN_MODEL"),
        ({"model_id": deployment_id("default", "nobody")}, 404, "UNKNOWN_MODEL"),
        ({"n_instances": 2}, 400, "MISSING_CAPABILITY"),
        ({"n_instances": True}, 400, "INVALID_REQUEST"),
        ({"name": ""}, 400, "INVALID_REQUEST"),
        ({"model_type": "LoRA"}, 400, "INVALID_REQUEST"),
        ({"description": None}, 400, "INVALID_REQUEST"),
    ],
    ids=range(7),
)
async def test_what_cannot_be_deployed(running: Running, changes: dict[str, Any], status: int, code: str) -> None:
    response = await running.client.post(DEPLOYMENTS, json=NEW | {"model_id": "tiny-lm"} | changes)
    assert (response.status_code, response.json()["code"]) == (status, code), response.text


async def test_unknown_deployments_and_other_tenants(running: Running) -> None:
    stranger = await running.key("admin", tenant="elsewhere")
    for id, headers in (("deployment-77", {}), (deployment_id("default", "nobody"), {}), (OWN, stranger)):
        for method, path in (("GET", ""), ("PUT", "/promote"), ("PUT", "/demote")):
            response = await running.client.request(method, f"{DEPLOYMENTS}/{id}{path}", headers=headers)
            assert (response.status_code, response.json()["code"]) == (404, "UNKNOWN_MODEL")
        model = {"model": id, "prompt": "a"}
        response = await running.client.post("/v1/inference/completions", json=model, headers=headers)
        assert (response.status_code, response.json()["code"]) == (404, "UNKNOWN_MODEL")
    reader = await running.key("read")
    for method, path in (("POST", ""), ("PUT", f"/{OWN}/promote"), ("PUT", f"/{OWN}/demote")):
        response = await running.client.request(method, DEPLOYMENTS + path, headers=reader, json=NEW)
        assert response.status_code == 403


async def test_a_model_that_is_being_loaded_is_pending(start: Start, models_dir: Path) -> None:
    folder = tiny_models.save(models_dir / "late")
    async with start() as running:
        await running.add(folder, "late")
        opened = await hold(running)
        running.server.explainer.runtime.forget("default", "late")
        loading = asyncio.create_task(chat(running, "late"))
        device = running.server.explainer.runtime.device
        await until(lambda: device.waiting == 1)  # to be read
        found = (await running.client.get(f"{DEPLOYMENTS}/{deployment_id('default', 'late')}")).json()
        assert found["status"] == "Pending"
        opened.set()
        await loading
        await running.client.delete("/models/late")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/flow/files/validate_metadata"),
        ("POST", "/v1/flow/fine-tune"),
        ("GET", "/v1/flow/fine-tunes"),
        ("GET", "/v1/flow/fine-tunes/ft-1/events"),
        ("PUT", "/v1/flow/fine-tunes/ft-1/cancel"),
        ("DELETE", "/v1/flow/fine-tunes/ft-1"),
        ("POST", "/v1/explainability/context-attributor-from-run"),
    ],
)
async def test_what_is_missing_says_so(running: Running, method: str, path: str) -> None:
    response = await running.client.request(method, path)
    assert (response.status_code, response.json()["code"]) == (400, "MISSING_CAPABILITY")
    assert (await running.client.request(method, path, headers={"Authorization": ""})).status_code == 401
