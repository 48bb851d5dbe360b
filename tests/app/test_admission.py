"""Limits of keys: each refuses with its numbers and a header that is true, and lets in again; nothing else costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from app.admission import MINUTE, Gate, Limits, waiting
from app.costs import Cost, known
from app.forecasts import Rates
from app.refusals import LimitReached, QueueFull, TooLarge
from explainers.errors import InvalidRequest
from storage.database import Database
from storage.limits import Counters
from tests.app.conftest import PROMPT, TARGET, Running, Start, until
from tests.app.test_limits import hold

pytestmark = pytest.mark.anyio

CANARY = "canary-7f3e"
HALF = Cost(seconds=0.5)


def body(number: float, **changes: Any) -> dict[str, Any]:
    """A question like no other."""
    return {"model": "tiny-lm", "prompt": PROMPT, "target": TARGET, "control_factor": number, **changes}


async def asked(running: Running, headers: dict[str, str], number: float, **changes: Any) -> httpx.Response:
    return await running.client.post("/explain", json=body(number, **changes), headers=headers)


def assert_reached(response: httpx.Response, name: str, allowed: float) -> dict[str, Any]:
    """A 429 with numbers; the answer's `limit`."""
    told: dict[str, Any] = response.json()
    assert (response.status_code, told["code"]) == (429, "TOO_MANY_REQUESTS")
    limit: dict[str, Any] = told["limit"]
    assert (limit["name"], limit["allowed"]) == (name, allowed)
    assert int(response.headers["retry-after"]) == limit["retry_after"] >= 1
    return limit


async def later(running: Running, seconds: float) -> None:
    """As if so much time had passed for all that was counted."""
    async with running.server.explainer.database.transaction("default") as session:
        await session.execute(text("UPDATE limit_counters SET at = at - :seconds"), {"seconds": seconds})


# -- over HTTP ---------------------------------------------------------------------------------------------------------


async def test_requests_per_minute(running: Running) -> None:
    headers = await running.key("explain", requests_per_minute=2)
    assert [(await asked(running, headers, 0.2 + n / 100)).status_code for n in range(2)] == [200, 200]
    refused = await asked(running, headers, 0.3, target=f" {CANARY}")
    assert CANARY not in refused.text and PROMPT not in refused.text
    limit = assert_reached(refused, "requests", 2)
    assert (limit["used"], limit["asked"], limit["window_seconds"]) == (2, 1, 60)
    assert refused.headers["ratelimit-policy"] == '"requests";q=2;w=60'
    assert refused.headers["ratelimit"] == f'"requests";r=0;t={limit["retry_after"]}'
    assert (await asked(running, headers, 0.2)).status_code == 200  # stored: free
    assert (await asked(running, headers, 0.4, dry_run=True)).status_code == 200
    other = await running.key("explain", requests_per_minute=2)
    assert (await asked(running, other, 0.31)).status_code == 200
    await later(running, 2 * MINUTE)
    assert (await asked(running, headers, 0.3)).status_code == 200


async def test_what_is_refused_is_not_charged(running: Running) -> None:
    headers = await running.key("explain", requests_per_minute=1, seconds_per_minute=60)
    for wrong in ({"target": "x" * 5000}, {"model": "nothing"}, {"target": ""}, {"method": "ablation", "samples": 0}):
        assert (await asked(running, headers, 0.5, **wrong)).status_code in (400, 404)
    assert (await asked(running, headers, 0.5)).status_code == 200
    assert (await asked(running, headers, 0.51)).status_code == 429
    for _ in range(3):  # nor is what was refused for the limit's sake
        assert (await asked(running, headers, 0.51)).json()["limit"]["used"] == 1


async def test_device_seconds_per_minute(running: Running) -> None:
    headers = await running.key("explain", seconds_per_minute=0.001)
    for number in range(20):  # what nothing like it was timed for is paid afterwards
        answer = await asked(running, headers, 0.6 + number / 1000)
        if answer.status_code != 200:
            break
    told = answer.json()
    assert (answer.status_code, told["limit"]["name"]) in ((413, "seconds_per_minute"), (429, "seconds"))
    roomy = await running.key("explain", seconds_per_minute=60)
    assert (await asked(running, roomy, 0.7)).status_code == 200


