"""What happens to every request around its route: size limit, request id, security headers, one log line, last catch.

Plain ASGI: nothing is buffered, and streams pass through untouched.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import internal_error, refusal_response
from app.refusals import BodyTooLarge

access = logging.getLogger("app.access")

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
TRACE = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
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
    """Gives each request an id, safe headers and one line in the access log; catches what nobody caught.

    The line names the route's template, never the path, and holds no body, query, prompt or key.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await Passage(scope, send).run(self.app, receive)


class Passage:
    """One request on its way through."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope = scope
        self._send = send
        self.status: int | None = None
        self.started = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        self.id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        trace = TRACE.fullmatch(headers.get("traceparent", ""))
        self.trace = trace[1] if trace else None

    async def run(self, app: ASGIApp, receive: Receive) -> None:
        self.scope.setdefault("state", {})["request_id"] = self.id
        try:
            await app(self.scope, receive, self.send)
        except ClientDisconnect:
            self.status = 499  # nobody is left to read an answer
        except Exception as error:  # noqa: BLE001 - the last catch: a server's own log would print the error's text
            await self.fail(error, receive)
        finally:
            self.log()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self.id
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
        await self._send(message)

    async def fail(self, error: Exception, receive: Receive) -> None:
        response = internal_error(error)
        if self.status is None:
            await response(self.scope, receive, self.send)

    def log(self) -> None:
        line: dict[str, Any] = {
            "method": self.scope["method"],
            "route": route_template(self.scope),
            "status": self.status,
            "ms": round((time.perf_counter() - self.started) * 1000, 1),
            "request_id": self.id,
        }
        caller = self.scope["state"].get("caller")
        if caller is not None:
            line |= {"tenant": caller.tenant, "key": caller.key}
        if self.trace is not None:
            line["trace_id"] = self.trace
        access.info("%s", json.dumps(line, separators=(",", ":")))


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
