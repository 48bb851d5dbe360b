"""Figures for Prometheus: they count what happened, name nobody, and the files beside them ask for what there is."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from prometheus_client.parser import text_string_to_metric_families

from explainers.language_model import LanguageModel
from tests.app.conftest import PROMPT, Running, Start, ready, until
from tests.app.test_limits import hold

pytestmark = pytest.mark.anyio

DEPLOY = Path(__file__).parents[2] / "deploy"
BOUNDED = {"route", "method", "status", "code", "kind", "source", "outcome", "part", "state", "lane", "le", "version"}
OF_LIBRARIES = ("python_", "process_")
NAME = re.compile(r"\bwhence_[a-z_]+\b")

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(scope="module")
async def counted(start: Start, tiny_lm: Path) -> AsyncIterator[Running]:
    """An application whose counters begin at nought."""
    async with start(queue_limit=3) as running:
        await running.add(tiny_lm, "counted-lm")
        await ready(running)  # models that other tests have left behind are loaded by then
        yield running
        await running.client.delete("/models/counted-lm")


async def samples(running: Running) -> Samples:
    response = await running.client.get("/metrics")
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(response.text)
    return {(each.name, frozenset(each.labels.items())): each.value for family in families for each in family.samples}


def value(found: Samples, name: str, **labels: str) -> float:
    return found.get((name, frozenset(labels.items())), 0.0)


async def test_explanations_are_counted_by_where_they_come_from(counted: Running) -> None:
    before = await samples(counted)
    for _ in range(2):
        assert (await counted.explain(model="counted-lm", control_factor=0.3)).status_code == 200
    after = await samples(counted)

    def grown(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert grown("whence_answers_total", kind="completion", source="computed") == 1
    assert grown("whence_answers_total", kind="completion", source="stored") == 1
    assert grown("whence_explanation_seconds_count", method="atman") == 1
    assert grown("whence_forwards_total") >= 1 and grown("whence_tokens_total") > grown("whence_forwards_total")
    assert 0 < grown("whence_packed_rows_total") <= grown("whence_packed_room_total")
    assert grown("whence_device_work_seconds_count") == grown("whence_device_wait_seconds_count") == 1
    assert grown("whence_http_requests_total", route="/explain", method="POST", status="200") == 2
    assert grown("whence_http_request_seconds_count", route="/explain", method="POST") == 2


async def test_shared_computations_full_queues_and_bad_requests_are_counted(counted: Running) -> None:
    before = await samples(counted)
    opened = await hold(counted)
    same = [asyncio.create_task(counted.explain(model="counted-lm", control_factor=0.4)) for _ in range(2)]
    others = [asyncio.create_task(counted.explain(model="counted-lm", control_factor=0.5 + n / 10)) for n in range(2)]
    explainer = counted.server.explainer
    await until(lambda: explainer.runtime.device.waiting == 3 and explainer.flights.waiters == 4)
    held = await samples(counted)
    assert value(held, "whence_device_waiting") == value(held, "whence_device_waiting_limit") == 3
    assert value(held, "whence_device_busy") == 1 and value(held, "whence_device_oldest_seconds") > 0
    assert (value(held, "whence_flights"), value(held, "whence_flight_waiters")) == (3, 4)
    assert value(held, "whence_http_requests_in_progress") == 5
    assert (await counted.explain(model="counted-lm", control_factor=0.9)).status_code == 503
    assert (await counted.explain(model="counted-lm", target="")).status_code == 400
    opened.set()
    assert {answer.status_code for answer in await asyncio.gather(*same, *others)} == {200}
    after = await samples(counted)
    assert value(after, "whence_answers_total", kind="completion", source="shared") == 1
    for code in ("QUEUE_FULL", "INVALID_REQUEST"):
        grown = value(after, "whence_problems_total", code=code) - value(before, "whence_problems_total", code=code)
        assert grown == 1, code
    assert value(after, "whence_device_waiting") == value(after, "whence_device_busy") == 0


async def test_retries_for_want_of_memory_are_counted(counted: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [each for each in counted.server.explainer.runtime.loaded() if isinstance(each, LanguageModel)]
    before, plain, failures = await samples(counted), LanguageModel.logits, [0]
    calls = [0]

    def scarce(self: LanguageModel, inputs: Any, *arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:  # the first that packs several parts
            failures[0] += 1
            raise torch.OutOfMemoryError
        return plain(self, inputs, *arguments, **named)

    monkeypatch.setattr(LanguageModel, "logits", scarce)
    for model in models:
        monkeypatch.setattr(model.packed_rows, "most", None)
    asked = {"prompt": PROMPT, "prompt_granularity": {"type": "word"}}
    assert (await counted.explain(model="counted-lm", control_factor=0.7, **asked)).status_code == 200
    after = await samples(counted)
    name = "whence_out_of_memory_retries_total"
    assert value(after, name) - value(before, name) == failures[0] > 0


async def test_state_is_told(counted: Running) -> None:
    found = await samples(counted)
    assert value(found, "whence_ready", part="database") == value(found, "whence_ready", part="accepting") == 1
    assert value(found, "whence_models", state="loaded") >= 1 and value(found, "whence_model_bytes") > 0
    assert value(found, "whence_disk_free_bytes") < value(found, "whence_disk_bytes")
    limit = value(found, "whence_database_connections_limit")
    states = ("in_use", "idle", "kept")
    assert 0 <= sum(value(found, "whence_database_connections", state=state) for state in states) <= limit


async def test_jobs_are_told_by_the_database(start: Start, postgres: Any, tiny_lm: Path) -> None:
    with postgres.empty_database() as url:
        async with start(database_url=url, worker=False) as running:
            await running.add(tiny_lm)
            body = {"model": "tiny-lm", "prompt": PROMPT, "target": " Oslo"}
            asked = await running.client.post("/explain", json=body, headers={"Prefer": "respond-async"})
            assert asked.status_code == 202
            found = await samples(running)
            assert value(found, "whence_jobs", kind="explain", state="queued") == 1
            assert value(found, "whence_queue_due", lane="jobs") == 1
            assert value(found, "whence_oldest_queued_job_seconds") > 0
            assert ("whence_ready", frozenset({("part", "worker")})) not in found  # left to others


async def test_nobody_is_named_and_labels_are_bounded(counted: Running) -> None:
    headers = await counted.key("admin", tenant="metrics-canary-tenant")
    await counted.client.get("/canary-path", headers=headers)
    await counted.client.request("BREW", "/canary-path/2", headers=headers)
    page = (await counted.client.get("/metrics", headers=headers)).text
    assert "canary" not in page and "counted-lm" not in page and "BREW" not in page
    families = [each for each in text_string_to_metric_families(page) if not each.name.startswith(OF_LIBRARIES)]
    assert {label for family in families for each in family.samples for label in each.labels} <= BOUNDED
    assert all(family.documentation for family in families)


async def test_only_admins_may_look(counted: Running) -> None:
    for scopes in (["read"], ["explain", "ingest", "read"]):
        response = await counted.client.get("/metrics", headers=await counted.key(*scopes))
        assert response.status_code == 403
    assert (await counted.client.get("/metrics", headers={"Authorization": ""})).status_code == 401


def queries() -> list[str]:
    """All that the dashboard and the alert rules ask Prometheus for."""
    board = json.loads((DEPLOY / "grafana" / "whence.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    rules = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())
    return asked + [rule["expr"] for group in rules["groups"] for rule in group["rules"]]


async def test_the_dashboard_and_the_alerts_ask_for_what_there_is(counted: Running) -> None:
    known = {name for name, _ in await samples(counted)}
    described = {
        metric.name for family in counted.server.metrics.registry.collect() for metric in [family, *family.samples]
    }
    totals = {f"{name}_total" for name in described} | {f"{name}_bucket" for name in described}
    asked = {name for query in queries() for name in NAME.findall(query)}
    assert len(asked) >= 25
    assert sorted(asked - known - described - totals) == []


def test_the_alerts_cover_what_wakes_people() -> None:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())
    found = [rule for group in rules["groups"] for rule in group["rules"]]
    assert {"WhenceDown", "WhenceNotReady", "WhenceErrors", "WhenceQueueOld", "WhenceJobsOld"} <= {
        rule["alert"] for rule in found
    }
    for rule in found:
        assert rule["annotations"]["summary"] and rule["annotations"]["description"] and rule["labels"]["severity"]
    scrape = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (job,) = scrape["scrape_configs"]
    assert job["metrics_path"] == "/metrics" and job["authorization"]["credentials_file"]