async def test_one_request_may_be_too_large(running: Running) -> None:
    assert (await asked(running, await running.key("explain"), 0.8)).status_code == 200  # now such work is timed
    headers = await running.key("explain", request_seconds=1e-6)
    refused = await asked(running, headers, 0.81, target=" Oslo")
    assert (refused.status_code, refused.json()["code"]) == (413, "PAYLOAD_TOO_LARGE")
    limit = refused.json()["limit"]
    assert (limit["name"], limit["allowed"], limit["retry_after"]) == ("request_seconds", 1e-6, None)
    assert limit["asked"] > 0 and "retry-after" not in refused.headers
    assert "respond-async" in refused.json()["detail"] and PROMPT not in refused.text
    job = await running.client.post("/explain", json=body(0.82), headers=headers | {"Prefer": "respond-async"})
    assert job.status_code == 202
    stored = await asked(running, headers, 0.8)
    assert stored.status_code == 200


async def test_the_servers_own_limits(start: Start, tiny_lm: Path) -> None:
    """Of keys that have none; 0 lets a key do as it likes."""
    async with start(requests_per_minute=1, job_seconds=1e-9, request_seconds=0) as limited:
        await limited.add(tiny_lm, "limited-lm")
        headers, free = await limited.key("explain"), await limited.key("explain", requests_per_minute=0)
        of = {"model": "limited-lm"}
        assert [(await asked(limited, headers, 0.1 + n / 100, **of)).status_code for n in range(2)] == [200, 429]
        assert [(await asked(limited, free, 0.2 + n / 100, **of)).status_code for n in range(2)] == [200, 200]
        prefer = free | {"Prefer": "respond-async"}
        job = await limited.client.post("/explain", json=body(0.3, **of), headers=prefer)
        assert (job.status_code, job.json()["limit"]["name"]) == (413, "job_seconds")
        admin = await limited.key("admin", requests_per_minute=1)
        for path in ("/keys", "/models", "/jobs", "/explanations"):  # nobody is locked out
            for _ in range(3):
                assert (await limited.client.get(path, headers=admin)).status_code == 200, path
        await limited.client.delete("/models/limited-lm")


async def test_jobs_are_charged_when_they_are_asked_for(running: Running) -> None:
    headers = await running.key("explain", requests_per_minute=1) | {"Prefer": "respond-async"}
    assert (await asked(running, headers, 0.91)).status_code == 202
    assert_reached(await asked(running, headers, 0.92), "requests", 1)


async def test_places(start: Start, tiny_lm: Path) -> None:
    async with start() as running:
        await running.add(tiny_lm, "placed-lm")
        headers, of = await running.key("explain", concurrency=2), {"model": "placed-lm"}
        opened = await hold(running)
        tasks = [asyncio.create_task(asked(running, headers, 0.1 + n / 100, **of)) for n in range(2)]
        await until(lambda: running.server.explainer.runtime.device.waiting == 2)
        limit = assert_reached(await asked(running, headers, 0.2, **of), "concurrency", 2)
        assert (limit["used"], limit["window_seconds"]) == (2, None)
        tasks.append(asyncio.create_task(asked(running, headers, 0.1, **of)))  # the same as the first: no new work
        await until(lambda: running.server.explainer.flights.waiters == 3)
        opened.set()
        assert [(await task).status_code for task in tasks] == [200, 200, 200]
        assert (await asked(running, headers, 0.2, **of)).status_code == 200
        await running.client.delete("/models/placed-lm")


async def test_two_servers_hold_one_limit(start: Start, tiny_lm: Path) -> None:
    async with start() as one, start() as two:
        await one.add(tiny_lm, "both-lm")
        headers = await one.key("explain", requests_per_minute=5)
        answers = await asyncio.gather(
            *(asked([one, two][n % 2], headers, 0.1 + n / 1000, model="both-lm") for n in range(24))
        )
        statuses = [answer.status_code for answer in answers]
        assert (statuses.count(200), statuses.count(429)) == (5, 19)
        await one.client.delete("/models/both-lm")


