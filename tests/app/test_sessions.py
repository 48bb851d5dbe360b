"""Logins, and what a token may do."""

from __future__ import annotations

import base64
import json
import stat
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import update

from app import login
from app.dialects.arthur.model_routes import CHURN, MODELS
from app.tokens import signed
from explainers.errors import MissingCapability
from storage import api_keys, tenants
from storage.tables import ApiKey
from tests.app.conftest import ADMIN_KEY, Running, Start

LOGIN = "/api/v3/login"
CURRENT = "/api/v3/organizations/current"


async def new_key(running: Running, *scopes: str, name: str = "ann", tenant: str = "default") -> tuple[UUID, str]:
    async with running.server.explainer.database.transaction(tenant=tenant) as session:
        await tenants.ensure(session, tenant)
        row, secret = await api_keys.create(session, tenant=tenant, name=name, scopes=scopes or ["read"])
    return row.id, secret


async def entered(running: Running, name: str, secret: str) -> httpx.Response:
    running.client.cookies.clear()
    response = await running.client.post(LOGIN, json={"login": name, "password": secret}, headers={"Authorization": ""})
    running.client.cookies.clear()  # each test says itself what it sends
    return response


def token_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return response.cookies["Authorization"]


def claims(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return found


async def me(running: Running, **headers: str) -> httpx.Response:
    return await running.client.get("/api/v3/users/me", headers={"Authorization": ""} | headers)


async def test_a_login_gives_a_token_for_the_key(running: Running) -> None:
    id, secret = await new_key(running, "read", tenant="other")
    response = await entered(running, "ann", secret)
    token = token_of(response)
    assert response.json() == {"id": str(id), "email": ""}
    cookie = response.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "path=/" in cookie and "secure" not in cookie
    assert (
        claims(token)["exp"] >= time.time() + 3600
        and secret not in base64.b64decode(token.split(".")[1] + "==").decode()
    )
    sent: list[dict[str, str]] = [
        {"Authorization": token}, {"Authorization": f"Bearer {token}"}, {"Cookie": f"Authorization={token}"},
    ]  # fmt: skip
    for headers in sent:
        assert (await me(running, **headers)).json() == {"organization_id": "other"}


async def test_a_token_may_what_its_key_may(running: Running) -> None:
    _, secret = await new_key(running, "read")
    headers = {"Authorization": token_of(await entered(running, "ann", secret))}
    assert (await running.client.get(MODELS, headers=headers)).status_code == 200
    assert (await running.client.get("/explanations", headers=headers)).status_code == 200
    assert (await running.client.post(MODELS, json=CHURN, headers=headers)).status_code == 403
    assert (await running.client.post("/explain", json={}, headers=headers)).status_code == 403


async def test_either_mistake_has_the_same_answer(running: Running) -> None:
    _, secret = await new_key(running)
    tried = [
        ("ann", secret + "x"),
        ("bob", secret),
        ("bob", "b" * 20),
        ("", secret),
        ("ann", ""),
        ("", ""),
        ("Ann", secret),
    ]
    answers = [await entered(running, name, password) for name, password in tried]
    assert {(answer.status_code, answer.content) for answer in answers} == {(401, answers[0].content)}
    assert all("set-cookie" not in answer.headers for answer in answers)
    assert answers[0].json()["code"] == "UNAUTHORIZED"


@pytest.mark.parametrize("end", ["revoked_at", "expires_at"])
async def test_a_token_ends_with_its_key(running: Running, end: str) -> None:
    id, secret = await new_key(running)
    token = token_of(await entered(running, "ann", secret))
    assert (await me(running, Authorization=token)).status_code == 200
    async with running.server.explainer.database.transaction(tenant="default") as session:
        past = datetime.now(UTC) - timedelta(seconds=1)
        await session.execute(update(ApiKey).where(ApiKey.id == id).values({end: past}))
    assert (await me(running, Authorization=token)).status_code == 401
    assert (await me(running, Cookie=f"Authorization={token}")).status_code == 401
    assert (await entered(running, "ann", secret)).status_code == 401


async def test_the_scopes_are_those_of_now(running: Running) -> None:
    id, secret = await new_key(running, "read")
    token = token_of(await entered(running, "ann", secret))
    async with running.server.explainer.database.transaction(tenant="default") as session:
        await session.execute(update(ApiKey).where(ApiKey.id == id).values(scopes=["explain"]))
    assert (await me(running, Authorization=token)).status_code == 403


async def test_a_token_lasts_no_longer_than_it_says(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    _, secret = await new_key(running)
    monkeypatch.setattr(login, "LIFE_SECONDS", -1)
    token = token_of(await entered(running, "ann", secret))
    assert (await me(running, Authorization=token)).status_code == 401


async def test_a_token_of_another_installation(running: Running) -> None:
    id, secret = await new_key(running)
    token = token_of(await entered(running, "ann", secret))
    for change in ({}, {"tenant": "other"}, {"sub": str(uuid4())}):
        forged = signed(claims(token) | change, b"\0" * 32)
        assert (await me(running, Authorization=forged)).status_code == 401
    kept = (running.server.settings.data_dir / login.FILE).read_bytes()
    for change in ({"tenant": "other"}, {"sub": str(uuid4())}):
        assert (await me(running, Authorization=signed(claims(token) | change, kept))).status_code == 401
    assert (await me(running, Authorization=signed(claims(token) | {"sub": str(id)}, kept))).status_code == 200


async def test_a_header_outdoes_a_cookie(running: Running) -> None:
    _, secret = await new_key(running, tenant="other")
    cookie = f"Authorization={token_of(await entered(running, 'ann', secret))}"
    assert (await me(running, Cookie=cookie, Authorization=ADMIN_KEY)).json() == {"organization_id": "default"}
    assert (await me(running, Cookie=cookie, Authorization="wrong")).status_code == 401


async def test_a_cookie_holds_no_key(running: Running) -> None:
    assert (await me(running, Cookie=f"Authorization={ADMIN_KEY}")).status_code == 401


@pytest.mark.parametrize(
    ("site", "status"), [("same-origin", 200), ("none", 200), ("same-site", 401), ("cross-site", 401)]
)
async def test_pages_of_others_cannot_use_the_cookie(running: Running, site: str, status: int) -> None:
    _, secret = await new_key(running)
    token = token_of(await entered(running, "ann", secret))
    headers = {"Cookie": f"Authorization={token}", "Sec-Fetch-Site": site}
    assert (await me(running, **headers)).status_code == status
    assert (await me(running, Authorization=token, **{"Sec-Fetch-Site": site})).status_code == 200


async def test_the_cookie_keeps_to_https_where_that_is_spoken(running: Running) -> None:
    _, secret = await new_key(running)
    transport = httpx.ASGITransport(running.app)
    async with httpx.AsyncClient(transport=transport, base_url="https://whence") as client:
        response = await client.post(LOGIN, json={"login": "ann", "password": secret})
    assert "; secure" in response.headers["set-cookie"].lower()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("", 400), ("{", 400), ("[]", 400), ("null", 400), ("{}", 400), ('{"login":"a"}', 400),
        ('{"login":1,"password":"x"}', 400), ('{"login":"a","password":null}', 400),
        ('{"login":["a"],"password":{}}', 400),
        (r'{"login":"a","password":"\ud800"}', 400), (r'{"login":"\u0000","password":"\u0000"}', 401),
        ('{"login":"a","login":"b","password":"x","password":"y"}', 401), ("[" * 5000, 400),
        ('{"login":"é😀","password":"é😀"}', 401), ('{"login":"a","password":"' + "x" * 2**16 + '"}', 413),
    ],
    ids=range(15),
)  # fmt: skip
async def test_strange_logins(running: Running, body: str, status: int) -> None:
    headers = {"Content-Type": "application/json", "Authorization": ""}
    response = await running.client.post(LOGIN, content=body.encode(), headers=headers)
    assert (response.status_code, response.json()["status"]) == (status, status)
    assert response.headers["content-type"] == "application/problem+json"


