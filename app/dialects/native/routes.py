"""Stored explanations, and every other route of the dialect."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Header, Path, Query
from pydantic import BeforeValidator
from starlette.responses import Response
from starlette.routing import BaseRoute

from app.dependencies import JsonResponse, Reader, ServerState, keyed_router
from app.dialects.native.audit_routes import audit_routes
from app.dialects.native.file_routes import file_routes
from app.dialects.native.health import health_routes
from app.dialects.native.index_routes import index_routes
from app.dialects.native.jobs import job_routes
from app.dialects.native.key_routes import key_routes
from app.dialects.native.model_routes import model_routes
from app.dialects.native.schemas import (
    ExplanationPage,
    ExplanationResponse,
    explanation_answer,
    page_answer,
)
from app.errors import Responses, problems
from app.explain import Stored, fetch_explanation, list_explanations
from app.heatmap import heat_map, page_policy
from app.heatmap_svg import heat_map_svg, picture_policy
from app.media_types import HTML, JSON, SVG, preferred

FORMS = (JSON, HTML, SVG)
"""In which a stored explanation can be had."""


def written_out(time: str) -> str:
    """Raises ValueError for a number, which would be taken for seconds since 1970."""
    try:
        float(time)
    except ValueError:
        return time
    raise ValueError("must be a date and time, as 2026-01-31T12:00:00Z")


Id = Annotated[str, Path(description="Id of a stored explanation.", examples=["0197c1c6-5f0a-7cc0-8a86-5f5ce4c0a1b2"])]
Accept = Annotated[
    str,
    Header(
        description="`application/json` (default), `text/html` or `image/svg+xml` for a heat map.",
        examples=["text/html"],
    ),
]
OfModel = Annotated[str | None, Query(description="Only of this model.", examples=["demo-lm"])]
OfKind = Annotated[str | None, Query(description="Only of this kind.", examples=["completion"])]
Since = Annotated[
    Annotated[datetime, BeforeValidator(written_out)] | None,
    Query(description="Only stored at or after this time (without zone: UTC).", examples=["2026-01-31T12:00:00Z"]),
]
Cursor = Annotated[str | None, Query(description="`next_cursor` of the page before.", examples=[None])]
Limit = Annotated[int, Query(ge=1, le=500, description="Most entries of a page.", examples=[50])]


def native_routes() -> list[BaseRoute]:
    routes = (
        health_routes,
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
    drawn = {"schema": {"type": "string", "description": "A heat map."}}
    page: Responses = {200: {"content": {HTML: drawn, SVG: drawn}}}
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
    server: ServerState,
    caller: Reader,
    model: OfModel = None,
    kind: OfKind = None,
    since: Since = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Response:
    """What has been explained, newest first.

    Pages neither repeat nor skip entries when new ones are stored meanwhile.
    """
    if since is not None and since.tzinfo is None:
        since = since.replace(tzinfo=UTC)
    page = await list_explanations(
        server.explainer.database, caller.tenant, model=model, kind=kind, since=since, cursor=cursor, limit=limit
    )
    return JsonResponse(page_answer(page))


async def explanation(server: ServerState, caller: Reader, id: Id, accept: Accept = "application/json") -> Response:
    """A stored explanation: request, exact weights, scores and facts.

    With `Accept: text/html` a heat map that stands alone: no script, no resource from elsewhere. With
    `Accept: image/svg+xml` the same as a picture. Training pairs (kind `influence`) come as JSON always.
    """
    stored = await fetch_explanation(server.explainer.database, caller.tenant, id)
    wanted = preferred(accept, FORMS)
    if wanted == JSON or not isinstance(stored, Stored):  # the other kinds are no maps of a prompt
        return JsonResponse(explanation_answer(stored), headers={"Vary": "Accept"})
    draw, policy = (heat_map, page_policy) if wanted == HTML else (heat_map_svg, picture_policy)
    headers = {"Vary": "Accept", "Content-Security-Policy": policy()}
    return Response(await asyncio.to_thread(draw, stored), media_type=wanted, headers=headers)