async def test_completions_pay_for_what_they_wrote(running: Running) -> None:
    headers = await running.key("explain", seconds_per_minute=60, concurrency=1)
    of = {"model": "tiny-lm", "prompt": PROMPT}
    first = await running.client.post("/complete", json=of | {"maximum_tokens": 4}, headers=headers)
    assert first.status_code == 200
    async with running.server.explainer.database.transaction("default") as session:
        used = await session.scalar(text("SELECT max(current) FROM limit_counters WHERE name LIKE 'seconds/%/60000/%'"))
    assert 0 < used < 60_000
    expected = of | {"completion_expected": TARGET}
    assert (await running.client.post("/evaluate", json=expected, headers=headers)).status_code == 200
    small = await running.key("explain", request_seconds=1e-9)
    for path, asked_for in (("/complete", of | {"maximum_tokens": 8}), ("/evaluate", expected)):
        refused = await running.client.post(path, json=asked_for, headers=small)
        assert (refused.status_code, refused.json()["limit"]["name"]) == (413, "request_seconds"), path
    streamed = await running.client.post("/complete", json=of | {"stream": True}, headers=small)
    assert streamed.status_code == 413
    chat = {"model": "tiny-lm", "messages": [{"role": "user", "content": "Hello"}], "maximum_tokens": 4}
    assert (await running.client.post("/chat/completions", json=chat, headers=small)).status_code == 413
    seekr = {"model": "tiny-lm", "prompt": PROMPT, "max_tokens": 4}
    assert (await running.client.post("/v1/inference/completions", json=seekr, headers=small)).status_code == 413


async def test_contexts_have_a_cost(running: Running) -> None:
    of = {
        "model": "tiny-lm",
        "context": "Anna lives in Oslo. Ben lives in Rome.",
        "query": "Anna?",
        "response": " Oslo.",
    }
    small, path = await running.key("explain", request_seconds=1e-9), "/v1/explainability/context-attributor"
    refused = await running.client.post(path, json=of, headers=small)
    assert (refused.status_code, refused.json()["limit"]["name"]) == (413, "request_seconds")
    assert (await running.client.post(path, json=of)).status_code == 200
    assert (await running.client.post(path, json=of, headers=small)).status_code == 200  # stored


async def test_a_dry_run_tells_the_cost(running: Running) -> None:
    told = (await asked(running, await running.key("explain"), 0.99, dry_run=True)).json()
    cost = told["cost"]
    assert (cost["chunks"], cost["forwards"], cost["bytes"]) == (told["chunks"], told["forwards"], told["bytes"])
    assert cost["tokens"] == told["prompt_tokens"] + told["target_tokens"] and cost["seconds"] >= 0
    assert cost["measured"] == (told["seconds"] is not None) or cost["measured"]


# -- the gate alone ----------------------------------------------------------------------------------------------------


@pytest.fixture
async def gates(database: Database, tenant: str) -> AsyncIterator[Any]:
    def gate(key: str = "k", **limits: Any) -> Gate:
        return Gate(Limits(**limits), database, tenant, key, lambda: 7)

    yield gate


async def used(gate: Gate, name: str) -> int:
    assert gate.database is not None
    counters = Counters(gate.database, gate.tenant)
    found: int = (await counters.get_sliding_window(gate.rates()[name].key_for(gate.key), MINUTE))[2]
    return found


async def test_what_was_predicted_is_put_right(gates: Any) -> None:
    gate = gates(seconds_per_minute=10, requests_per_minute=10)
    async with gate.admitted(known(HALF)) as charge:
        assert await used(gate, "seconds") == 500
        charge.seconds = 0.1
    assert (await used(gate, "seconds"), await used(gate, "requests")) == (100, 1)
    async with gate.admitted(known(HALF)) as charge:
        charge.seconds = 20.0
    assert await used(gate, "seconds") == 20_100
    with pytest.raises(LimitReached) as reached:
        async with gate.admitted(known(HALF)):
            raise AssertionError
    assert reached.value.limit.used == pytest.approx(20.1) and await used(gate, "requests") == 2


