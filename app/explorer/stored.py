"""What has been explained: listed, searched, opened, taken away."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Depends, Query, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute

from app.dependencies import Reader, ServerState
from app.explain import Stored, StoredOther, fetch_explanation, list_explanations
from app.explorer.maps import map_of
from app.explorer.pages import HEADERS, Page, large_page, page, swaps
from app.explorer.session import page_router
from app.export import FORMS, Form, export, one
from app.heatmap import page_policy, shown_facts
from app.models import list_names
from app.pairs_page import pair_rows, reason_of
from explainers.errors import InvalidRequest
from storage.explanations import Filter

PATH = "/explorer/stored"
ROWS = 50
KINDS = {"completion": "of a prompt", "context-attribution": "of a context", "influence": "of training data"}
"""In words; other kinds are called by their names."""
LIMIT = 1000

Text = Annotated[str, Query(max_length=LIMIT)]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the form asks for, as it was typed; empty fields are no conditions."""

    search: str
    model: str
    kind: str
    since: str
    until: str

    @property
    def filter(self) -> Filter:
        """Of the last day all is meant. Raises InvalidRequest for what is no date."""
        since, until = day(self.since, "since"), day(self.until, "until", later=1)
        return Filter(self.model or None, self.kind or None, since, until, self.search)

    @property
    def query(self) -> str:
        return urlencode({name: value for name, value in asdict(self).items() if value})


async def asked_for(search: Text = "", model: Text = "", kind: Text = "", since: Text = "", until: Text = "") -> Asked:
    return Asked(search, model, kind, since, until)


AskedFor = Annotated[Asked, Depends(asked_for)]


def stored_routes() -> list[BaseRoute]:
    keyed = page_router()
    keyed.get(PATH)(found)
    keyed.get(f"{PATH}/export")(exported)
    keyed.get(f"{PATH}/{{id}}")(opened)
    keyed.get(f"{PATH}/{{id}}/export")(taken)
    return keyed.routes


async def found(request: Request, server: ServerState, caller: Reader, asked: AskedFor, cursor: Text = "") -> Response:
    """A page of the list, newest first."""
    database, meant = server.explainer.database, asked.filter
    listed = await list_explanations(database, caller.tenant, meant, cursor=cursor or None, limit=ROWS)
    about: dict[str, Any] = {
        "rows": listed.rows,
        "query": asked.query,
        "kinds": KINDS,
        "forms": FORMS,
        "searched": bool(meant.sought),
        "later": cursor,
    }
    about["next"] = None if listed.next_cursor is None else urlencode({"cursor": listed.next_cursor})
    if swaps(request):
        return page(request, "stored_list.html", **about)
    models = await list_names(database, caller.tenant)
    return page(request, "stored.html", here="Stored", asked=asked, models=models, **about)


def day(text: str, name: str, *, later: int = 0) -> datetime | None:
    """The beginning of a day, or of one that many days later; the calendar ends with the year 9999."""
    if not text:
        return None
    try:
        return datetime.combine(date.fromisoformat(text) + timedelta(days=later), time(), UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest("must be a date before 9999-12-31, as 2026-01-31", f"/{name}") from None


async def exported(server: ServerState, caller: Reader, asked: AskedFor, format: Form = "json") -> Response:
    """All that the form asks for, as one file."""
    chosen = FORMS[format]
    content = export(server.explainer.database, caller.tenant, asked.filter, format)
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