async def test_a_login_is_json(running: Running) -> None:
    for kind in ("", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        response = await running.client.post(LOGIN, content=b"{}", headers={"Content-Type": kind})
        assert response.status_code == 415
    assert (await running.client.get(LOGIN)).status_code == 405


async def test_a_long_body_is_not_kept(running: Running) -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(32):
            read += 2**17
            yield b"x" * 2**17

    headers = {"Content-Type": "application/json"}
    assert (await running.client.post(LOGIN, content=endless(), headers=headers)).status_code == 413
    assert read == 32 * 2**17


async def test_who_is_logged_in(running: Running) -> None:
    _, secret = await new_key(running, "read", "ingest", tenant="other")
    headers = {"Authorization": token_of(await entered(running, "ann", secret))}
    info = await running.client.get("/api/v3/users/me/auth_info", headers=headers)
    assert info.json() == {
        "issuer": "whence", "username": "ann", "first_name": "", "last_name": "", "email": "",
        "roles": ["ingest", "read"], "organization_ids": ["other"],
    }  # fmt: skip
    assert (await running.client.get(CURRENT, headers=headers)).json() == {"id": "other"}
    own = await running.client.put(CURRENT, json={"organization_id": "other"}, headers=headers)
    assert (own.status_code, own.json()) == (200, {"id": "other"})
    for choice in ("default", "nowhere", "", "a\0b"):
        response = await running.client.put(CURRENT, json={"organization_id": choice}, headers=headers)
        assert (response.status_code, response.json()["code"]) == (404, "NOT_FOUND")
    assert (await running.client.put(CURRENT, json={"organization_id": 1}, headers=headers)).status_code == 400


def test_the_secret_is_made_once_and_is_ours_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "data"
    assert login.kept_secret(folder) is None
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: login.signing_secret(folder), range(64)))
    assert found == {login.kept_secret(folder)} and len(found.pop()) == 32
    assert [path.name for path in folder.iterdir()] == [login.FILE]
    assert stat.S_IMODE((folder / login.FILE).stat().st_mode) == 0o600


def short(folder: Path) -> None:
    (folder / login.FILE).write_bytes(b"short")


def in_the_way(folder: Path) -> None:
    (folder / login.FILE).mkdir()


@pytest.mark.parametrize("spoil", [short, in_the_way])
def test_no_secret_that_could_be_guessed(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    spoil(tmp_path)
    assert login.kept_secret(tmp_path) is None
    with pytest.raises(MissingCapability):
        login.signing_secret(tmp_path)


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MissingCapability):
        login.signing_secret(tmp_path / "file")


async def test_tokens_outlive_a_restart_but_not_their_secret(running: Running, start: Start) -> None:
    _, secret = await new_key(running)
    token = token_of(await entered(running, "ann", secret))
    async with start() as again:
        assert (await me(again, Authorization=token)).status_code == 200
    file = running.server.settings.data_dir / login.FILE
    kept = file.read_bytes()
    file.unlink()
    assert (await me(running, Authorization=token)).status_code == 401
    file.write_bytes(kept)
    assert (await me(running, Authorization=token)).status_code == 200
