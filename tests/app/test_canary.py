"""A word that every request carries in every field, every file and every header turns up nowhere it does not belong:
in no line of any log, no figure, no span, no error, no title of a process and no name of a file.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import tempfile
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import text as sql

from app import logs
from app.main import create_app
from app.settings import Settings
from app.tracing import Traces
from storage.database import Database
from tests.app.conftest import PROMPT, Running, empty
from tests.app.test_jobs import eventually
from tests.app.test_monitored import created, record
from tests.postgres import Server as Postgres

pytestmark = pytest.mark.anyio

CANARY = "canaryQ7x"
KEY = "canaryK9z-the-first-key"
"""Canary words of content and of the key; letters and digits, so that no quoting hides them."""
SECRETS = (CANARY, "canaryK9z")
ASYNC = {"Prefer": "respond-async"}
OWN_NAMES = re.compile(r"""no model '[^']*' is served here|unknown [a-z]+ '[^']*'|"pointer":"[^"]*\"""")
"""Names by which a client asked for a model or a word of the query language are told back, so that it finds them."""
NAMES = re.compile(r'(model|model_id|property|alias|partner_model_id|base|function)"\Z')
TRACE = "0af7651916cd43dd8448eb211c80319c"
LIBRARIES = (httpx.__name__, "httpcore", "asyncio")
"""Who speaks for the client of this test."""


@dataclass(frozen=True)
class Watched:
    """A server under watch."""

    running: Running
    spans: InMemorySpanExporter
    told: dict[str, io.StringIO]
    errors: list[str]
    statuses: list[int]
    output: list[str]

    async def ask(self, method: str, path: str, **what: Any) -> httpx.Response:
        headers = {
            "traceparent": f"00-{TRACE}-b7ad6b7169203331-01",
            "tracestate": f"vendor={CANARY}",
            "User-Agent": CANARY,
            "Referer": CANARY,
            "X-Forwarded-For": CANARY,
            "Cookie": f"Authorization={CANARY}",
            **what.pop("headers", {}),
        }
        response = await self.running.client.request(method, path, headers=headers, **what)
        self.statuses.append(response.status_code)
        if response.status_code >= 400:
            self.errors.append(response.text)
        return response


@contextmanager
def overheard() -> Iterator[dict[str, io.StringIO]]:
    """What handlers of ours write of everything at level debug, in both formats."""
    root, told = logging.getLogger(), {"json": io.StringIO(), "text": io.StringIO()}
    handlers = [logs.handler("json", told["json"]), logs.handler("text", told["text"])]
    for handler in handlers:
        handler.addFilter(lambda line: not line.name.startswith(LIBRARIES))
        root.addHandler(handler)
    own = logging.getLogger("app")
    before = root.level, own.level
    root.setLevel(logging.DEBUG)
    own.setLevel(logging.DEBUG)
    logs.take_over()
    try:
        yield told
    finally:
        for logger, level in zip((root, own), before, strict=True):
            logger.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)


async def ready(running: Running) -> bool:
    return (await running.client.get("/readyz")).status_code == 200


@pytest.fixture(scope="module")
async def watched(data_dir: Path, models_dir: Path, tiny_lm: Path) -> AsyncIterator[Watched]:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    settings = Settings(data_dir=data_dir, api_key=KEY, models_dir=models_dir, device="cpu", log_level="debug")
    app = create_app(settings, Traces(provider))
    headers = {"Authorization": f"Bearer {KEY}"}
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://whence", headers=headers)
    with overheard() as told:
        async with app.router.lifespan_context(app), client:
            running = Running(app, client)
            await empty(running)
            await running.add(tiny_lm)
            await eventually(lambda: ready(running))  # models that other tests have left behind are loaded too
            yield Watched(running, exporter, told, [], [], [])


@pytest.fixture(autouse=True)
def listening(watched: Watched, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """What is written to stdout and stderr past all logging, as by code that is not Python."""
    yield
    watched.output.extend(capfd.readouterr())


def poisoned(value: Any, name: str = "") -> Any:
    """The same JSON with the word in every string; names of things stay, as they are found by them."""
    match value:
        case dict():
            return {key: poisoned(entry, f'{key}"') for key, entry in value.items()}
        case list():
            return [poisoned(entry, name) for entry in value]
        case str() if not NAMES.search(name):
            return f"{value} {CANARY}"
        case _:
            return value


def operations(app: FastAPI) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in app.openapi()["paths"].items():
        for method, about in methods.items():
            yield method.upper(), re.sub(r"\{[^}]*\}", CANARY, path), about


async def test_every_route_with_the_word_in_every_field(watched: Watched) -> None:
    for method, path, about in operations(watched.running.app):
        query = {each["name"]: CANARY for each in about.get("parameters", []) if each["in"] == "query"}
        content = about.get("requestBody", {}).get("content", {})
        examples = [each["value"] for kind in content.values() for each in kind.get("examples", {}).values()]
        await watched.ask(method, path, params={**query, CANARY: CANARY})
        await watched.ask(method, path, headers={"Authorization": f"Bearer {CANARY}"})
        for example in examples:
            named = example | {"model": "tiny-lm"} if isinstance(example, dict) and "model" in example else example
            for body in (poisoned(named), {**named, CANARY: CANARY} if isinstance(named, dict) else named):
                await watched.ask(method, path, json=body)
            await watched.ask(method, path, content=json.dumps(named)[:-1] + CANARY, headers={"Content-Type": "text/x"})
        if content:
            declared = {"Content-Type": "application/json"}
            await watched.ask(method, path, content=f'{{"prompt": "{CANARY}', headers=declared)
            await watched.ask(method, path, json=[CANARY])
            await watched.ask(method, path, content=b'"' + CANARY.encode() * 1_000_000 + b'"', headers=declared)
            files = [("files", (CANARY, CANARY.encode() * 9)), ("inference_data", (CANARY, b"PAR1" + CANARY.encode()))]
            await watched.ask(method, path, files=files, data={"purpose": CANARY, CANARY: CANARY})
    assert {200, 400, 401, 404, 413, 415} <= set(watched.statuses)
    assert not [status for status in watched.statuses if status >= 500]


async def test_good_requests_streams_jobs_files_and_queries(watched: Watched) -> None:
    asked = {"model": "tiny-lm", "prompt": f"{CANARY}. {PROMPT}", "target": f" {CANARY}"}
    assert (await watched.ask("POST", "/explain", json=asked)).status_code == 200
    assert (await watched.ask("POST", "/explain", json=asked)).status_code == 200  # from the store
    said = {"model": "tiny-lm", "prompt": CANARY, "maximum_tokens": 3}
    for stream in (False, True):
        assert (await watched.ask("POST", "/complete", json={**said, "stream": stream})).status_code == 200
    job = (await watched.ask("POST", "/explain", json=asked | {"target": f" {CANARY}!"}, headers=ASYNC)).json()["id"]

    async def succeeded() -> bool:
        return bool((await watched.ask("GET", f"/jobs/{job}")).json()["state"] == "succeeded")

    await eventually(succeeded)
    for form in ("application/json", "text/html", "image/svg+xml"):
        response = await watched.ask("GET", f"/explanations/{job}", headers={"Accept": form})
        assert response.status_code == 200 and CANARY in response.text
    lines = f'{{"question":"{CANARY}?","answer":"{CANARY}"}}\n'.encode()
    for content, status in ((lines, 200), (lines + CANARY.encode(), 400)):
        file = ("file", (f"{CANARY}.jsonl", content))
        assert (await watched.ask("POST", "/files", files=[file], data={"purpose": "fine-tune"})).status_code in (
            status,
            201 if status == 200 else 400,
        )


async def test_records_and_queries(watched: Watched) -> None:
    id = await created(watched.running)
    sent = [record(CANARY), record(f"{CANARY}-2", income=CANARY), {"partner_inference_id": CANARY * 400}]
    path = f"/api/v3/models/{id}"
    assert (await watched.ask("POST", f"{path}/inferences", json=sent)).status_code == 207
    one = {"property": "partner_inference_id", "comparator": "eq", "value": CANARY}
    good = {"select": [{"property": "*"}], "filter": [one]}
    assert (await watched.ask("POST", f"{path}/inferences/query", json=good)).status_code == 200
    for bad in ({**one, "comparator": "like"}, {**one, "value": f"{CANARY}\0"}, {**one, "property": "income"}):
        await watched.ask("POST", f"{path}/inferences/query", json={**good, "filter": [bad]})
    await watched.ask("GET", f"{path}/inferences/{CANARY}")


async def test_defects_tell_nothing(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails inside, in the event loop, on the device and in the database, fails with the word in its text."""

    def broken(*_: Any, **__: Any) -> Any:
        warnings.warn(CANARY, stacklevel=1)
        logging.getLogger("transformers").warning("tokens %s", CANARY)
        logging.getLogger("some.library").debug("%r", KeyError(CANARY))
        raise RuntimeError(CANARY)

    async def refused(database: Database) -> None:
        async with database.transaction(tenant="default") as session:
            await session.execute(sql("SELECT CAST(:value AS integer)"), {"value": CANARY})

    asked = {"model": "tiny-lm", "prompt": CANARY, "target": " x"}
    with monkeypatch.context() as patched, warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = logs.tell_warning
        patched.setattr("app.explain.answer", broken)
        failed = await watched.ask("POST", "/explain", json=asked)
        patched.setattr("app.explain.explanations.find", broken)
        outside = await watched.ask("POST", "/explain", json=asked)
    with monkeypatch.context() as patched:
        patched.setattr("app.dialects.native.routes.list_explanations", lambda database, *_, **__: refused(database))
        database = await watched.ask("GET", "/explanations")
    assert (failed.status_code, outside.status_code) == (500, 500) and database.status_code in (400, 500)


