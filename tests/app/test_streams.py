"""Events as they happen, on a real connection."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import Response

from app.errors import add_error_answers
from app.streams import done_stream
from explainers.errors import OutOfMemory


async def events(whole: bool) -> AsyncGenerator[dict[str, Any], None]:
    yield {"text": "\u2028\u0085\ud83d\ude00 \u00fc"}
    if not whole:
        raise OutOfMemory("too large")
    yield {"text": "\n"}


async def never() -> AsyncGenerator[dict[str, Any], None]:
    raise OutOfMemory("too large")
    yield {}


@contextmanager
def served() -> Iterator[str]:
    app = FastAPI()
    add_error_answers(app)

    @app.get("/{kind}")
    async def route(request: Request, kind: str) -> Response:
        return await done_stream(request, never() if kind == "never" else events(kind == "whole"))

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


def test_a_stream_that_breaks_closes_the_connection_and_never_says_done() -> None:
    first = 'data: {"text":"\\u2028\\u0085\\ud83d\\ude00 \\u00fc"}\n\n'
    with served() as url:
        assert httpx.get(url + "/whole", timeout=60).text == first + 'data: {"text":"\\n"}\n\ndata: [DONE]\n\n'
        read: list[str] = []
        with httpx.stream("GET", url + "/broken", timeout=60) as response, pytest.raises(httpx.RemoteProtocolError):
            read.extend(response.iter_text())
        assert "".join(read) in ("", first)
        early = httpx.get(url + "/never", timeout=60)
        assert (early.status_code, early.json()["code"]) == (413, "PAYLOAD_TOO_LARGE")
