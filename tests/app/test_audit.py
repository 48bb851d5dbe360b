"""What the server writes into the audit log, and who reads it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from app.audit import command, prune
from storage.audit import Entry, Listed
from storage.errors import InvalidValue
from tests.app.conftest import PROMPT, TARGET, Running, Start

pytestmark = pytest.mark.anyio

CANARY = "canary-7d1f"
BODY = {"model": "tiny-lm", "prompt": PROMPT + CANARY, "target": TARGET + CANARY}
FILE = {"file": ("facts.jsonl", b'{"text": "canary-7d1f"}\n')}


async def rows(running: Running, tenant: str) -> list[Listed]:
    """All of a tenant, oldest first."""
    return list((await running.server.audit.entries(tenant, limit=500)).rows)[::-1]


@asynccontextmanager
async def as_tenant(running: Running, *scopes: str) -> AsyncIterator[tuple[dict[str, str], str]]:
    """Headers of a key of a new tenant, and its name."""
    tenant = f"audit-{uuid4().hex[:12]}"
    yield await running.key(*scopes, tenant=tenant), tenant


async def test_a_change_is_written_with_its_outcome(running: Running) -> None:
    async with as_tenant(running, "ingest") as (key, tenant):
        sent = await running.client.post("/files", files=FILE, headers=key | {"X-Request-ID": "mine"})
        id = sent.json()["id"]
        await running.client.delete(f"/files/{id}", headers=key)
        again = await running.client.delete(f"/files/{id}", headers=key)
        added, removed, missing = await rows(running, tenant)
    assert (added.kind, added.method, added.route, added.status) == ("change", "POST", "/files", 201)
    assert (added.object, added.request_id, added.key_name) == ({"made": f"/files/{id}"}, "mine", "test")
    assert (removed.route, removed.object, removed.outcome) == ("/files/{id}", {"id": id}, "done")
    assert (missing.status, missing.request_id) == (404, again.headers["x-request-id"])


async def test_computations_are_written_and_reads_are_not(running: Running, tiny_lm: Any) -> None:
    async with as_tenant(running, "explain", "read") as (key, tenant):
        await running.add(tiny_lm, tenant=tenant)
        answer = await running.client.post("/explain", json=BODY, headers=key)
        assert answer.status_code == 200, answer.text
        submitted = await running.client.post("/explain", json=BODY, headers=key | {"Prefer": "respond-async"})
        stored = f"/explanations/{answer.json()['id']}"
        assert (await running.client.get(stored, headers=key)).status_code == 200
        assert (await running.client.get("/jobs", headers=key)).status_code == 200
        computed, accepted = await rows(running, tenant)
    assert (computed.kind, computed.route, computed.status) == ("computation", "/explain", 200)
    assert accepted.object == {"made": submitted.headers["location"]} and accepted.status == 202


async def test_whatever_is_refused_is_written(running: Running) -> None:
    async with as_tenant(running, "read") as (key, tenant):
        await running.client.delete("/models/tiny-lm", headers=key)
        await running.client.get(f"/explanations/{uuid4()}", headers=key)
        await running.client.get("/jobs?limit=0", headers=key)
        await running.client.post("/explain", content=b"{", headers=key)
        await running.client.get("/nowhere", headers=key)  # no route: nobody asked whose key it is
        found = [(row.kind, row.route, row.status) for row in await rows(running, tenant)]
    refused = [("change", "/models/{name}", 403), ("read", "/explanations/{id}", 404), ("read", "/jobs", 400)]
    assert found == [*refused, ("computation", "/explain", 403)]


async def test_outcomes_of_one_moment_are_written_together_each_for_its_tenant(running: Running) -> None:
    async with as_tenant(running, "read") as (one, first), as_tenant(running, "read") as (two, second):
        wanted = {tenant: [f"/explanations/{uuid4()}" for _ in range(20)] for tenant in (first, second)}
        asked = [running.client.get(path, headers=one) for path in wanted[first]]
        asked += [running.client.get(path, headers=two) for path in wanted[second]]
        given_up = asyncio.create_task(running.server.audit.flush())
        await asyncio.gather(*asked)
        given_up.cancel()
        for tenant, paths in wanted.items():
            found = await rows(running, tenant)
            assert sorted(f"/explanations/{row.object['id']}" for row in found) == sorted(paths)
            assert {row.status for row in found} == {404}


async def test_what_comes_while_others_are_written_is_not_left_behind(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without another request to take it along."""
    log, write = running.server.audit, running.server.audit.write
    written: list[tuple[Entry, int]] = []

    async def write_long(tenant: str, outcomes: Sequence[tuple[Entry, int]]) -> None:
        if not written:
            await log.conclude(tenant, command("late"), 404)
        written.extend(outcomes)
        await write(tenant, outcomes)

    monkeypatch.setattr(log, "write", write_long)
    async with as_tenant(running, "read") as (_, tenant):
        await log.conclude(tenant, command("early"), 404)
        assert log.flushing is not None
        await log.flushing
    assert [entry.route for entry, _ in written] == ["whence early", "whence late"] and log.due == []


