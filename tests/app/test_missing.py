"""What the vendor's client may ask for and is not there: said in one way, and nothing else is hidden by it."""

from __future__ import annotations

import re
from typing import Any
from uuid import uuid4

import pytest

from app.dialects.arthur.missing_routes import MISSING
from app.dialects.arthur.model_routes import MODELS
from tests.app.conftest import Running
from tests.app.test_monitored import created

ASKED = [(path, method) for path, methods, _ in MISSING for method in methods]


@pytest.mark.parametrize(("path", "method"), ASKED, ids=[f"{method} {path}" for path, method in ASKED])
async def test_one_answer(running: Running, path: str, method: str) -> None:
    path = re.sub(r"\{[^}]*\}", "x", re.sub(r"\{[^}]*:uuid\}", str(uuid4()), path))
    bodies: list[Any] = [{}, {"json": {"name": "x"}}, {"content": b"{", "headers": {"Content-Type": "text/plain"}}]
    for body in bodies:
        response = await running.client.request(method, path, params={"page": 1}, **body)
        assert (response.status_code, response.json()["code"]) == (400, "MISSING_CAPABILITY")
        assert response.headers["content-type"] == "application/problem+json"
    refused = await running.client.request(method, path, headers=await running.key("explain"))
    assert refused.status_code == 403


@pytest.mark.parametrize(
    "ending", ["alert_rules", "inferences/images/1", "inferences/query/1", "enrichments/hotspots/find"]
)
async def test_names_of_models_may_end_like_paths(running: Running, ending: str) -> None:
    name = f"{uuid4()}s/{ending}"
    id = await created(running, partner_model_id=name)
    found = await running.client.get(f"{MODELS}/{name}", params={"id_type": "partner_model_id"})
    assert (found.status_code, found.json()["id"]) == (200, id)
