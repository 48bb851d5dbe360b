"""Events as they happen: one line `data: {json}` and an empty line each, and nothing else in between.

Clients take any other line (comments, event names) for an error. What goes wrong before the first event is answered as
for any request; afterwards it is told as the last event.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

from fastapi import Request
from pydantic_core import from_json, to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.dependencies import while_connected
from app.errors import refusal_response
from app.refusals import Refusal
from explainers.errors import ExplainerError

log = logging.getLogger(__name__)

Json: TypeAlias = dict[str, Any]
Events: TypeAlias = AsyncGenerator[Json, None]


def streamed_as(data: str) -> Json:
    """The description of an answer in events, with the data of one; the schema is that of each event."""
    about = {"type": "string", "description": "JSON.", "examples": [data]}
    event = {"type": "object", "description": "An event.", "required": ["data"], "properties": {"data": about}}
    return {"text/event-stream": {"schema": event, "example": {"data": data}}}


async def event_stream(request: Request, events: Events, failure: Callable[[Json], Json]) -> Response:
    """The response, as soon as the first event is there; `failure` makes an event of an error's body."""

    return EventStream(request, await while_connected(request, first_of(events)), told(events, failure))


async def done_stream(request: Request, events: Events) -> Response:
    """The same for clients that wait for `data: [DONE]`, and split lines at other signs than \\n: all is ASCII.

    What goes wrong after the first event is told by the connection, which closes without that end.
    """
    return DoneStream(request, await while_connected(request, first_of(events)), events)


async def first_of(events: Events) -> Json:
    return await anext(events)


async def told(events: Events, failure: Callable[[Json], Json]) -> AsyncIterator[Json]:
    """The events, and last what went wrong."""
    async with aclosing(events):
        try:
            async for event in events:
                yield event
        except (ExplainerError, Refusal) as error:
            yield failure(from_json(bytes(refusal_response(error).body)))


class EventStream(Response):
    """A first event and those that follow; stops, and stops what makes them, when the client goes away."""

    media_type = "text/event-stream"

    def __init__(self, request: Request, first: Json, events: AsyncIterator[Json]) -> None:
        super().__init__(headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.request, self.first, self.events = request, first, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await while_connected(self.request, self._send(send))

    async def _send(self, send: Send) -> None:
        await send(part(self.first))
        async for event in self.events:
            await send(part(event))
        await send({"type": "http.response.body", "body": b""})


class DoneStream(EventStream):
    """Events in ASCII and a last line; see `done_stream`."""

    def __init__(self, request: Request, first: Json, events: Events) -> None:
        super().__init__(request, first, events)
        self.source = events

    async def _send(self, send: Send) -> None:
        async with aclosing(self.source) as events:
            await send(line(json.dumps(self.first, separators=(",", ":")).encode()))
            try:
                async for event in events:
                    await send(line(json.dumps(event, separators=(",", ":")).encode()))
            except (ExplainerError, Refusal) as error:
                log.warning("a stream has ended early: %s", type(error).__name__)
                return
            await send(line(b"[DONE]") | {"more_body": False})


def part(event: Json) -> dict[str, Any]:
    return line(to_json(event))


def line(data: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True}
