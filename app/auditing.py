"""The outcome of every request with a key goes into the audit log before its answer does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.dependencies import Server, audit_entry
from storage.audit import LEFT


class AuditTrail:
    """Plain ASGI: the status is known when the answer starts; of a stream, what happens later is not told."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_audited(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start" and not started:
                started = True
                await conclude(scope, message["status"], Headers(raw=message["headers"]).get("location"))
            await send(message)

        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            await self.app(scope, receive, send_audited)
        except Exception as error:
            if not started:
                await conclude(scope, LEFT if isinstance(error, ClientDisconnect) else 500, None)
            raise


async def conclude(scope: Scope, status: int, location: str | None) -> None:
    """Writes the outcome, unless nobody knows whose request it was."""
    state: dict[str, Any] = scope.get("state", {})
    caller = state.get("caller")
    if caller is None:
        return
    made = {} if location is None else {"made": location}
    entry = state.get("audit_entry") or audit_entry(scope, caller)
    server: Server = scope["app"].state.server
    await server.audit.conclude(caller.tenant, replace(entry, object={**entry.object, **made}), status)
