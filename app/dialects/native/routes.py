"""Stored explanations, and every other route of the dialect."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import Header, Path, Query
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
from app.wire import Moment

JSON, HTML, SVG = "application/json", "text/html", "image/svg+xml"
FORMS = (JSON, HTML, SVG)
"""In which a stored explanation can be had."""


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
    Moment | None,
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
    wanted = preferred(accept)
    if wanted == JSON or not isinstance(stored, Stored):  # the other kinds are no maps of a prompt
        return JsonResponse(explanation_answer(stored), headers={"Vary": "Accept"})
    draw, policy = (heat_map, page_policy) if wanted == HTML else (heat_map_svg, picture_policy)
    headers = {"Vary": "Accept", "Content-Security-Policy": policy()}
    return Response(await asyncio.to_thread(draw, stored), media_type=wanted, headers=headers)


def preferred(accept: str) -> str:
    """The form that an Accept header wants most; a tie goes to the one named first, else to JSON."""
    ranked = [(quality(accept, form), -position_of(accept, form), form) for form in FORMS]
    best = max(ranked, key=lambda entry: entry[:2])
    return best[2] if best[0] > 0 else JSON


def position_of(accept: str, media_type: str) -> int:
    """Where a header names a media type; those that only a range stands for come last."""
    names = [entry.partition(";")[0].strip() for entry in accept.lower().split(",")]
    return names.index(media_type) if media_type in names else len(names)


def quality(accept: str, media_type: str) -> float:
    """How much (0 to 1) an Accept header wants a media type: its most specific range decides (RFC 9110, 12.5.1)."""
    wanted = {}
    for entry in accept.lower().split(","):
        name, *parameters = (part.strip() for part in entry.split(";"))
        weights = [part[2:] for part in parameters if part.startswith("q=")]
        wanted[name] = weight_of(weights[0]) if weights else 1.0
    ranges = (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
    return next((wanted[name] for name in ranges if name in wanted), 0.0)


def weight_of(text: str) -> float:
    try:
        return min(1.0, max(0.0, float(text)))
    except ValueError:
        return 0.0
