"""The outcome of every request with a key goes into the audit log."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.dependencies import Server, audit_entry
from storage.audit import LEFT, Entry


class AuditTrail:
    """Plain ASGI: the outcome of a change is written before its answer is sent, any other when it has been.

    Of a stream the status is known, and written, when it begins; what happens later is not told.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        outcome = Outcome(scope)

        async def send_audited(message: Message) -> None:
            if message["type"] == "http.response.start":
                outcome.known(message["status"], Headers(raw=message["headers"]).get("location"))
                if outcome.entry is not None and outcome.entry.kind == "change":
                    await outcome.write()
            await send(message)
            if message["type"] == "http.response.body":
                await outcome.write()

        try:
            await self.app(scope, receive, send_audited)
        except Exception as error:
            if outcome.status is None:
                outcome.known(LEFT if isinstance(error, ClientDisconnect) else 500, None)
            await outcome.write()
            raise


class Outcome:
    """What came of one request, written once; never, where nobody knows whose request it was."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.status: int | None = None
        self.entry: Entry | None = None

    def known(self, status: int, location: str | None) -> None:
        state: dict[str, Any] = self.scope.get("state", {})
        caller = state.get("caller")
        self.status = status
        if caller is not None:
            entry = state.get("audit_entry") or audit_entry(self.scope, caller)
            self.entry = entry if location is None else replace(entry, object={**entry.object, "made": location})

    async def write(self) -> None:
        entry, self.entry = self.entry, None
        if entry is not None and self.status is not None:
            server: Server = self.scope["app"].state.server
            await server.audit.conclude(self.scope["state"]["caller"].tenant, entry, self.status)
