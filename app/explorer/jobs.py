"""Jobs: how far they are, while one looks on; what came out; and how to cancel one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic_core import to_json
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute

from app.accepted import State, pace
from app.dependencies import Asker, Reader, ReaderOrAsker, ServerState
from app.explorer.pages import HEADERS, Page, page, swaps
from app.explorer.session import PageRoute, moved, page_router
from app.jobs import FOLLOW_SECONDS, STORED, cancel_job, fetch_job, list_jobs
from storage.audit import Kind
from storage.database import Database
from storage.errors import DatabaseUnavailable
from storage.jobs import Job

PATH = "/explorer/jobs"
ROWS = 50
STATES: tuple[State, ...] = ("queued", "running", "succeeded", "failed", "cancelled")
KINDS = {
    "explain": "explain a prompt",
    "context-attribution": "explain a context",
    "influence": "trace training data",
    "explain-inferences": "explain predictions",
    "influence-index": "build an influence index",
    "influence-shards": "a part of an influence index",
}
SILENT_LOOKS = int(15 / FOLLOW_SECONDS)
"""Looks without anything new between two comments that keep the connection open."""


class ChangingPage(PageRoute):
    """A page that changes something: written down in the audit log before it begins."""

    def kind(self, method: str) -> Kind:
        return "change"


def job_routes() -> list[BaseRoute]:
    keyed, changing = page_router(), APIRouter(route_class=ChangingPage, include_in_schema=False)
    keyed.get(PATH)(jobs)
    keyed.get(f"{PATH}/events")(events)
    keyed.get(f"{PATH}/{{id}}")(job)
    changing.post(f"{PATH}/{{id}}/cancel")(cancel)
    return [*keyed.routes, *changing.routes]


async def jobs(
    request: Request,
    server: ServerState,
    caller: Reader,
    state: State | None = None,
    cursor: Annotated[str, Query(max_length=100)] = "",
) -> Response:
    listed = await list_jobs(server.explainer.database, caller.tenant, state=state, cursor=cursor or None, limit=ROWS)
    about: dict[str, Any] = {
        "rows": [shown(row) for row in listed.rows],
        "next": listed.next_cursor,
        "state": state,
        "one": False,
    }
    template = "jobs_list.html" if swaps(request) else "jobs.html"
    return page(request, template, here="Jobs", states=STATES, live=not cursor, **about)


async def job(request: Request, server: ServerState, caller: ReaderOrAsker, id: str) -> Response:
    """One job: a row of the list, or a page of its own."""
    found = shown(await fetch_job(server.explainer.database, caller.tenant, id))
    if swaps(request):
        return page(request, "job.html", row=found)
    live = caller.may("read")
    return page(
        request, "jobs.html", here="Jobs", states=STATES, rows=[found], next=None, state=None, live=live, one=True
    )


async def cancel(request: Request, server: ServerState, caller: Asker, id: str) -> Response:
    """Cancels, and shows the job as it is then."""
    found = shown(await cancel_job(server.jobs, caller.tenant, id))
    return page(request, "job.html", row=found) if swaps(request) else moved(f"{PATH}/{found['id']}")


async def events(request: Request, server: ServerState, caller: Reader) -> Response:
    """How far the newest jobs are, as server-sent events, until all of them are finished.

    One stream for all, as browsers open but six connections.
    """
    stopping = getattr(request.app.state, "stopping", lambda: False)
    stream = changes(server.explainer.database, caller.tenant, stopping)
    headers = HEADERS | {"X-Accel-Buffering": "no"}
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


async def changes(database: Database, tenant: str, stopping: Callable[[], bool]) -> AsyncIterator[bytes]:
    seen: dict[str, int] = {}
    silent = 0
    while True:
        rows = await newest(database, tenant)
        new = [row for row in rows if row.version > seen.get(str(row.id), 0)]
        for row in new:
            yield b"data: %s\n\n" % to_json(shown(row))
        seen |= {str(row.id): row.version for row in new}
        if (rows and all(row.finished for row in rows)) or not (rows or seen) or stopping():
            yield b"event: end\ndata: {}\n\n"
            return
        silent = 0 if new else silent + 1
        if silent and silent % SILENT_LOOKS == 0:
            yield b": still here\n\n"
        await asyncio.sleep(FOLLOW_SECONDS)


async def newest(database: Database, tenant: str) -> tuple[Job, ...]:
    """None while the database is away."""
    with suppress(DatabaseUnavailable):
        return (await list_jobs(database, tenant, limit=ROWS)).rows
    return ()


def shown(job: Job) -> dict[str, Any]:
    """A job in words and numbers, as the page and the stream have it."""
    same = {name: getattr(job, name) for name in ("model", "state", "done", "total", "attempts", "finished")}
    result = str(job.result) if job.result is not None and job.kind in STORED else None
    error = (job.error or {}).get("detail", ""), (job.error or {}).get("code", "")
    times = {"created_at": job.created_at.isoformat(timespec="seconds")}
    words = {"kind": KINDS.get(job.kind, job.kind), "words": progress_words(job)}
    return same | times | words | {"id": str(job.id), "result": result, "error": error[0], "code": error[1]}


def progress_words(job: Job) -> str:
    """What the bar says, for who does not see it."""
    rate, left = pace(job)
    told = f"{job.done} of {job.total}"
    if rate is None or job.finished:
        return told
    return f"{told}, {rate:.3g} per second" + ("" if left is None else f", about {left:.0f} s left")


PAGE = Page("Jobs", PATH, ("read",), job_routes)
