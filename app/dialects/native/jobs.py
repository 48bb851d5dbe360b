"""Jobs: list, get, follow and cancel them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

from fastapi import Header, Path, Query, Request
from pydantic import BaseModel, Field
from pydantic_core import to_json
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute

from app.accepted import JobResponse, State, job_answer
from app.dependencies import Asker, JsonResponse, Reader, ReaderOrAsker, ServerState, keyed_router
from app.errors import Responses, problems
from app.jobs import FOLLOW_SECONDS, cancel_job, fetch_job, follow, list_jobs
from storage.database import Database
from storage.jobs import Job

Id = Annotated[str, Path(description="Id of a job.", examples=["0197c1c6-5f0a-7cc0-8a86-5f5ce4c0a1b2"])]
OfState = Annotated[State | None, Query(description="Only in this state.", examples=["running"])]
Cursor = Annotated[str | None, Query(description="`next_cursor` of the page before.", examples=[None])]
Limit = Annotated[int, Query(ge=1, le=500, description="Most entries of a page.", examples=[50])]
LastEventId = Annotated[
    str | None,
    Header(description="Id of the last event that was read: only newer ones are sent.", examples=["3"]),
]

SILENT_LOOKS = int(15 / FOLLOW_SECONDS)
"""Looks without anything new between two comments that keep the connection open."""

EXAMPLE = {
    "id": "3",
    "event": "progress",
    "data": '{"state":"running","done":12,"total":48,"rate":6.0,"eta_seconds":6.0}',
}

EVENT = {
    "type": "object",
    "description": "One of the server-sent events.",
    "required": ["id", "event", "data"],
    "properties": {
        "id": {
            "type": "string",
            "pattern": "^[0-9]+$",
            "description": "Number of the job's version.",
            "examples": ["3"],
        },
        "event": {"enum": ["progress", "end"], "description": "`end`: nothing will follow.", "examples": ["progress"]},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": "#/components/schemas/JobResponse"},
            "description": "The job, as `GET /jobs/{id}` has it.",
            "examples": [EXAMPLE["data"]],
        },
    },
}

EVENTS: Responses = {
    200: {
        "description": "Server-sent events, the last one named `end`.",
        "content": {
            "text/event-stream": {
                "schema": EVENT,
                "example": EXAMPLE,
            }
        },
    },
    204: {"description": "The job is finished and `Last-Event-ID` was its last event: nothing will follow."},
}


class JobPage(BaseModel):
    jobs: list[JobResponse] = Field(description="Newest first.")
    next_cursor: str | None = Field(
        description="Ask for the following page with it; null on the last one.", examples=[None]
    )


def job_routes() -> list[BaseRoute]:
    keyed = keyed_router("Jobs")
    one = problems(401, 403, 404)
    keyed.get("/jobs", summary="List jobs", response_model=JobPage, responses=problems(400, 401, 403))(jobs)
    keyed.get("/jobs/{id}", summary="Get a job", response_model=JobResponse, responses=one)(job)
    keyed.delete("/jobs/{id}", summary="Cancel a job", response_model=JobResponse, responses=one | problems(409))(
        cancel
    )
    keyed.get("/jobs/{id}/events", summary="Follow a job", response_class=StreamingResponse, responses=EVENTS | one)(
        events
    )
    return keyed.routes


async def jobs(
    server: ServerState, caller: Reader, state: OfState = None, cursor: Cursor = None, limit: Limit = 50
) -> Response:
    """The jobs of the key's tenant, newest first.

    Parts of a job that other workers take over (`influence-shards`, `explain-shards`) are not listed: its `done` counts
    them. Pages neither repeat nor skip entries when new ones are added meanwhile.
    """
    page = await list_jobs(server.explainer.database, caller.tenant, state=state, cursor=cursor, limit=limit)
    return JsonResponse({"jobs": [job_answer(row) for row in page.rows], "next_cursor": page.next_cursor})


async def job(server: ServerState, caller: ReaderOrAsker, id: Id) -> Response:
    """One job: how far it is, and what came out.

    A job that has succeeded names its explanation, one that has failed says why in the words that the request would
    have been answered with.
    """
    return JsonResponse(job_answer(await fetch_job(server.explainer.database, caller.tenant, id)))


async def cancel(server: ServerState, caller: Asker, id: Id) -> Response:
    """Cancels a job that is queued or running.

    It is cancelled at once and will have no result; work on it stops at its next checkpoint. A job that has succeeded
    or failed stays as it is, and the answer is 409.
    """
    return JsonResponse(job_answer(await cancel_job(server.jobs, caller.tenant, id)))


async def events(
    request: Request, server: ServerState, caller: ReaderOrAsker, id: Id, last_event_id: LastEventId = None
) -> Response:
    """Progress as server-sent events: the job as it stands, then every change, and `end` when it is final.

    Each event holds the whole job, so a client that reconnects with `Last-Event-ID` misses nothing that matters: it
    gets the job as it stands if that is newer, and what follows. Where the job ended with that event, the answer is
    204, which tells browsers not to come again.
    """
    database = server.explainer.database
    found, seen = await fetch_job(database, caller.tenant, id), number(last_event_id)
    if found.finished and found.version <= seen:
        return Response(status_code=204)
    stopping = getattr(request.app.state, "stopping", lambda: False)
    stream = event_stream(database, found, seen, stopping)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


async def event_stream(database: Database, job: Job, seen: int, stopping: Callable[[], bool]) -> AsyncIterator[bytes]:
    silent = 0
    async for state in follow(database, job, seen, stopping):
        silent = silent + 1 if state is None else 0
        if state is not None:
            yield event(state.version, "end" if state.finished else "progress", job_answer(state))
        elif silent % SILENT_LOOKS == 0:
            yield b": still here\n\n"


def event(version: int, name: str, data: dict[str, Any]) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (version, name.encode(), to_json(data))


def number(last_event_id: str | None) -> int:
    """The version of the last event that a client has read; 0 for what is none of ours."""
    text = (last_event_id or "").strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0
