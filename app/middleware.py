"""What happens to every request around its route: size limit, request id, security headers, one log line, last catch.

Plain ASGI: nothing is buffered, and streams pass through untouched.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from typing import Any

from opentelemetry.trace import Span, Status, StatusCode
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, reset_contextvars

from app.errors import internal_error, refusal_response
from app.logs import Line
from app.meters import Meters
from app.refusals import BodyTooLarge, ShuttingDown
from app.tracing import Traces, trace_id_of
from app.traffic import Entry, Traffic

access = logging.getLogger("app.access")

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
ALWAYS = frozenset({"/healthz", "/readyz", "/metrics"})
"""Answered until the very end."""
DRAIN_BYTES = 64 * 2**20
DRAIN_SECONDS = 10.0

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}
"""Set unless the route has its own."""


class Envelope:
    """Gives each request an id, safe headers, a span and one line in the access log; catches what nobody caught.

    The line names the route's template, never the path, and holds no body, query, prompt or key. Once the server has
    been told to end, new requests are refused here.
    """

    def __init__(self, app: ASGIApp, traffic: Traffic, meters: Meters, traces: Traces) -> None:
        self.app = app
        self.traffic, self.meters, self.traces = traffic, meters, traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        traceparent = Headers(scope=scope).get("traceparent", "")
        with self.traces.request(traceparent) as span:
            passage = Passage(scope, send, trace_id_of(span, traceparent))
            known = bind_contextvars(request_id=passage.id)
            try:
                await self.admit(passage, receive)
            finally:
                passage.tell(span)
                self.meters.answered(
                    passage.route,
                    scope["method"],
                    passage.status,
                    passage.seconds,
                    passage.scope["state"].get("problem"),
                )
                reset_contextvars(**known)

    async def admit(self, passage: Passage, receive: Receive) -> None:
        if self.traffic.stopping and passage.scope["path"] not in ALWAYS:
            await passage.refuse(receive)
            return
        with self.traffic.under_way() as entry:
            await passage.run(self.app, receive, entry)


class Passage:
    """One request on its way through."""

    def __init__(self, scope: Scope, send: Send, trace: str | None) -> None:
        self.scope = scope
        self._send = send
        self.status: int | None = None
        self.started = time.perf_counter()
        given = Headers(scope=scope).get("x-request-id", "")
        self.id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        self.trace = trace
        self.scope.setdefault("state", {})["request_id"] = self.id

    @property
    def route(self) -> str | None:
        return route_template(self.scope)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    async def run(self, app: ASGIApp, receive: Receive, entry: Entry) -> None:
        try:
            await app(self.scope, receive, self.send)
        except ClientDisconnect:
            self.status = 499  # nobody is left to read an answer
        except asyncio.CancelledError:
            if not entry.refused or entry.task is None:
                raise
            entry.task.uncancel()
            await self.refuse(receive)
        except Exception as error:  # noqa: BLE001 - the last catch: a server's own log would print the error's text
            await self.fail(error, receive)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self.id
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            await asyncio.sleep(0)  # the loop sends what it was given before anything is written down about it

    async def fail(self, error: Exception, receive: Receive) -> None:
        response = internal_error(error)
        if self.status is None:
            await response(self.scope, receive, self.send)

    async def refuse(self, receive: Receive) -> None:
        """Says that the server ends, and ends the connection; an answer that has begun is cut off instead."""
        if self.status is None:
            response = refusal_response(ShuttingDown())
            response.headers["Connection"] = "close"
            await response(self.scope, receive, self.send)

    def tell(self, span: Span) -> None:
        """The line of the log, and what the span says."""
        line: dict[str, Any] = {
            "method": self.scope["method"],
            "route": self.route,
            "status": self.status,
            "ms": round(self.seconds * 1000, 1),
            "request_id": self.id,
        }
        caller = self.scope["state"].get("caller")
        if caller is not None:
            line |= {"tenant": caller.tenant, "key": caller.key}
        if self.trace is not None:
            line["trace_id"] = self.trace
        if "problem" in self.scope["state"]:
            line["code"] = self.scope["state"]["problem"]
        access.info(Line(line))
        if span.is_recording():
            describe(span, line)


def describe(span: Span, line: dict[str, Any]) -> None:
    span.update_name(f"{line['method']} {line['route'] or ''}".strip())
    names = {"method": "http.request.method", "route": "http.route", "status": "http.response.status_code"}
    names |= {"code": "error.type", "request_id": "whence.request_id"}
    span.set_attributes({name: line[key] for key, name in names.items() if line.get(key) is not None})
    if (line["status"] or 500) >= 500:
        span.set_status(Status(StatusCode.ERROR))


def route_template(scope: Scope) -> str | None:
    """`/explanations/{id}`, not the path that was asked for; None for an unknown path."""
    route = scope.get("route")
    return getattr(route, "path", None)


class BodyLimit:
    """Refuses bodies above `limit` bytes with 413, announced or streamed; those with files above `uploads`.

    What the client still sends is read and thrown away first (up to a bound): many clients read no answer before they
    have sent everything, and would see a broken connection instead of the 413.
    """

    def __init__(self, app: ASGIApp, limit: int, uploads: int) -> None:
        self.app = app
        self.limit = limit
        self.uploads = uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        multipart = headers.get("content-type", "").lower().startswith("multipart/form-data")
        limit = self.uploads if multipart else self.limit
        announced = headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > limit:
            if "100-continue" not in headers.get("expect", "").lower() and int(announced) <= DRAIN_BYTES:
                await drain(receive)
            await refusal_response(self.refusal(limit))(scope, receive, send)
            return
        await self.app(scope, self.counted(receive, limit), send)

    def counted(self, receive: Receive, limit: int) -> Receive:
        """`receive`, which raises once more bytes came than the limit; the error table turns that into the 413."""
        read = 0

        async def receive_counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > limit:
                if message.get("more_body"):
                    await drain(receive)
                raise self.refusal(limit)
            return message

        return receive_counted

    def refusal(self, limit: int) -> BodyTooLarge:
        return BodyTooLarge(f"the body is larger than the {limit} bytes this server reads")


async def drain(receive: Receive) -> None:
    """Reads and forgets the rest of a body, within bounds of size and time."""
    read, more = 0, True
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while more and read <= DRAIN_BYTES:
                message = await receive()
                read += len(message.get("body", b""))
                more = message["type"] == "http.request" and message.get("more_body", False)
    except TimeoutError:
        return