async def test_the_word_is_nowhere(watched: Watched, postgres: Postgres) -> None:
    """Last in this file: looks at all that the requests above have left behind."""
    assert len(watched.statuses) > 200
    places = {f"log in {form}": stream.getvalue() for form, stream in watched.told.items()}
    assert places["log in json"].count('"event":"request"') >= len(watched.statuses)
    assert places["log in json"].count("RuntimeError") >= 2 and "words are left out" in places["log in json"]
    places["metrics"] = (await watched.running.client.get("/metrics")).text
    places["spans"] = "\n".join(map(shown, watched.spans.get_finished_spans()))
    places["errors"] = OWN_NAMES.sub("", "\n".join(watched.errors))
    places["readiness"] = (await watched.running.client.get("/readyz")).text
    places["log of Postgres"] = (postgres.data_dir / "postgres.log").read_text()
    places["titles"] = "\n".join(titles())
    places["names"] = "\n".join(names(postgres.data_dir, Path(tempfile.gettempdir())))
    places["output"] = "".join(watched.output)
    for place, text in places.items():
        for secret in SECRETS:
            found = [line for line in text.splitlines() if secret in line]
            assert not found, (place, found[:3])


async def test_spans_say_what_was_done(watched: Watched) -> None:
    spans = watched.spans.get_finished_spans()
    names = {span.name for span in spans}
    assert {"POST /explain", "GET /explanations/{id}", "answer", "device.wait", "device.work"} <= names
    assert any(name.startswith("database SELECT") for name in names)
    (answer, *_) = [span for span in spans if span.name == "answer"]
    assert dict(answer.attributes or {}).items() >= {"whence.kind": "completion", "whence.method": "atman"}.items()
    by_id = {span.context.span_id: span for span in spans if span.context is not None}
    works = [span for span in spans if span.name == "device.work" and span.parent is not None]
    assert {by_id[work.parent.span_id].name for work in works if work.parent is not None} >= {"answer"}
    assert int(TRACE, 16) in {span.context.trace_id for span in works if span.context is not None}
    statuses = {(span.attributes or {})["http.response.status_code"] for span in spans if span.name == "POST /explain"}
    assert statuses >= {200, 202, 400, 500}


def shown(span: ReadableSpan) -> str:
    return str(span.to_json(indent=None))


def titles() -> Iterator[str]:
    """Of all processes, with their environment where it can be read (this one's holds no key)."""
    for process in Path("/proc").glob("[0-9]*"):
        for part in ("cmdline", "comm"):
            try:
                yield (process / part).read_text(errors="replace").replace("\0", " ")
            except OSError:
                continue


def names(*folders: Path) -> Iterator[str]:
    """Three levels deep; folders that others remove meanwhile are passed over, as `Path.glob` would not do."""
    for top in folders:
        for folder, within, files in os.walk(top):
            yield from (f"{folder}/{name}" for name in (*within, *files))
            if len(Path(folder).relative_to(top).parts) == 2:
                within.clear()
