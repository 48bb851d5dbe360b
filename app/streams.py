"""Events as they happen: one line `data: {json}` and an empty line each, and nothing else in between.

Clients take any other line (comments, event names) for an error. What goes wrong before the first event is answered as
for any request; afterwards it is told as the last event.
"""

from __future__ import annotations

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

Json: TypeAlias = dict[str, Any]
Events: TypeAlias = AsyncGenerator[Json, None]


async def event_stream(request: Request, events: Events, failure: Callable[[Json], Json]) -> Response:
    """The response, as soon as the first event is there; `failure` makes an event of an error's body."""

    async def first_event() -> Json:
        return await anext(events)

    first = await while_connected(request, first_event())
    return EventStream(request, first, told(events, failure))


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


def part(event: Json) -> dict[str, Any]:
    return {"type": "http.response.body", "body": b"data: " + to_json(event) + b"\n\n", "more_body": True}