async def test_what_has_no_tenant_is_not_written(running: Running) -> None:
    async def count() -> int:
        found = 0
        async with running.server.explainer.database.transaction() as session:
            names = [row[0] for row in await session.execute(text("SELECT id FROM tenants"))]
        for name in names:
            found += len(await rows(running, name))
        return found

    before = await count()
    for path in ("/files", "/models/x", "/audit"):
        assert (await running.client.get(path, headers={"Authorization": "Bearer wrong"})).status_code == 401
    body = {"login": "nobody", "password": "whence_0123456789abcdef"}
    assert (await running.client.post("/api/v3/login", json=body)).status_code == 401
    assert await count() == before


async def test_a_login_is_written_for_its_key(running: Running) -> None:
    async with as_tenant(running, "read") as (key, tenant):
        body = {"login": "test", "password": key["Authorization"].removeprefix("Bearer ")}
        assert (await running.client.post("/api/v3/login", json=body)).status_code == 200
        (row,) = await rows(running, tenant)
    assert (row.kind, row.route, row.status, row.key_name) == ("change", "/api/v3/login", 200, "test")


@pytest.mark.parametrize(
    ("level", "kept"),
    [
        ("off", []),
        ("changes", ["/files", "/files/{id}"]),
        ("all", ["/files", "/jobs", "/explanations", "/files/{id}"]),
    ],
)
async def test_the_setting_says_what_is_kept(start: Start, level: str, kept: list[str]) -> None:
    async with start(audit=level) as running, as_tenant(running, "ingest", "read") as (key, tenant):
        await running.client.post("/files", files=FILE, headers=key)
        await running.client.get("/jobs", headers=key)
        await running.client.get("/explanations", headers=key)
        await running.client.get("/files/file-0", headers=key)
        assert [row.route for row in await rows(running, tenant)] == kept


async def test_admins_read_it_page_by_page(running: Running) -> None:
    async with as_tenant(running, "admin") as (key, tenant):
        reader = await running.key("read", "explain", "ingest", tenant=tenant)
        for place in range(3):
            await running.client.delete(f"/files/file-{place}", headers=key)
        assert (await running.client.get("/audit", headers=reader)).status_code == 403
        first = (await running.client.get("/audit?limit=3", headers=key)).json()
        rest = (await running.client.get("/audit", params={"cursor": first["next_cursor"]}, headers=key)).json()
        assert [entry["status"] for entry in first["entries"] + rest["entries"]] == [403, 404, 404, 404]
        refused = {"outcome": "refused", "route": "/files/{id}", "key": first["entries"][1]["key"]}
        found = (await running.client.get("/audit", params=refused, headers=key)).json()["entries"]
        assert [entry["object"]["id"] for entry in found] == ["file-2", "file-1", "file-0"]
        assert set(found[0]) == {
            "id", "created_at", "outcome", "status", "kind", "method", "route", "object", "key", "key_name",
            "request_id",
        }  # fmt: skip
        for query in ("cursor=x", "limit=0", "outcome=x", "key=x", "since=x"):
            assert (await running.client.get(f"/audit?{query}", headers=key)).status_code == 400
    async with as_tenant(running, "admin") as (key, _):
        assert (await running.client.get("/audit", headers=key)).json()["entries"] == []


