"""Jobs: how far they are, while one looks on; what came out; and how to cancel one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from time import monotonic
from typing import Annotated, Any

from fastapi import Query, Request
from pydantic_core import to_json
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute

from app.accepted import State, pace
from app.dependencies import Asker, Reader, ReaderOrAsker, ServerState
from app.explorer.pages import HEADERS, Page, page, swaps
from app.explorer.session import changing_page_router, moved, page_router
from app.jobs import FOLLOW_SECONDS, STORED, cancel_job, fetch_job, list_jobs
from app.refusals import NotFound
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
    "explain-shards": "a part of explaining stored inferences",
}
SILENT_LOOKS = int(15 / FOLLOW_SECONDS)
"""Looks without anything new between two comments that keep the connection open."""
MOST_SECONDS = 30.0
"""A stream ends after so long, and the browser asks for another: with a key that is still good, or in vain."""
END = b"event: end\ndata: {}\n\n"
SOON, LATER = b"retry: 1000\n\n", b"retry: 3000\n\n"
"""After how many milliseconds it asks again; later, where all is finished and only new jobs may come."""


def job_routes() -> list[BaseRoute]:
    keyed, changing = page_router(), changing_page_router()
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


async def events(
    request: Request, server: ServerState, caller: Reader, job: Annotated[str, Query(max_length=100)] = ""
) -> Response:
    """How far the newest jobs are, or a single one, as server-sent events, until all of them are finished.

    One stream for all, as browsers open but six connections. The event `end` is sent where nothing can follow; after
    any other end the browser asks again.
    """
    database = server.explainer.database
    if job:
        await fetch_job(database, caller.tenant, job)

    async def look() -> tuple[Job, ...]:
        if job:
            return (await fetch_job(database, caller.tenant, job),)
        return (await list_jobs(database, caller.tenant, limit=ROWS)).rows

    stopping = getattr(request.app.state, "stopping", lambda: False)
    stream = changes(look, stopping, END if job else LATER)
    headers = HEADERS | {"X-Accel-Buffering": "no"}
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


async def changes(
    look: Callable[[], Awaitable[tuple[Job, ...]]], stopping: Callable[[], bool], last: bytes
) -> AsyncIterator[bytes]:
    """What is new at each look; `last` is sent once all is finished."""
    seen: dict[str, int] = {}
    silent, until = 0, monotonic() + MOST_SECONDS
    yield SOON
    while monotonic() < until and not stopping():
        rows = await present(look)
        new = [row for row in rows or () if row.version > seen.get(str(row.id), 0)]
        for row in new:
            yield b"data: %s\n\n" % to_json(shown(row))
        seen |= {str(row.id): row.version for row in new}
        if rows is not None and all(row.finished for row in rows):
            yield last
            return
        silent = 0 if new else silent + 1
        if silent and silent % SILENT_LOOKS == 0:
            yield b": still here\n\n"
        await asyncio.sleep(FOLLOW_SECONDS)


async def present(look: Callable[[], Awaitable[tuple[Job, ...]]]) -> tuple[Job, ...] | None:
    """None while the database is away; nothing where the job has been removed."""
    try:
        return await look()
    except DatabaseUnavailable:
        return None
    except NotFound:
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
