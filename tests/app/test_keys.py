"""Who may do what."""

from __future__ import annotations

import re
from uuid import UUID

import pytest
from fastapi.routing import iter_route_contexts

from app.dependencies import presented_key
from storage import api_keys
from tests import tiny_models
from tests.app.conftest import ADMIN_KEY, PROMPT, TARGET, Running, Start

pytestmark = pytest.mark.anyio

OPEN = {"/healthz", "/readyz", "/version", "/v1/version"}
OF_STRANGERS = ("/explorer/sign-in", "/explorer/static/")
LOGIN = "/api/v3/login"
BODY = {"model": "tiny-lm", "prompt": PROMPT, "target": TARGET}


def every_route(running: Running) -> list[tuple[str, str]]:
    found = []
    for route in iter_route_contexts(running.app.routes):
        assert route.path is not None
        path = re.sub(r"\{[^}]*\}", "x", re.sub(r"\{[^}]*:uuid\}", str(UUID(int=0)), route.path))
        found += [(method, path) for method in sorted(route.methods or ()) if method != "HEAD"]
    return found


async def test_every_route_needs_a_key(running: Running) -> None:
    routes = every_route(running)
    assert len(routes) > 40
    for method, path in routes:
        for header in ("", "Bearer", "Bearer wrong", "wrong", f"Basic {ADMIN_KEY}"):
            response = await running.client.request(method, path, headers={"Authorization": header})
            if path in OPEN:
                assert response.status_code in (200, 503), path
                continue
            if path.startswith(OF_STRANGERS):
                assert response.status_code in (200, 403, 404, 415), path
                continue
            if not header and (path == "/" or path.startswith("/explorer")):  # the way in, for people
                assert response.status_code == (303 if method == "GET" else 401), path
                continue
            if path == LOGIN:  # which asks for a body
                assert response.status_code == 400
                continue
            assert (response.status_code, response.json()["code"]) == (401, "UNAUTHORIZED"), (method, path)
            assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("header", ["Bearer {}", "bearer {}", "BEARER   {} ", "{}"])
async def test_forms_of_the_header(running: Running, header: str) -> None:
    headers = {"Authorization": header.format(ADMIN_KEY)}
    assert (await running.client.get("/models", headers=headers)).status_code == 200


def test_presented_key() -> None:
    assert presented_key("Bearer  a b ") == "a b"
    assert presented_key("") == presented_key("Bearer") == presented_key("bearer ") == ""


@pytest.mark.parametrize("content", [b"{", b"", b'{"model": 1}', b"\xff"])
async def test_bad_key_wins_over_bad_body(running: Running, content: bytes) -> None:
    for kind in ("application/json", "text/plain"):
        headers = {"Authorization": "Bearer wrong", "Content-Type": kind}
        assert (await running.client.post("/explain", content=content, headers=headers)).status_code == 401


async def test_missing_scope(running: Running) -> None:
    reader, asker = await running.key("read"), await running.key("explain")
    assert (await running.client.post("/explain", json=BODY, headers=reader)).json()["code"] == "FORBIDDEN"
    assert (await running.client.post("/explain", json={}, headers=reader)).status_code == 403
    assert (await running.client.post("/explain", json=BODY, headers=asker)).status_code == 200
    assert (await running.client.get("/explanations", headers=asker)).status_code == 403
    assert (await running.client.get("/models_available", headers=asker)).status_code == 200
    assert (await running.client.get("/explanations", headers=reader)).status_code == 200
    for headers in (reader, asker):
        assert (await running.client.get("/models/tiny-lm/tokenizer", headers=headers)).status_code == 200
        assert (await running.client.delete("/models/tiny-lm", headers=headers)).status_code == 403
        assert (await running.client.post("/models", json={}, headers=headers)).status_code == 403


async def test_revoked_at_once(running: Running) -> None:
    database = running.server.explainer.database
    async with database.transaction(tenant="default") as session:
        row, secret = await api_keys.create(session, tenant="default", name="x", scopes=["read"])
    headers = {"Authorization": f"Bearer {secret}"}
    assert (await running.client.get("/models", headers=headers)).status_code == 200
    async with database.transaction(tenant="default") as session:
        await api_keys.revoke(session, row.id)
    assert (await running.client.get("/models", headers=headers)).status_code == 401


async def test_tenants_see_nothing_of_each_other(running: Running) -> None:
    mine = (await running.explain()).json()
    other = await running.key("admin", tenant="other")
    assert (await running.client.get(f"/explanations/{mine['id']}", headers=other)).json()["code"] == "NOT_FOUND"
    assert (await running.client.get("/explanations", headers=other)).json()["explanations"] == []
    assert (await running.client.get("/models", headers=other)).json() == {"models": []}
    assert (await running.client.get("/models_available", headers=other)).json() == []
    assert (await running.client.post("/explain", json=BODY, headers=other)).json()["code"] == "UNKNOWN_MODEL"
    assert (await running.client.delete("/models/tiny-lm", headers=other)).json()["code"] == "UNKNOWN_MODEL"


async def test_tenants_share_weights_but_not_answers(start: Start, tiny_lm: object, models_dir: object) -> None:
    async with start() as running:
        folder = tiny_models.save(running.server.settings.models_dir / "shared")  # type: ignore[operator]
        third, fourth = [await running.key("admin", tenant=name) for name in ("third", "fourth")]
        new = {"name": "shared", "path": folder.name}
        for headers in (third, fourth):
            assert (await running.client.post("/models", json=new, headers=headers)).status_code == 201
        asked = {**BODY, "model": "shared"}
        first, second = [
            (await running.client.post("/explain", json=asked, headers=headers)).json() for headers in (third, fourth)
        ]
        assert first["id"] != second["id"] and first["explanations"] == second["explanations"]
        for headers in (third, fourth):
            assert (await running.client.delete("/models/shared", headers=headers)).status_code == 204