async def test_it_holds_no_prompt_and_no_content(running: Running) -> None:
    """After all of the above, over the whole table as its owner sees it."""
    async with running.server.explainer.database.transaction() as session:
        names = [row[0] for row in await session.execute(text("SELECT id FROM tenants"))]
    whole = []
    for name in names:
        async with running.server.explainer.database.transaction(name) as session:
            whole += [row[0] for row in await session.execute(text("SELECT audit::text FROM audit"))]
    assert whole and not [row for row in whole if CANARY in row or "whence_" in row]


async def test_without_the_log_nothing_is_changed(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """Its table is away, as after a mistake of an operator; reads and stored answers go on, and the loss is told."""
    async with start() as running, as_tenant(running, "ingest", "read") as (key, tenant):
        database = running.server.explainer.database
        async with database.transaction() as session:
            await session.execute(text("ALTER TABLE audit RENAME TO audit_away"))
        try:
            with caplog.at_level(logging.ERROR):
                refused = await running.client.post("/files", files=FILE, headers=key)
                missing = await running.client.get("/files/file-0", headers=key)
                await running.server.audit.flush()
        finally:
            async with database.transaction() as session:
                await session.execute(text("ALTER TABLE audit_away RENAME TO audit"))
        assert (refused.status_code, refused.json()["code"]) == (503, "UNAVAILABLE")
        assert "audit" in refused.json()["detail"] and refused.headers["retry-after"] == "1"
        assert missing.status_code == 404
        assert "whence_audit_lost_total 3.0" in (await running.client.get("/metrics")).text
        assert "not audited: POST /files begun" in caplog.text and "GET /files/{id} 404" in caplog.text
        assert (await running.client.get("/files", headers=key)).json()["files"] == []
        assert await rows(running, tenant) == []
        assert (await running.client.post("/files", files=FILE, headers=key)).status_code == 201
        assert len(await rows(running, tenant)) == 1


async def test_a_change_that_breaks_is_written_too(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError(CANARY)

    monkeypatch.setattr("app.dialects.native.file_routes.remove_file", broken)
    async with as_tenant(running, "ingest") as (key, tenant):
        assert (await running.client.delete("/files/file-0", headers=key)).status_code == 500
        (row,) = await rows(running, tenant)
    assert (row.status, row.outcome) == (500, "failed")


async def test_old_entries_are_removed_and_an_entry_says_so(running: Running) -> None:
    month = datetime.now(UTC) - timedelta(days=30)
    async with as_tenant(running, "ingest") as (key, tenant):
        await running.client.delete("/files/file-0", headers=key)
        database = running.server.explainer.database
        async with database.transaction(tenant) as session:
            copied = (
                "INSERT INTO audit SELECT tenant_id, gen_random_uuid(), status, created_at - interval '60 days', kind, "
            )
            await session.execute(text(f"{copied} method, route, object FROM audit WHERE status = 404"))
        with pytest.raises(InvalidValue, match="7 days"):
            await prune(database, datetime.now(UTC) - timedelta(days=6))
        assert await prune(database, month) == 1 and await prune(database, month) == 0
        left, told = await rows(running, tenant)
    assert (left.status, told.kind, told.route) == (404, "command", "whence audit prune")
    assert told.object == {"before": month.isoformat(), "rows": "1"}
