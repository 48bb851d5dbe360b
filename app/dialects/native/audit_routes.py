"""The audit log of a tenant, for its admins."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import Query
from pydantic import BaseModel, Field
from starlette.responses import Response
from starlette.routing import BaseRoute

from app.dependencies import Admin, JsonResponse, ServerState, keyed_router
from app.errors import problems
from app.wire import Moment
from storage.audit import BEGUN, Kind, Listed, Outcome

Since = Annotated[
    Moment | None,
    Query(description="Only answered at or after this time (without zone: UTC).", examples=["2026-01-31T12:00:00Z"]),
]
OfKey = Annotated[
    UUID | None, Query(description="Only with the key of this id.", examples=["0197c1c6-5f0a-7cc0-8a86-5f5ce4c0a1b2"])
]
OfRoute = Annotated[
    str | None, Query(description="Only of this route, as the entries have it.", examples=["/models/{name}"])
]
OfOutcome = Annotated[Outcome | None, Query(description="Only with this outcome.", examples=["refused"])]
Cursor = Annotated[str | None, Query(description="`next_cursor` of the page before.", examples=[None])]
Limit = Annotated[int, Query(ge=1, le=500, description="Most entries of a page.", examples=[50])]


class AuditEntryResponse(BaseModel):
    """Who did what, and what came of it."""

    id: str = Field(description="Id of the entry.", examples=["0197c1c6-5f0a-7cc0-8a86-5f5ce4c0a1b2"])
    created_at: datetime = Field(
        description="When it was answered; of one without an answer, when it began.", examples=["2026-01-31T12:00:00Z"]
    )
    outcome: Outcome = Field(
        description="`done`, `refused` (4xx), `failed` (5xx), or `unanswered`: a change that is under way, or whose "
        "server or client ended before its answer.",
        examples=["done"],
    )
    status: int | None = Field(description="Status of the answer; null where there was none.", examples=[204])
    kind: Kind = Field(
        description="`change`, `computation`, `read`, or `command`: one of the operator, on the command line.",
        examples=["change"],
    )
    method: str = Field(description="HTTP method; `CLI` of a command.", examples=["DELETE"])
    route: str = Field(description="The route, or the command.", examples=["/models/{name}"])
    object: dict[str, str] = Field(
        description="What the path named, at most 256 characters each; `made`: the address of what was made. Never a "
        "query or a body.",
        examples=[{"name": "demo-lm"}],
    )
    key: str | None = Field(description="Id of the key.", examples=["0197c1c6-5f0a-7cc0-8a86-5f5ce4c0a1b2"])
    key_name: str | None = Field(description="Name of the key.", examples=["ci"])
    request_id: str | None = Field(
        description="As the answer's `X-Request-ID`, and as in the server's own log.", examples=["9f1c0c5e"]
    )


class AuditPage(BaseModel):
    entries: list[AuditEntryResponse] = Field(description="Newest first.")
    next_cursor: str | None = Field(
        description="Ask for the following page with it; null on the last one.", examples=[None]
    )


def audit_routes() -> list[BaseRoute]:
    keyed = keyed_router("Audit")
    keyed.get("/audit", summary="Read the audit log", response_model=AuditPage, responses=problems(400, 401, 403))(
        audit
    )
    return keyed.routes


async def audit(
    server: ServerState,
    caller: Admin,
    since: Since = None,
    key: OfKey = None,
    route: OfRoute = None,
    outcome: OfOutcome = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Response:
    """What was done with the keys of this tenant, newest first: each request once, with its outcome.

    `WHENCE_AUDIT` says what is kept. Pages neither repeat nor skip entries when new ones are added meanwhile.
    """
    filters: dict[str, Any] = {"since": since, "key": key, "route": route, "outcome": outcome}
    page = await server.audit.entries(caller.tenant, **filters, cursor=cursor, limit=limit)
    return JsonResponse({"entries": [entry_answer(row) for row in page.rows], "next_cursor": page.next_cursor})


def entry_answer(row: Listed) -> dict[str, Any]:
    same = ("created_at", "outcome", "kind", "method", "route", "object", "key_name", "request_id")
    about = {"id": str(row.id), "status": None if row.status == BEGUN else row.status}
    key = None if row.key_id is None else str(row.key_id)
    return about | {name: getattr(row, name) for name in same} | {"key": key}