@pytest.mark.parametrize("error", [QueueFull(1), InvalidRequest("no")], ids=["queue", "request"])
async def test_refused_work_costs_nothing(gates: Any, error: Exception) -> None:
    gate = gates(seconds_per_minute=10, requests_per_minute=10)
    with pytest.raises(type(error)):
        async with gate.admitted(known(HALF)):
            raise error
    assert (await used(gate, "seconds"), await used(gate, "requests")) == (0, 0)


async def test_failed_work_costs_what_it_would_have(gates: Any) -> None:
    gate = gates(seconds_per_minute=10)
    with pytest.raises(ZeroDivisionError):
        async with gate.admitted(known(HALF)):
            raise ZeroDivisionError
    assert await used(gate, "seconds") == 500


async def test_all_limits_are_charged_or_none(gates: Any) -> None:
    gate = gates(requests_per_minute=10, seconds_per_minute=0.9)
    async with gate.admitted(known(HALF)):
        pass
    for _ in range(3):
        with pytest.raises(LimitReached):
            async with gate.admitted(known(HALF)):
                raise AssertionError
    assert await used(gate, "requests") == 1


@pytest.mark.parametrize("job", [False, True], ids=["request", "job"])
async def test_too_large_says_what_to_do(gates: Any, job: bool) -> None:
    cost = Cost(tokens=1000, chunks=30, forwards=40, bytes=10**6, seconds=7200.0)
    gate = gates(request_seconds=3600.0, job_seconds=7000.0 if job else 86400.0)
    with pytest.raises(TooLarge, match=r"7,200 seconds of the device .1,000 tokens, 30 pieces, 40 passes") as large:
        async with gate.admitted(known(cost), job=job):
            raise AssertionError
    assert ("respond-async" in str(large.value)) != job
    with pytest.raises(TooLarge, match="a minute of this key may take 60"):
        async with gates(seconds_per_minute=60).admitted(known(cost)):
            raise AssertionError


async def test_without_limits_nothing_is_sent() -> None:
    """Not even to a database that is away, and no cost is counted."""

    async def estimating() -> Any:
        raise AssertionError

    away = Database.connect("postgresql://nobody@127.0.0.1:1/nothing")
    async with Gate(Limits(), away, "t", "k").admitted(estimating) as charge:
        assert charge.seconds == 0
    async with Gate(Limits(request_seconds=1.0), away, "t", "k").admitted(known(HALF)):
        pass
    await away.close()


@given(
    before=st.integers(0, 50),
    current=st.integers(0, 50),
    left=st.floats(0.01, 60),
    most=st.integers(1, 50),
    data=st.data(),
)
def test_retry_after_is_true(before: int, current: int, left: float, most: int, data: st.DataObject) -> None:
    """After the told time it fits, and a second less than told, if that is more than one, it does not."""
    asked_for = data.draw(st.integers(1, most))

    def fits(after: float) -> bool:
        if after < left:
            return int(before * (left - after) / MINUTE) + current + asked_for <= most
        return int(current * max(0.0, 1 - (after - left) / MINUTE)) + asked_for <= most

    if fits(0):
        return
    wait = waiting(before, current, left, most, asked_for)
    assert fits(wait + 1e-6)
    assert wait == 1 or not fits(wait - 1 - 1e-6) or wait - 1 < left <= wait


def test_limits_of_a_key_go_before_the_servers() -> None:
    server = Limits(3600.0, 86400.0, 10, None, 4)
    row = {"request_seconds": None, "requests_per_minute": 0, "seconds_per_minute": 1.5, "concurrency": None}
    own = server.of(type("Row", (), row))
    assert asdict(own) == asdict(Limits(3600.0, 86400.0, None, 1.5, 4))
    assert server.of(type("Row", (), row | {"request_seconds": 0})).job_seconds is None


async def test_keys_are_listed_with_their_limits(running: Running) -> None:
    await running.key("explain", requests_per_minute=3, request_seconds=0)
    found = (await running.client.get("/keys")).json()["keys"]
    assert found[-1]["limits"] == {
        "request_seconds": None,
        "job_seconds": None,
        "requests_per_minute": 3,
        "seconds_per_minute": None,
        "concurrency": None,
    }
    assert found[0]["limits"]["request_seconds"] == 3600 and "hash" not in str(found)
    assert (await running.client.get("/keys", headers=await running.key("read"))).status_code == 403
    other = await running.key("admin", tenant="keyless")
    assert len((await running.client.get("/keys", headers=other)).json()["keys"]) == 1


