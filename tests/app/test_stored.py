"""Stored explanations, the registry, readiness, and the first key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from app.dialects.native.routes import FORMS
from app.media_types import HTML, JSON, SVG, preferred
from app.settings import Settings
from app.start import first_key, open_database
from storage import api_keys
from tests import tiny_models
from tests.app.conftest import PROMPT, Running, Start, ready

pytestmark = pytest.mark.anyio


async def test_stored_as_asked(running: Running) -> None:
    answer = (await running.explain(control_factor=0.25, target_granularity="token")).json()
    response = await running.client.get(f"/explanations/{answer['id']}")
    stored = response.json()
    assert response.headers["vary"] == "Accept"
    assert stored["request"]["prompt"] == [{"type": "text", "data": PROMPT, "controls": []}]
    assert stored["request"]["config"]["control_factor"] == 0.25
    assert (stored["model"], stored["model_digest"]) == ("tiny-lm", answer["model_version"])
    scores = [score["score"] for score in answer["explanations"][0]["items"][0]["scores"]]
    assert stored["attribution"]["values"][0][: len(scores)] == scores
    assert stored["seconds"] == answer["seconds"] and stored["forwards"] == answer["forwards"] >= 1


async def test_pages(running: Running) -> None:
    ids = [(await running.explain(fresh=True, control_factor=n / 8)).json()["id"] for n in range(5)]
    seen: list[str] = []
    cursor: str | None = None
    while len(seen) < 5:
        asked: dict[str, Any] = {"limit": 2, "model": "tiny-lm", "kind": "completion"}
        page = (await running.client.get("/explanations", params=asked | ({"cursor": cursor} if cursor else {}))).json()
        seen += [entry["id"] for entry in page["explanations"]]
        cursor = page["next_cursor"]
    assert seen[:5] == ids[::-1]
    assert (await running.client.get("/explanations?model=nothing")).json() == {"explanations": [], "next_cursor": None}
    last = (await running.client.get("/explanations?limit=1")).json()["explanations"][0]
    since = {"since": last["created_at"]}
    assert [
        entry["id"] for entry in (await running.client.get("/explanations", params=since)).json()["explanations"]
    ] == [ids[-1]]
    assert (await running.client.get("/explanations?since=2000-01-01T00:00:00&limit=1")).status_code == 200


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("application/json", JSON),
        ("*/*", JSON),
        ("", JSON),
        ("text/html", HTML),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", HTML),
        ("application/json, text/html", JSON),
        ("text/html, application/json", HTML),
        ("text/html;q=0.5, application/json", JSON),
        ("text/*", HTML),
        ("text/html;q=0", JSON),
        ("text/html;q=x", JSON),
        ("image/svg+xml", SVG),
        ("image/*", SVG),
        ("image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5", SVG),
        ("text/html;q=0.4, image/svg+xml;q=0.6, application/json;q=0.5", SVG),
        ("image/svg+xml, text/html", SVG),
        ("text/html, image/svg+xml", HTML),
        ("audio/*", JSON),
    ],
)
def test_accept(accept: str, form: str) -> None:
    assert preferred(accept, FORMS) == form


async def test_registry(start: Start, models_dir: Path) -> None:
    tiny_models.save(models_dir / "nested" / "second")
    async with start() as running:
        new = {"name": "team/second", "path": "nested/second", "dtype": "float32", "description": "the second"}
        made = await running.client.post("/models", json=new)
        assert made.status_code == 201 and made.headers["location"] == "/models/team/second"
        assert made.json()["state"] == "loaded" and "path" not in made.json()
        again = await running.client.post("/models", json=new)
        assert (again.status_code, again.json()["code"]) == (409, "CONFLICT")
        assert (await running.client.get("/models/team/second")).json() == made.json()
        assert (await running.client.get("/models/team/second/tokenizer")).status_code == 200
        assert (await running.explain(model="team/second")).status_code == 200
        assert (await running.client.delete("/models/team/second")).status_code == 204
        assert (await running.client.get("/models/team/second")).json()["code"] == "UNKNOWN_MODEL"
        assert (await running.explain(model="team/second")).json()["code"] == "UNKNOWN_MODEL"


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"path": ".."}, "/path"),
        ({"path": "."}, "/path"),
        ({"path": "/etc"}, "/path"),
        ({"path": "link"}, "/path"),
        ({"path": "a\x00b"}, "/path"),
        ({"path": "missing"}, "/path"),
        ({"path": ""}, "/path"),
        ({"path": "x" * 5000}, "/path"),
        ({"name": "a/../b"}, "/name"),
        ({"name": "a//b"}, "/name"),
        ({"name": "a/"}, "/name"),
        ({"name": ""}, "/name"),
        ({"name": "x" * 201}, "/name"),
        ({"name": "../x"}, "/name"),
        ({"name": "x/tokenizer"}, "/name"),
        ({"name": "x\n"}, "/name"),
        ({"kind": "pickle"}, "/kind"),
        ({"dtype": 3}, "/dtype"),
    ],
)
async def test_bad_registrations(
    running: Running, models_dir: Path, tmp_path: Path, change: dict[str, Any], pointer: str
) -> None:
    link = models_dir / "link"
    if not link.is_symlink():
        os.symlink(tmp_path, link)  # noqa: PTH211 - short
    response = await running.client.post("/models", json={"name": "new", "path": "tiny-lm", **change})
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (400, pointer)


async def test_registering_needs_a_folder_of_models(start: Start) -> None:
    async with start(models_dir=None) as running:
        response = await running.client.post("/models", json={"name": "new", "path": "tiny-lm"})
        assert response.status_code == 400 and "WHENCE_MODELS_DIR" in response.json()["detail"]


async def test_folder_without_a_model(running: Running, models_dir: Path) -> None:
    (models_dir / "empty").mkdir(exist_ok=True)
    response = await running.client.post("/models", json={"name": "new", "path": "empty"})
    assert (response.status_code, response.json()["code"]) == (400, "MISSING_CAPABILITY")
    assert response.json()["detail"].startswith("empty holds no ")  # not where the folder of models lies


async def test_replaced_model_is_served_without_a_restart(start: Start, models_dir: Path) -> None:
    """As the command line does it, in another process: the running server only sees the database change."""
    folder = tiny_models.save(models_dir / "changing")
    async with start() as running, start() as command:
        await command.add(folder, "changing")
        first = (await running.explain(model="changing")).json()
        await command.client.delete("/models/changing")
        tiny_models.save(folder, initializer_range=0.5)
        changed = await running.explain(model="changing")
        assert changed.status_code == 404
        await command.add(folder, "changing")
        second = (await running.explain(model="changing")).json()
        assert second["model_version"] != first["model_version"]
        assert second["explanations"] != first["explanations"]
        await command.client.delete("/models/changing")


async def test_changed_files_are_refused(start: Start, models_dir: Path) -> None:
    folder = tiny_models.save(models_dir / "tampered")
    async with start() as running:
        await running.add(folder, "tampered")
        tiny_models.save(folder, initializer_range=0.5)
        running.server.explainer.runtime.forget("default", "tampered")
        response = await running.explain(model="tampered")
        assert response.status_code == 400 and "changed since it was registered" in response.json()["detail"]
        await running.client.delete("/models/tampered")


async def test_readiness(running: Running) -> None:
    await ready(running)
    response = await running.client.get("/readyz", headers={"Authorization": ""})
    assert response.status_code == 200
    assert {name: response.json()[name] for name in ("ready", "database", "migrations", "models")} == dict.fromkeys(
        ("ready", "database", "migrations", "models"), True
    )


async def test_not_ready_without_a_database(start: Start) -> None:
    async with start() as running:
        await running.server.explainer.database.close()
        broken = running.server.explainer.database.connect("postgresql://nobody:x@127.0.0.1:1/nothing")
        object.__setattr__(running.server.explainer, "database", broken)
        response = await running.client.get("/readyz")
        assert (response.status_code, response.json()["ready"], response.json()["database"]) == (503, False, False)
        assert (await running.client.get("/healthz")).status_code == 200
        asked = await running.explain()
        assert (asked.status_code, asked.json()["code"]) == (503, "UNAVAILABLE") and asked.headers["retry-after"]
        await broken.close()


async def test_first_key(new_data_dir: Path) -> None:
    settings = Settings(data_dir=new_data_dir, api_key=None)
    async with open_database(settings) as database:
        secret = await first_key(database, settings)
        assert secret is not None and await first_key(database, settings) is None
        found = await api_keys.find_by_secret(database, secret)
        assert found is not None and found.scopes == ["admin"]
        chosen = Settings(data_dir=new_data_dir, api_key="a-secret-of-my-own")
        for _ in range(2):
            assert await first_key(database, chosen) is None
        row = await api_keys.find_by_secret(database, "a-secret-of-my-own")
        assert row is not None
        async with database.transaction(tenant="default") as session:
            assert len(await api_keys.list_all(session)) == 2
            await api_keys.revoke(session, row.id)
        assert await first_key(database, chosen) is None
        assert await api_keys.find_by_secret(database, "a-secret-of-my-own") is None
