"""Stored explanations, and every other route of the dialect."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import Header, Path, Query
from starlette.responses import Response
from starlette.routing import BaseRoute

from app.dependencies import JsonResponse, Reader, ServerState, keyed_router
from app.dialects.native.audit_routes import audit_routes
from app.dialects.native.export_routes import Meant, export_routes
from app.dialects.native.file_routes import file_routes
from app.dialects.native.health import health_routes
from app.dialects.native.index_routes import index_routes
from app.dialects.native.jobs import job_routes
from app.dialects.native.key_routes import key_routes
from app.dialects.native.model_routes import model_routes
from app.dialects.native.schemas import (
    ExplanationPage,
    ExplanationResponse,
    page_answer,
)
from app.errors import Responses, problems
from app.explain import fetch_explanation, list_explanations
from app.export import encoded, json_answer, page_of, picture_of, table_of
from app.heatmap import page_policy
from app.heatmap_svg import picture_policy
from app.media_types import HTML, JSON, SVG, preferred

CSV = "text/csv"
FORMS = (JSON, HTML, SVG, CSV)
"""In which a stored explanation can be had."""


Id = Annotated[str, Path(description="Id of a stored explanation.", examples=["0197c1c6-5f0a-7cc0-8a86-5f5ce4c0a1b2"])]
Accept = Annotated[
    str,
    Header(
        description="`application/json` (default); `text/html` or `image/svg+xml`: a heat map; `text/csv`: a table.",
        examples=["text/html"],
    ),
]
Cursor = Annotated[str | None, Query(description="`next_cursor` of the page before.", examples=[None])]
Limit = Annotated[int, Query(ge=1, le=500, description="Most entries of a page.", examples=[50])]


def native_routes() -> list[BaseRoute]:
    routes = (
        health_routes,
        export_routes,
        explanation_routes,
        job_routes,
        key_routes,
        file_routes,
        index_routes,
        model_routes,
        audit_routes,
    )
    return [route for made in routes for route in made()]


def explanation_routes() -> list[BaseRoute]:
    keyed = keyed_router("Stored explanations")
    drawn = {"schema": {"type": "string", "description": "A heat map, or the pairs with their bars."}}
    table = {"schema": {"type": "string", "description": "The scores as a table."}}
    page: Responses = {200: {"content": {HTML: drawn, SVG: drawn, CSV: table}}}
    keyed.get(
        "/explanations",
        summary="List stored explanations",
        response_model=ExplanationPage,
        responses=problems(400, 401, 403),
    )(explanations)
    keyed.get("/explanations/{id}", response_model=ExplanationResponse, responses=page | problems(401, 403, 404))(
        explanation
    )
    return keyed.routes


async def explanations(
    server: ServerState, caller: Reader, meant: Meant, cursor: Cursor = None, limit: Limit = 50
) -> Response:
    """What has been explained, newest first.

    Pages neither repeat nor skip entries when new ones are stored meanwhile. A search looks at 10,000 explanations, or
    16 MB of their words, for each page: this can be short, or empty, and there are more as long as it has a
    `next_cursor`.
    """
    page = await list_explanations(server.explainer.database, caller.tenant, meant, cursor=cursor, limit=limit)
    return JsonResponse(page_answer(page))


async def explanation(server: ServerState, caller: Reader, id: Id, accept: Accept = "application/json") -> Response:
    """A stored explanation: request, exact weights, scores and facts.

    With `Accept: text/html` a heat map that stands alone: no script, no resource from elsewhere. With
    `Accept: image/svg+xml` the same as a picture. With `Accept: text/csv` a table: one row for each target and part of
    the prompt, or for each training pair; a text that a spreadsheet would take for a formula begins with `'`.
    """
    stored = await fetch_explanation(server.explainer.database, caller.tenant, id)
    wanted, headers = preferred(accept, FORMS), {"Vary": "Accept"}
    if wanted == JSON:
        return JsonResponse(json_answer(stored), headers=headers)
    if wanted == CSV:
        return Response(encoded(await asyncio.to_thread(table_of, stored)), media_type=CSV, headers=headers)
    draw, policy = (page_of, page_policy) if wanted == HTML else (picture_of, picture_policy)
    headers["Content-Security-Policy"] = policy()
    return Response(await asyncio.to_thread(draw, stored), media_type=wanted, headers=headers)
