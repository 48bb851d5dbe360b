"""Jobs over the wire: asked for, followed, cancelled, and what becomes of requests that outlive their deadline."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from app import jobs as app_jobs
from app.accepted import prefers_async
from app.errors import problem_body
from app.jobs import Jobs
from app.refusals import Refusal
from app.settings import Settings
from explainers.errors import InvalidRequest
from storage import jobs as rows
from storage.ids import time_ordered
from storage.queue import Later
from tests.app.conftest import ADMIN_KEY, PROMPT, TARGET, Running, Start, until
from tests.app.test_limits import hold, served
from tests.postgres import Server as Postgres

pytestmark = pytest.mark.anyio

ASYNC = {"Prefer": "respond-async"}
BODY = {"model": "tiny-lm", "prompt": PROMPT, "target": TARGET}
FINAL = {"succeeded", "failed", "cancelled"}


@pytest.fixture(scope="module")
def url(postgres: Postgres) -> Iterator[str]:
    """A database beside that of the other applications, whose workers would take these jobs."""
    with postgres.empty_database() as url:
        yield url


@pytest.fixture(scope="module")
async def idle(start: Start, tiny_lm: Path, url: str) -> AsyncIterator[Running]:
    """An application that leaves jobs in the queue."""
    async with start(database_url=url, worker=False) as running:
        await running.add(tiny_lm, "idle-lm")
        yield running


async def submitted(running: Running, path: str = "/explain", **changes: Any) -> dict[str, Any]:
    response = await running.client.post(path, json={**BODY, **changes}, headers=ASYNC)
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    assert response.headers["location"] == f"/jobs/{job['id']}"
    assert response.headers["preference-applied"] == "respond-async"
    return job


async def job_of(running: Running, id: str) -> dict[str, Any]:
    found: dict[str, Any] = (await running.client.get(f"/jobs/{id}")).raise_for_status().json()
    return found


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    end = time.monotonic() + 60
    while not await condition():
        assert time.monotonic() < end, "it did not come about"
        await asyncio.sleep(0.01)


async def is_running(running: Running, id: str) -> None:
    """Waits until somebody works on the job."""

    async def condition() -> bool:
        return bool((await job_of(running, id))["state"] == "running")

    await eventually(condition)


async def ended(running: Running, id: str) -> dict[str, Any]:
    end = time.monotonic() + 120
    while (job := await job_of(running, id))["state"] not in FINAL:
        assert time.monotonic() < end, job
        await asyncio.sleep(0.05)
    return job


def test_prefer() -> None:
    for header in ("respond-async", "Respond-Async, wait=10", "handling=lenient , respond-async;x=1"):
        assert prefers_async(header)
    for header in (None, "", "wait=10", "respond-asynchronously", 'x="respond-async"'):
        assert not prefers_async(header)


@pytest.mark.parametrize("path", ["/explain", "/v1/explain"])
async def test_answered_later_like_at_once(running: Running, path: str) -> None:
    job = await submitted(running, path, fresh=True)
    assert (job["state"], job["kind"], job["model"], job["explanation"]) == ("queued", "explain", "tiny-lm", None)
    done = await ended(running, job["id"])
    assert (done["state"], done["attempts"]) == ("succeeded", 1) and done["done"] == done["total"] > 1
    assert done["explanation"] == job["id"] and done["error"] is None
    assert done["created_at"] <= done["started_at"] <= done["finished_at"]
    stored = (await running.client.get(f"/explanations/{done['explanation']}")).json()
    at_once = (await running.explain()).json()
    assert at_once["id"] == stored["id"]  # the very same request is answered from what the job stored
    assert stored["request"]["target"] == TARGET


async def test_a_stored_answer_will_do(running: Running) -> None:
    first = (await running.explain()).json()
    job = await submitted(running)
    assert (await ended(running, job["id"]))["explanation"] == first["id"]


async def test_what_cannot_be_asked_is_refused_at_once(running: Running) -> None:
    for changes, status in (({"target": ""}, 400), ({"model": "nothing"}, 404), ({"method": 5}, 400)):
        response = await running.client.post("/explain", json={**BODY, **changes}, headers=ASYNC)
        assert response.status_code == status


async def test_what_turns_out_wrong_fails_once_with_its_reason(running: Running) -> None:
    prompt = "Oslo " * 300
    at_once = (await running.explain(prompt=prompt)).json()
    job = await ended(running, (await submitted(running, prompt=prompt))["id"])
    assert (job["state"], job["attempts"], job["explanation"]) == ("failed", 1, None)
    assert job["error"] == at_once and job["error"]["code"] == "CONTEXT_LENGTH_EXCEEDED"
    assert prompt not in json.dumps(job)


async def test_pages(idle: Running) -> None:
    headers = await idle.key("admin", tenant="pages")
    async with idle.server.explainer.database.transaction(tenant="pages") as session:
        made = [time_ordered() for _ in range(5)]
        for id in made:
            assert await rows.add(session, id=id, kind="explain", model="m", request={})
    seen: list[str] = []
    cursor: str | None = None
    while len(seen) < 5:
        asked: dict[str, Any] = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = (await idle.client.get("/jobs", params=asked, headers=headers)).json()
        seen += [job["id"] for job in page["jobs"]]
        cursor = page["next_cursor"]
    assert (sorted(seen), cursor) == (sorted(map(str, made)), None)
    assert (await idle.client.get("/jobs?state=failed", headers=headers)).json() == {"jobs": [], "next_cursor": None}
    for id in made:
        await idle.client.delete(f"/jobs/{id}", headers=headers)
    for bad in ("cursor=x", "limit=0", "state=lost"):
        assert (await idle.client.get(f"/jobs?{bad}", headers=headers)).status_code == 400


async def test_tenants_and_scopes(idle: Running) -> None:
    job = await submitted(idle, model="idle-lm")
    path = f"/jobs/{job['id']}"
    stranger = await idle.key("admin", tenant="strangers")
    assert (await idle.client.get("/jobs", headers=stranger)).json()["jobs"] == []
    for method, where in (("GET", path), ("DELETE", path), ("GET", f"{path}/events")):
        response = await idle.client.request(method, where, headers=stranger)
        assert (response.status_code, response.json()["code"]) == (404, "NOT_FOUND")
    reader, asker = await idle.key("read"), await idle.key("explain")
    assert (await idle.client.get(path, headers=reader)).status_code == 200
    assert (await idle.client.get(path, headers=asker)).status_code == 200  # who asked may follow
    assert (await idle.client.get("/jobs", headers=asker)).status_code == 403
    assert (await idle.client.delete(path, headers=reader)).status_code == 403
    assert (await idle.client.post("/explain", json=BODY, headers=ASYNC | reader)).status_code == 403
    assert (await idle.client.delete(path, headers=asker)).json()["state"] == "cancelled"
    for wrong in ("nothing", str(time_ordered())):
        for method in ("GET", "DELETE"):
            assert (await idle.client.request(method, f"/jobs/{wrong}")).status_code == 404


async def test_cancel_before_it_begins(idle: Running) -> None:
    job = await submitted(idle, model="idle-lm", fresh=True)
    for _ in range(2):
        cancelled = await idle.client.delete(f"/jobs/{job['id']}")
        assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    await idle.server.jobs.look("default", UUID(job["id"]))  # the entry in the queue finds nothing to do
    assert (await idle.client.get(f"/explanations/{job['id']}")).status_code == 404


async def test_cancel_stops_running_work_at_its_next_checkpoint(running: Running) -> None:
    opened = await hold(running)
    job = await submitted(running, fresh=True)
    device = running.server.explainer.runtime.device
    await until(lambda: device.waiting == 1)
    assert (await job_of(running, job["id"]))["state"] == "running"
    assert (await running.client.delete(f"/jobs/{job['id']}")).json()["state"] == "cancelled"
    await until(lambda: device.waiting == 0 and len(running.server.explainer.flights) == 0)
    opened.set()
    assert (await job_of(running, job["id"]))["explanation"] is None
    assert (await running.client.get(f"/explanations/{job['id']}")).status_code == 404
    finished = await ended(running, (await submitted(running))["id"])
    refused = await running.client.delete(f"/jobs/{finished['id']}")
    assert (refused.status_code, refused.json()["code"]) == (409, "CONFLICT")


async def test_another_process_notices_a_cancellation(idle: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_jobs, "BEAT_SECONDS", 0.05)
    opened = await hold(idle)
    job = await submitted(idle, model="idle-lm", fresh=True)
    elsewhere = Jobs(idle.server.explainer, problem_body)
    looking = asyncio.create_task(elsewhere.look("default", UUID(job["id"])))
    await is_running(idle, job["id"])
    await idle.client.delete(f"/jobs/{job['id']}")
    await asyncio.wait_for(looking, 60)
    opened.set()
    assert (await job_of(idle, job["id"]))["attempts"] == 1


async def test_a_job_waits_behind_requests(running: Running) -> None:
    opened = await hold(running)
    job = await submitted(running, fresh=True, control_factor=0.41)
    device = running.server.explainer.runtime.device
    await until(lambda: device.waiting == 1)
    request = asyncio.create_task(running.explain(control_factor=0.42))
    await until(lambda: device.waiting == 2)
    assert [ticket.priority.nice for ticket in device._queue] == [True, False]
    opened.set()
    answer = (await request).json()
    assert (await ended(running, job["id"]))["explanation"] > ""
    listed = (await running.client.get("/explanations?limit=2")).json()["explanations"]
    assert [entry["id"] for entry in listed] == [job["id"], answer["id"]]


async def test_past_the_deadline_a_request_is_a_job(start: Start, tiny_lm: Path, url: str) -> None:
    """Also where no worker runs; a repeated request finds the same job, and cancelling it stops the work."""
    async with start(database_url=url, deadline_seconds=0.2, worker=False) as running:
        await running.add(tiny_lm, "late-lm")
        opened = await hold(running)
        late = [(await running.explain(model="late-lm", fresh=True)).json()["job"] for _ in range(2)]
        assert late[0] == late[1]
        job = await job_of(running, late[0])
        assert (job["state"], job["attempts"], job["model"]) == ("running", 1, "late-lm")
        opened.set()
        done = await ended(running, late[0])
        assert (done["state"], done["explanation"]) == ("succeeded", late[0])

        opened = await hold(running)
        second = (await running.explain(model="late-lm", fresh=True)).json()["job"]
        assert (await running.client.delete(f"/jobs/{second}")).json()["state"] == "cancelled"
        await until(lambda: len(running.server.explainer.flights) == 0)
        assert running.server.explainer.runtime.device.waiting == 0
        opened.set()
        await running.client.delete("/models/late-lm")


async def test_a_server_that_ends_leaves_its_jobs_to_the_next(start: Start, tiny_lm: Path, url: str) -> None:
    async with start(database_url=url, deadline_seconds=0.2) as running:
        await running.add(tiny_lm, "left-lm")
        await hold(running)
        submitted_one = (await submitted(running, model="left-lm", fresh=True))["id"]
        await is_running(running, submitted_one)
        late = (await running.explain(model="left-lm", control_factor=0.77)).json()["job"]
    async with start(database_url=url) as running:
        states = [await ended(running, id) for id in (submitted_one, late)]
        assert [(job["state"], job["attempts"]) for job in states] == [("succeeded", 1)] * 2
        assert [job["explanation"] for job in states] == [submitted_one, late]
        await running.client.delete("/models/left-lm")


async def test_a_worker_ends_whenever_it_is_told_to(start: Start, url: str) -> None:
    """Also while it connects, and before it has begun to listen."""
    for thirtieths in range(6):
        async with asyncio.timeout(120), start(database_url=url):
            await asyncio.sleep(thirtieths / 30)


@asynccontextmanager
async def claimed(running: Running, **changes: Any) -> AsyncIterator[tuple[Jobs, UUID]]:
    """A queued job, and somebody who looks at it."""
    job = await submitted(running, model="idle-lm", fresh=True, **changes)
    yield Jobs(running.server.explainer, problem_body), UUID(job["id"])


async def test_what_the_server_fails_at_is_tried_again_three_times(
    idle: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    async def broken(*_: Any) -> UUID:
        calls.append(1)
        raise RuntimeError("a secret prompt")

    monkeypatch.setattr(app_jobs, "KINDS", {"explain": broken})
    async with claimed(idle) as (jobs, id):
        for attempt in (1, 2):
            with pytest.raises(Later) as later:
                await jobs.look("default", id)
            assert later.value.seconds == 2**attempt
            assert (await job_of(idle, str(id)))["state"] == "queued"
        await jobs.look("default", id)
        job = await job_of(idle, str(id))
        assert (job["state"], job["attempts"], job["error"]["code"]) == ("failed", 3, "INTERNAL")
        assert len(calls) == 3 and "secret" not in json.dumps(job)
        await jobs.look("default", id)
        assert len(calls) == 3


@pytest.mark.parametrize("error", [InvalidRequest("no", "/x"), Refusal("x")], ids=["request", "unmapped"])
async def test_only_what_the_server_fails_at_is_tried_again(
    idle: Running, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def refuse(*_: Any) -> UUID:
        raise error

    monkeypatch.setattr(app_jobs, "KINDS", {"explain": refuse})
    async with claimed(idle) as (jobs, id):
        if isinstance(error, InvalidRequest):
            await jobs.look("default", id)
            job = await job_of(idle, str(id))
            assert (job["state"], job["attempts"], job["error"]["errors"][0]["pointer"]) == ("failed", 1, "/x")
        else:
            with pytest.raises(Later):
                await jobs.look("default", id)


async def test_a_result_stored_by_a_worker_that_died_is_found(idle: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """It died between storing the explanation and saying so: nothing is computed again, even though it was fresh."""
    async with claimed(idle) as (jobs, id):
        database = idle.server.explainer.database
        async with database.transaction(tenant="default") as session:
            found = await rows.claim(session, id, stale=60, most=3)
        assert found is not None
        assert await app_jobs.answer_question(jobs.explainer, *found, lambda *_: None) == id
        with pytest.raises(Later):  # it may still be alive
            await jobs.look("default", id)
        monkeypatch.setattr(app_jobs, "STALE_SECONDS", 0.01)
        await asyncio.sleep(0.05)
        monkeypatch.setattr(app_jobs, "KINDS", {})
        await jobs.look("default", id)
        job = await job_of(idle, str(id))
        assert (job["state"], job["attempts"], job["explanation"]) == ("succeeded", 2, str(id))


async def test_three_workers_that_died_are_enough(idle: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_jobs, "STALE_SECONDS", 0.01)
    async with claimed(idle) as (jobs, id):
        for _ in range(3):
            async with idle.server.explainer.database.transaction(tenant="default") as session:
                assert await rows.claim(session, id, stale=0.01, most=3)
            await asyncio.sleep(0.05)
        await jobs.look("default", id)
        job = await job_of(idle, str(id))
        assert (job["state"], job["attempts"], job["error"]["code"]) == ("failed", 3, "WORKER_LOST")


async def test_a_job_of_a_removed_tenant_is_nothing_to_do(idle: Running) -> None:
    await idle.server.jobs.look("default", time_ordered())


# -- following ---------------------------------------------------------------------------------------------------------


def parsed(text: str) -> list[dict[str, Any]]:
    found = []
    for block in text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            found.append({"number": int(lines["id"]), "event": lines["event"], **json.loads(lines["data"])})
    return found


async def test_events_of_a_finished_job(running: Running) -> None:
    job = await ended(running, (await submitted(running, fresh=True))["id"])
    path = f"/jobs/{job['id']}/events"
    response = await running.client.get(path)
    assert response.headers["content-type"].startswith("text/event-stream")
    (last,) = parsed(response.text)
    assert (last["event"], last["state"], last["explanation"]) == ("end", "succeeded", job["id"])
    again = await running.client.get(path, headers={"Last-Event-ID": str(last["number"])})
    assert (again.status_code, again.content) == (204, b"")
    for older in (str(last["number"] - 1), "", "x", "-1", "9" * 30):
        assert len(parsed((await running.client.get(path, headers={"Last-Event-ID": older})).text)) == 1


async def test_events_of_a_job_under_way(data_dir: Path, models_dir: Path, running: Running) -> None:
    """Over a real connection: progress as it comes, and after a break only what is new."""
    settings = Settings(data_dir=data_dir, api_key=ADMIN_KEY, models_dir=models_dir, device="cpu", worker=False)
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    database = running.server.explainer.database
    id = time_ordered()
    async with database.transaction(tenant="default") as session:
        assert await rows.add(session, id=id, kind="explain", model="m", request={}, running=True, seconds=600)

    async def beat(done: int) -> None:
        async with database.transaction(tenant="default") as session:
            assert await rows.beat(session, id, 1, done, 4)

    with served(settings) as (address, _):
        async with httpx.AsyncClient(base_url=address, headers=headers, timeout=60) as client:
            async with client.stream("GET", f"/jobs/{id}/events") as response:
                blocks = response.aiter_text()
                first = parsed(await anext(blocks))[-1]
                assert (first["event"], first["state"], first["done"]) == ("progress", "running", 0)
                assert first["rate"] is first["eta_seconds"] is None
                await beat(2)
                second = parsed(await anext(blocks))[-1]
                assert (second["done"], second["total"]) == (2, 4) and second["number"] > first["number"]
                assert second["rate"] > 0 and second["eta_seconds"] > 0
            await beat(3)
            async with database.transaction(tenant="default") as session:
                assert await rows.succeed(session, id, 1, total=4, result=id)
            resumed = await client.get(f"/jobs/{id}/events", headers={"Last-Event-ID": str(second["number"])})
            (end,) = parsed(resumed.text)
            assert (end["event"], end["done"], end["state"]) == ("end", 4, "succeeded") and end["number"] > second[
                "number"
            ]


async def test_a_stream_ends_with_its_server(idle: Running) -> None:
    job = await submitted(idle, model="idle-lm")
    stopping = threading.Event()
    idle.app.state.stopping = stopping.is_set
    asked = asyncio.create_task(idle.client.get(f"/jobs/{job['id']}/events"))
    await asyncio.sleep(0.1)
    stopping.set()
    (event,) = parsed((await asyncio.wait_for(asked, 60)).text)
    assert event["event"] == "progress"
    await idle.client.delete(f"/jobs/{job['id']}")
