"""The keys of a tenant, and what limits them: read here, made by `whence keys`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import Response
from starlette.routing import BaseRoute

from app.dependencies import Admin, JsonResponse, Server, ServerState, keyed_router
from app.errors import problems
from storage import api_keys


class KeyLimits(BaseModel):
    """What holds for a key: its own limits, and the server's where it has none. Null: no limit."""

    request_seconds: float | None = Field(
        description="Predicted seconds of the device that one request may take.", examples=[3600]
    )
    job_seconds: float | None = Field(description="The same of a job.", examples=[86400])
    requests_per_minute: int | None = Field(description="Requests that compute.", examples=[60])
    seconds_per_minute: float | None = Field(description="Seconds of the device.", examples=[30])
    concurrency: int | None = Field(description="Requests under way at a time.", examples=[4])


class KeyAnswer(BaseModel):
    id: str = Field(description="Id of the key.", examples=["0197c1c6-5f0a-7cc0-8a86-5f5ce4c0a1b2"])
    name: str = Field(description="What it is for.", examples=["dashboard"])
    scopes: list[str] = Field(description="What it may do.", examples=[["read", "explain"]])
    limits: KeyLimits = Field(description="What holds for it.")
    created_at: datetime = Field(description="When it was made.", examples=["2026-01-31T12:00:00Z"])
    expires_at: datetime | None = Field(description="When it expires; null: never.", examples=[None])
    revoked_at: datetime | None = Field(description="When it was revoked, if it was.", examples=[None])


class KeyList(BaseModel):
    keys: list[KeyAnswer] = Field(description="Oldest first, with the revoked and expired ones.")


def key_routes() -> list[BaseRoute]:
    keyed = keyed_router("Keys")
    keyed.get("/keys", summary="List API keys", response_model=KeyList, responses=problems(401, 403))(keys)
    return keyed.routes


async def keys(server: ServerState, caller: Admin) -> Response:
    """The keys of the tenant with their limits, never their secrets. No limit holds for this route."""
    async with server.explainer.database.transaction(tenant=caller.tenant) as session:
        rows = await api_keys.list_all(session)
    return JsonResponse({"keys": [key_answer(server, row) for row in rows]})


def key_answer(server: Server, row: Any) -> dict[str, Any]:
    limits = server.limits.of(row)
    same = ("name", "scopes", "created_at", "expires_at", "revoked_at")
    held = {name: getattr(limits, name) for name in KeyLimits.model_fields}
    return {"id": str(row.id), "limits": held} | {name: getattr(row, name) for name in same}
