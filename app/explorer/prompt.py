"""The first page: a prompt, what the model says after it, and the heat map over the prompt's words."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from app.dependencies import ReaderOrAsker, ServerState
from app.explorer.pages import Page, page
from app.explorer.session import page_router
from app.models import list_loaded


def prompt_routes() -> list[BaseRoute]:
    keyed = page_router()
    keyed.get("/")(front)
    return keyed.routes


async def front(request: Request, server: ServerState, caller: ReaderOrAsker) -> Response:
    loaded = await list_loaded(server.explainer.database, server.explainer.runtime, caller.tenant)
    return page(request, "prompt.html", here="Prompt", models=[entry.registration.name for entry, _ in loaded])


PAGE = Page("Prompt", "/", ("read", "explain"), prompt_routes)