# -- work of the database ----------------------------------------------------------------------------------------------


async def test_queries_and_rows_are_requests(running: Running) -> None:
    """A mistake is none; reading what is stored neither."""
    headers = await running.key("read", "ingest", requests_per_minute=1)
    for path in ("/query", f"/api/v3/models/{UUID(int=0)}/inferences/query"):
        assert (await running.client.post(path, json={"select": 1}, headers=headers)).status_code in (400, 404)
    file = {"file": ("facts.jsonl", b'{"text": "Anna lives in Oslo."}', "application/jsonl")}
    sent = await running.client.post("/files", files=file, headers=headers)
    assert sent.status_code == 201
    for response in (
        await running.client.post("/files", files=file, headers=headers),
        await running.client.put("/v1/flow/files", files={"files": file["file"]}, headers=headers),
        await running.client.post("/query", json={"select": []}, headers=headers),
        await running.client.post("/api/v3/models/x/inferences", json=[], headers=headers),
    ):
        assert_reached(response, "requests", 1)
    assert (await running.client.get("/files", headers=headers)).status_code == 200
    assert (await running.client.delete(f"/files/{sent.json()['id']}", headers=headers)).status_code == 204


async def test_scopes_come_first(running: Running) -> None:
    """What a key may not do at all costs it nothing."""
    headers = await running.key("read", requests_per_minute=1)
    for _ in range(2):
        assert (await running.client.post("/files", files={"file": b"x"}, headers=headers)).status_code == 403


def test_work_that_was_never_timed_takes_no_longer_than_it_might() -> None:
    """A speed of other work of the same model is taken at its best: nothing is refused for what is not known."""
    rates = Rates()
    assert rates.expected("own", "alike", 100.0, fastest=50.0) == (2.0, False)
    rates.note("alike", 10.0, 10.0)
    rates.note("alike", 100.0, 1.0)
    assert rates.expected("own", "alike", 100.0, fastest=50.0) == (1.0, False)
    rates.note("own", 10.0, 1.0)
    assert rates.expected("own", "alike", 100.0, fastest=50.0) == (10.0, True)


async def test_a_refusal_for_another_keys_sake_is_not_shared(start: Start, tiny_lm: Path) -> None:
    """Both ask the same at once: the one whose key may not have it must not take the other's answer away."""
    async with start() as running:
        await running.add(tiny_lm, "shared-lm")
        warm = await running.explain(model="shared-lm")
        assert warm.status_code == 200
        small, roomy = await running.key("explain", request_seconds=1e-9), await running.key("explain")
        for number in range(5):
            answers = await asyncio.gather(
                *(asked(running, key, 0.3 + number / 100, model="shared-lm") for key in (small, roomy, small, roomy))
            )
            assert [answer.status_code for answer in answers][1::2] == [200, 200]
            assert {answer.status_code for answer in answers[::2]} <= {200, 413}
        await running.client.delete("/models/shared-lm")


async def test_a_client_that_goes_away_leaves_its_place(start: Start, tiny_lm: Path) -> None:
    async with start() as running:
        await running.add(tiny_lm, "left-lm")
        headers, of = await running.key("explain", concurrency=1), {"model": "left-lm"}
        stream = {"model": "left-lm", "prompt": PROMPT, "maximum_tokens": 4, "stream": True}
        for factor, path, content in ((0.2, "/explain", body(0.1, **of)), (0.3, "/complete", stream)):
            opened = await hold(running)
            task = asyncio.create_task(running.client.post(path, json=content, headers=headers))
            await until(lambda: running.server.explainer.runtime.device.waiting == 1)
            assert_reached(await asked(running, headers, factor, **of), "concurrency", 1)
            task.cancel()
            await asyncio.wait({task})
            await until(lambda: running.server.explainer.runtime.device.waiting == 0)
            opened.set()
            async with asyncio.timeout(60):
                while (await asked(running, headers, factor, **of)).status_code != 200:  # noqa: ASYNC110 - it has no event
                    await asyncio.sleep(0.02)
        await running.client.delete("/models/left-lm")
