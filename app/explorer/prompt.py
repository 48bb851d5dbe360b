"""The first page: a prompt, what the model says after it, and the heat map over the prompt's words."""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections.abc import Sequence
from typing import Any

from fastapi import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from app.dependencies import Asker, Caller, Reader, ReaderOrAsker, Server, ServerState, while_connected
from app.explain import Explained, Stored, fetch_explanation
from app.explorer.maps import Map, maps_of
from app.explorer.pages import Page, large_page, swaps
from app.explorer.question_form import (
    GRANULARITIES,
    Body,
    Form,
    bodies_of,
    compared,
    form_from,
    form_of,
    image_from,
    question_of,
)
from app.explorer.session import PageRequest, moved, page_router
from app.jobs import Order, explain_or_submit
from app.models import list_models
from app.refusals import Forbidden, NotFound
from explainers.errors import InvalidRequest
from explainers.loaders import PREDICTORS
from explainers.registry import METHODS

TITLE = "Prompt"


def prompt_routes() -> list[BaseRoute]:
    keyed = page_router()
    keyed.get("/")(front)
    keyed.post("/explorer/prompt")(ask)
    keyed.get("/explorer/prompt/{id}")(kept)
    return keyed.routes


async def front(request: Request, server: ServerState, caller: ReaderOrAsker, model: str = "") -> Response:
    """The empty form."""
    return await whole_page(request, server, caller, Form(model=model), [])


async def ask(request: PageRequest, server: ServerState, caller: Asker) -> Response:
    """Explains, and where that is asked for once more another way, to be compared.

    A key that may not read what is stored is answered here and now, for it could not open the address.
    """
    fields = await request.fields()
    form = form_from(fields)
    image = await image_from(fields) or await image_again(server, caller, form.pictured)
    bodies = await asyncio.to_thread(bodies_of, form, image)
    answers = [await while_connected(request, explained(server, caller, body)) for body in bodies]
    ids = [str(answer.id) for answer in answers]
    if caller.may("read") and not swaps(request):
        return moved(address_of(ids))
    found = await stored_maps(request, server, caller, ids)
    if not swaps(request):
        return await whole_page(request, server, caller, form, found)
    response = await large_page(request, "maps.html", maps=found, address=kept_at(caller, found))
    if caller.may("read"):
        response.headers["HX-Push-Url"] = address_of(ids)
    return response


async def kept(request: Request, server: ServerState, caller: Reader, id: str, other: str = "") -> Response:
    """A stored explanation, with the form as it was filled in; beside it another one."""
    found = await stored_maps(request, server, caller, [name for name in (id, other) if name])
    form, whole = await asyncio.to_thread(filled, found)
    return await whole_page(request, server, caller, form, found, partly=not whole)


def filled(found: Sequence[Map]) -> tuple[Form, bool]:
    """The form as it was filled in, and whether asking with it would ask the same."""
    first, bodies = found[0].stored, [map.body for map in found]
    told = [body for body in bodies if body is not None]
    if bodies[0] is None:
        return Form(model=first.model), False
    form = form_of(bodies[0], str(first.id))
    for other in told[1:]:
        form = compared(form, other)
    return form, bodies_of(form, image_of(first)) == bodies


async def explained(server: Server, caller: Caller, body: Body) -> Explained:
    order, explainer = Order(question_of(body)), server.explainer_for(caller)
    return await explain_or_submit(explainer, server.jobs, caller.tenant, order)


async def stored_maps(request: Request, server: Server, caller: Caller, ids: Sequence[str]) -> list[Map]:
    """Raises NotFound for what is no map, too."""
    found = []
    for id in ids:
        stored = await fetch_explanation(server.explainer.database, caller.tenant, id)
        if not isinstance(stored, Stored):
            raise NotFound("this explanation is no heat map")
        found.append(stored)
    return await asyncio.to_thread(maps_of, found, str(request.base_url))


async def image_again(server: Server, caller: Caller, id: str) -> bytes | None:
    """The image of a stored explanation; raises what reading that does."""
    if not id:
        return None
    if not caller.may("read"):
        raise Forbidden("this key lacks the scope: read")
    stored = await fetch_explanation(server.explainer.database, caller.tenant, id)
    image = image_of(stored) if isinstance(stored, Stored) else None
    if image is None:
        raise InvalidRequest("the explanation that is named holds no image", "/pictured")
    return image


def image_of(stored: Stored) -> bytes | None:
    items = stored.request["prompt"]
    return next((b64decode(item["data"]) for item in items if item["type"] == "image"), None)


async def whole_page(
    request: Request, server: Server, caller: Caller, form: Form, found: list[Map], *, partly: bool = False
) -> Response:
    models = await model_names(server, caller)
    choices: dict[str, Any] = {"models": models, "methods": sorted(METHODS), "granularities": GRANULARITIES}
    about = choices | {"form": form, "partly": partly, "maps": found, "address": kept_at(caller, found)}
    return await large_page(request, "prompt.html", here=TITLE, **about)


async def model_names(server: Server, caller: Caller) -> list[str]:
    """Of those that complete prompts and are not refused; none is waited for."""
    entries = await list_models(server.explainer.database, server.explainer.runtime, caller.tenant)
    return [
        entry.registration.name
        for entry in entries
        if entry.registration.kind not in PREDICTORS and entry.state != "refused"
    ]


def kept_at(caller: Caller, found: Sequence[Map]) -> str:
    """Where this caller can open them again; empty for one who cannot."""
    return address_of([str(each.stored.id) for each in found]) if caller.may("read") else ""


def address_of(ids: Sequence[str]) -> str:
    """Of the maps of these explanations: one, and perhaps another beside it."""
    return "/explorer/prompt/" + "?other=".join(ids)


PAGE = Page(TITLE, "/", ("read", "explain"), prompt_routes)
