"""What has been explained: listed, searched, opened, taken away."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Query, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute

from app.dependencies import Caller, Reader, Server, ServerState
from app.explain import Stored, StoredOther, fetch_explanation, list_explanations
from app.explorer.maps import map_of
from app.explorer.pages import HEADERS, Page, large_page, page, swaps
from app.explorer.session import page_router
from app.export import FORMS, Form, export, one
from app.heatmap import page_policy, shown_facts
from app.models import list_models
from app.pairs_page import pair_rows, reason_of
from explainers.errors import InvalidRequest
from storage.explanations import Filter

PATH = "/explorer/stored"
ROWS = 50
KINDS = {"completion": "of a prompt", "context-attribution": "of a context", "influence": "of training data"}
"""In words; other kinds are called by their names."""
LIMIT = 1000

Asked = Annotated[str, Query(max_length=LIMIT)]


def stored_routes() -> list[BaseRoute]:
    keyed = page_router()
    keyed.get(PATH)(found)
    keyed.get(f"{PATH}/export")(exported)
    keyed.get(f"{PATH}/{{id}}")(opened)
    keyed.get(f"{PATH}/{{id}}/export")(taken)
    return keyed.routes


async def found(
    request: Request,
    server: ServerState,
    caller: Reader,
    search: Asked = "",
    model: Asked = "",
    kind: Asked = "",
    since: Asked = "",
    until: Asked = "",
    cursor: Asked = "",
) -> Response:
    """A page of the list, newest first; empty fields are no conditions."""
    asked = {"search": search, "model": model, "kind": kind, "since": since, "until": until}
    database, meant = server.explainer.database, filter_from(asked)
    listed = await list_explanations(database, caller.tenant, meant, cursor=cursor or None, limit=ROWS)
    query = urlencode({name: value for name, value in asked.items() if value})
    about: dict[str, Any] = {
        "rows": listed.rows,
        "query": query,
        "kinds": KINDS,
        "searched": bool(meant.sought),
        "later": cursor,
    }
    about["next"] = None if listed.next_cursor is None else urlencode({"cursor": listed.next_cursor})
    if swaps(request):
        return page(request, "stored_list.html", **about)
    models = await model_names(server, caller)
    return page(request, "stored.html", here="Stored", asked=asked, models=models, forms=FORMS, **about)


async def model_names(server: Server, caller: Caller) -> list[str]:
    entries = await list_models(server.explainer.database, server.explainer.runtime, caller.tenant)
    return [entry.registration.name for entry in entries]


def filter_from(asked: dict[str, str]) -> Filter:
    """What the form asks for; of the last day all is meant. Raises InvalidRequest for what is no date."""
    since, after = day(asked, "since"), day(asked, "until", later=1)
    return Filter(asked["model"] or None, asked["kind"] or None, since, after, asked["search"])


def day(asked: dict[str, str], name: str, *, later: int = 0) -> datetime | None:
    """The beginning of a day, or of one that many days later; the calendar ends with the year 9999."""
    if not asked[name]:
        return None
    try:
        return datetime.combine(date.fromisoformat(asked[name]) + timedelta(days=later), time(), UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest("must be a date before 9999-12-31, as 2026-01-31", f"/{name}") from None


async def exported(
    server: ServerState,
    caller: Reader,
    format: Form = "json",
    search: Asked = "",
    model: Asked = "",
    kind: Asked = "",
    since: Asked = "",
    until: Asked = "",
) -> Response:
    """All that the form asks for, as one file."""
    meant = filter_from({"search": search, "model": model, "kind": kind, "since": since, "until": until})
    chosen = FORMS[format]
    content = export(server.explainer.database, caller.tenant, meant, format)
    headers = HEADERS | attached(f"explanations.{chosen.ending}")
    return StreamingResponse(content, media_type=chosen.media_type, headers=headers)


async def opened(request: Request, server: ServerState, caller: Reader, id: str) -> Response:
    """One explanation: its map or its training pairs, its facts, and how to have it elsewhere."""
    stored = await fetch_explanation(server.explainer.database, caller.tenant, id)
    about = await asyncio.to_thread(drawn, stored, str(request.base_url))
    return await large_page(request, "stored_one.html", here="Stored", stored=stored, forms=FORMS, **about)


def drawn(stored: Stored | StoredOther, base: str) -> dict[str, Any]:
    """What the template shows of either kind; `base` is the address of this server."""
    if isinstance(stored, StoredOther):
        facts = {"id": stored.id, "model": stored.model, "weights": stored.model_digest}
        facts |= {"method": stored.content["method"], "stored": stored.created_at.isoformat(timespec="seconds")}
        rows = pair_rows(stored.content)
        return {"facts": facts, "pairs": rows, "reason": None if rows else reason_of(stored.content), "maps": None}
    address = f"/explorer/prompt/{stored.id}"
    return {"facts": shown_facts(stored), "maps": [map_of(stored, base)], "address": address}


async def taken(server: ServerState, caller: Reader, id: str, format: Form = "json") -> Response:
    """One explanation as a file that stands alone."""
    stored = await fetch_explanation(server.explainer.database, caller.tenant, id)
    content, media_type = await asyncio.to_thread(one, stored, format)
    headers = HEADERS | attached(f"{stored.id}.{format}") | {"Content-Security-Policy": page_policy()}
    return Response(content, media_type=media_type, headers=headers)


def attached(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"'}


PAGE = Page("Stored", PATH, ("read",), stored_routes)
