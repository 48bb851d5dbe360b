"""One error body for everything that can go wrong, and nothing of the caller's in it."""

from __future__ import annotations

import errno
import json
import logging
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from app.admission import Limits
from app.dependencies import Caller
from app.dialects.seekr.router import FlowRoute
from app.errors import ANSWERS, add_error_answers, pointer, problem_body, refusal_response
from app.main import create_app
from app.refusals import QueueFull, Refusal, StillRunning, UnknownModel
from app.settings import Settings
from explainers.errors import ContextLengthExceeded
from storage.errors import OutOfSpace
from tests.app.conftest import Running, Start

pytestmark = pytest.mark.anyio

MEMBERS = ["type", "title", "status", "detail", "error", "code", "message"]
SECRET = "PROMPT-TEXT-THAT-MUST-NOT-LEAK"
INFINITE = b'{"model": "m", "prompt": "", "target": "x", "control_factor": 1e999}'
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("method", "path", "content", "headers", "status", "code"),
    [
        ("GET", "/nothing", b"", {}, 404, "NOT_FOUND"),
        ("GET", "/explain/", b"", {}, 404, "NOT_FOUND"),
        ("GET", "/explain", b"", {}, 405, "METHOD_NOT_ALLOWED"),
        ("DELETE", "/version", b"", {}, 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/explain", b"", JSON, 400, "INVALID_REQUEST"),
        ("POST", "/explain", b"{", JSON, 400, "INVALID_REQUEST"),
        ("POST", "/explain", b"[]", JSON, 400, "INVALID_REQUEST"),
        ("POST", "/explain", b"null", JSON, 400, "INVALID_REQUEST"),
        ("POST", "/explain", b'{"control_factor": NaN}', JSON, 400, "INVALID_REQUEST"),
        ("POST", "/explain", b'{"control_factor": -Infinity}', JSON, 400, "INVALID_REQUEST"),
        ("POST", "/explain", INFINITE, JSON, 400, "INVALID_REQUEST"),
        ("POST", "/explain", b'{"model":"\xff"}', JSON, 400, "INVALID_REQUEST"),
        ("POST", "/explain", b'{"model":"\\ud800"}', JSON, 400, "INVALID_REQUEST"),
        ("POST", "/explain", b"[" * 100_000, JSON, 400, "INVALID_REQUEST"),
        ("POST", "/explain", b"9" * 10_000, JSON, 400, "INVALID_REQUEST"),
        ("POST", "/explain", b"{}", {"Content-Type": "text/plain"}, 415, "UNSUPPORTED_MEDIA_TYPE"),
        ("POST", "/explain", b"{}", FORM, 415, "UNSUPPORTED_MEDIA_TYPE"),
        ("POST", "/explain", b"{}", {}, 415, "UNSUPPORTED_MEDIA_TYPE"),
        ("POST", "/explain?nice=perhaps", b"{}", JSON, 400, "INVALID_REQUEST"),
        ("GET", "/explanations?limit=0", b"", {}, 400, "INVALID_REQUEST"),
        ("GET", "/explanations?cursor=x", b"", {}, 400, "INVALID_REQUEST"),
        ("GET", "/explanations?model=%00", b"", {}, 400, "INVALID_REQUEST"),
        ("GET", "/explanations?since=yesterday", b"", {}, 400, "INVALID_REQUEST"),
        ("GET", "/explanations/nothing", b"", {}, 404, "NOT_FOUND"),
        ("GET", "/explanations/00000000-0000-0000-0000-000000000000", b"", {}, 404, "NOT_FOUND"),
        ("GET", "/models/nothing", b"", {}, 404, "UNKNOWN_MODEL"),
    ],
)  # fmt: skip
async def test_one_body(
    running: Running, method: str, path: str, content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    response = await running.client.request(method, path, content=content, headers=headers)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.headers["content-type"] == "application/problem+json"
    assert "\n" not in response.text
    assert [member for member in response.json() if member != "errors"] == MEMBERS
    body = response.json()
    assert body["status"] == status and body["title"] == body["error"] and body["detail"] == body["message"]


async def test_json_suffix_and_parameters_are_json(running: Running) -> None:
    body = json.dumps({"model": "tiny-lm", "prompt": "Oslo", "target": " is"}).encode()
    for media_type in ("application/json; charset=utf-8", "application/vnd.api+json", "APPLICATION/JSON"):
        response = await running.client.post("/explain", content=body, headers={"Content-Type": media_type})
        assert response.status_code == 200


async def test_bodies_never_echo(running: Running) -> None:
    bad = [
        {"model": "tiny-lm", "prompt": SECRET, "target": [SECRET]},
        {"model": "tiny-lm", "prompt": [{"type": SECRET, "data": ""}], "target": "x"},
        {"model": "tiny-lm", "prompt": [{"type": "text", "data": {SECRET: SECRET}}], "target": "x"},
        {"model": "tiny-lm", "prompt": SECRET, "target": SECRET, "control_factor": SECRET},
        {"model": "tiny-lm", "prompt": SECRET, "target": SECRET, "postprocessing": SECRET},
        {"model": "tiny-lm", "prompt": SECRET, "target": SECRET, "method": SECRET},
        {"model": "tiny-lm", "prompt": SECRET * 100, "target": SECRET},
        {"model": "tiny-lm", "prompt": [{"type": "image", "data": SECRET}], "target": "x"},
    ]
    for body in bad:
        response = await running.client.post("/explain", json=body)
        assert response.status_code == 400 and SECRET not in response.text
    broken = await running.client.post("/explain", content=f'{{"prompt": "{SECRET}'.encode(), headers=JSON)
    assert broken.status_code == 400 and SECRET not in broken.text


@pytest.mark.parametrize(
    ("changes", "pointers"),
    [
        ({"prompt": [{"type": "text"}] * 1000}, ["/prompt/0/data"]),
        ({"prompt": [{"type": "token_ids", "data": [""] * 1000}]}, ["/prompt/0/data/0"]),
        ({"prompt": [{"type": "text", "data": "", "controls": [{"factor": 1}] * 1000}]}, ["start", "length"]),
        ({"target": 1, "normalize": 1, "fresh": 1}, ["/target", "/normalize", "/fresh"]),
    ],
)
async def test_arrays_are_read_to_their_first_mistake(
    running: Running, changes: dict[str, Any], pointers: list[str]
) -> None:
    """A body of the largest size can hold millions of mistakes: each would cost a kilobyte and its time."""
    response = await running.explain(**changes)
    found = [problem["pointer"] for problem in response.json()["errors"]]
    assert response.status_code == 400 and len(found) == len(pointers)
    assert all(pointer.endswith(end) for pointer, end in zip(found, pointers, strict=True))


async def test_details_name_the_field(running: Running) -> None:
    problem = (await running.explain(target="")).json()
    wrong = "must be a non-empty string, unless `generate` is sent"
    assert problem["detail"] == f"/target {wrong}"
    assert problem["errors"] == [{"pointer": "/target", "message": wrong}]
    assert (await running.explain(model="\0")).json()["detail"] == "no model of that name is served here"


async def test_defects_tell_nothing(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    async with start() as running:

        async def broken() -> None:
            raise RuntimeError(SECRET)

        running.app.add_api_route("/broken", broken)
        with caplog.at_level(logging.INFO):
            response = await running.client.get("/broken")
    assert (response.status_code, response.json()["code"]) == (500, "INTERNAL")
    assert SECRET not in response.text and SECRET not in caplog.text
    assert "RuntimeError" in caplog.text and "test_errors.py" in caplog.text


async def test_logs_hold_no_content(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        await running.explain(prompt=f"{SECRET} is in", target=f" {SECRET}")
        await running.client.get(f"/explanations?model={SECRET}")
        await running.client.get(f"/{SECRET}")
        await running.client.get("/models", headers={"Authorization": f"Bearer {SECRET}"})
    own = [record.getMessage() for record in caplog.records if not record.name.startswith("httpx")]
    assert own and not any(SECRET in line for line in own)
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "app.access"]
    assert [line["route"] for line in lines] == ["/explain", "/explanations", None, "/models"]
    assert [line["status"] for line in lines] == [200, 200, 404, 401]
    assert lines[0]["tenant"] == "default" and "key" in lines[0] and "tenant" not in lines[3]


async def test_request_ids_and_security_headers(running: Running) -> None:
    response = await running.client.get("/healthz", headers={"X-Request-ID": "mine-1"})
    assert response.headers["x-request-id"] == "mine-1"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "content-encoding" not in response.headers
    other = await running.client.get("/healthz", headers={"X-Request-ID": "not one; at all"})
    assert len(other.headers["x-request-id"]) == 32


def test_classes_are_found_along_their_bases() -> None:
    class Narrower(ContextLengthExceeded):
        pass

    assert json.loads(refusal_response(Narrower("x")).body)["code"] == "CONTEXT_LENGTH_EXCEEDED"
    assert json.loads(refusal_response(UnknownModel("m")).body)["code"] == "UNKNOWN_MODEL"


def test_every_refusal_has_an_answer() -> None:
    def below(kind: type[Exception]) -> list[type[Exception]]:
        return [kind, *(found for child in kind.__subclasses__() for found in below(child))]

    for kind in below(Refusal)[1:]:
        assert any(base in ANSWERS for base in kind.__mro__), kind


def test_members_and_headers_of_special_answers() -> None:
    full = refusal_response(QueueFull(7))
    assert (full.status_code, full.headers["retry-after"]) == (503, "7")
    running = refusal_response(StillRunning("an-id"))
    assert (running.status_code, json.loads(running.body)["job"]) == (409, "an-id")


def test_pointers_leave_out_union_members() -> None:
    body = {"prompt": [{"type": "text", "a/b~c": [1]}]}
    assert pointer(("body", "prompt", 0, "text", "a/b~c", 0), body) == "/prompt/0/a~1b~0c/0"
    assert pointer(("body", "prompt", 0, "text", "data"), body) == "/prompt/0/data"
    assert pointer(("query", "limit"), None) == "/limit"
    assert pointer(("body",), None) == ""


def test_no_framework_pages() -> None:
    app: FastAPI = create_app(Settings())
    assert app.docs_url is None and app.redoc_url is None and app.openapi_url is None


async def raised(error: Exception, *, flow: bool = False) -> httpx.Response:
    """The answer of a route that raises it; of Seekr's wire, to a caller whose key is known."""
    app = FastAPI() if flow else create_app(Settings())
    add_error_answers(app)

    async def fail() -> None:
        raise error

    app.router.add_api_route("/fail", fail, route_class_override=FlowRoute if flow else None)

    async def known(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"] = {"caller": Caller("t", "k", "n", frozenset(), Limits())}
        await app(scope, receive, send)

    transport = httpx.ASGITransport(known if flow else app)
    async with httpx.AsyncClient(transport=transport, base_url="http://whence") as client:
        return await client.get("/fail")


@pytest.mark.parametrize(
    ("error", "status", "code", "after"),
    [
        (OSError(errno.ENOSPC, SECRET, SECRET), 507, "OUT_OF_SPACE", "10"),
        (OSError(errno.EDQUOT, SECRET), 507, "OUT_OF_SPACE", "10"),
        (OutOfSpace("the disk of the database is full"), 507, "OUT_OF_SPACE", "10"),
        (MemoryError(SECRET), 503, "UNAVAILABLE", "1"),
        (RuntimeError("can't start new thread"), 503, "UNAVAILABLE", "1"),
        (RuntimeError(SECRET), 500, "INTERNAL", None),
        (OSError(errno.EACCES, SECRET, SECRET), 500, "INTERNAL", None),
    ],
    ids=[
        "full disk",
        "used quota",
        "full disk of the database",
        "no memory",
        "no thread",
        "another",
        "another of the system",
    ],
)
async def test_what_the_machine_has_run_out_of(error: Exception, status: int, code: str, after: str | None) -> None:
    answer = await raised(error)
    assert (answer.status_code, answer.json()["code"], answer.headers.get("retry-after")) == (status, code, after)
    assert SECRET not in answer.text
    if status in (503, 507):  # whose body Seekr's client would drop
        flow = await raised(error, flow=True)
        assert (flow.status_code, flow.json()["code"], flow.headers["retry-after"]) == (429, code, after)
    told = problem_body(error)  # and of a job, which is tried again
    assert (told["status"], told["code"]) == (status, code)
