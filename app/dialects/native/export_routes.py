"""Many stored explanations at once, and which of them are meant."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute

from app.dependencies import Reader, ServerState, keyed_router
from app.dialects.native.schemas import ExplanationExport
from app.errors import Responses, problems
from app.export import FORMS, Form, export
from app.wire import Moment
from storage.explanations import Filter

OfModel = Annotated[str | None, Query(description="Only of this model.", examples=["demo-lm"])]
OfKind = Annotated[str | None, Query(description="Only of this kind.", examples=["completion"])]
Since = Annotated[
    Moment | None,
    Query(description="Only stored at or after this time (without zone: UTC).", examples=["2026-01-31T12:00:00Z"]),
]
Until = Annotated[
    Moment | None,
    Query(description="Only stored before this time (without zone: UTC).", examples=["2026-02-01T12:00:00Z"]),
]
Search = Annotated[
    str | None,
    Query(
        max_length=1000,
        description="Only with this text in the first 16,000 characters of the prompt or 4,000 of the target, whatever "
        "the case and blanks; of training data in the question or the answer.",
        examples=["lies in"],
    ),
]
InForm = Annotated[
    Form,
    Query(
        alias="format",
        description="`json`: one document; `csv`: one table; `html`, `svg`: an archive (zip) of pages or pictures.",
        examples=["csv"],
    ),
]

ARCHIVE = {"schema": {"type": "string", "format": "binary", "description": "One file for each explanation."}}
TABLE = {"schema": {"type": "string", "description": "A row for each target and part, or training pair."}}


def meant(
    model: OfModel = None,
    kind: OfKind = None,
    since: Since = None,
    until: Until = None,
    search: Search = None,
) -> Filter:
    return Filter(model, kind, since, until, search)


Meant = Annotated[Filter, Depends(meant)]


def export_routes() -> list[BaseRoute]:
    """Before those of single explanations, whose ids the path would be taken for."""
    keyed = keyed_router("Stored explanations")
    sent: Responses = {
        200: {
            "description": "The explanations, as they are read. An answer that is cut off has no end: throw it away.",
            "content": {"text/csv": TABLE, "application/zip": ARCHIVE},
        }
    }
    keyed.get(
        "/explanations/export",
        summary="Export stored explanations",
        response_model=ExplanationExport,
        responses=sent | problems(400, 401, 403),
    )(exported)
    return keyed.routes


async def exported(server: ServerState, caller: Reader, meant: Meant, form: InForm = "json") -> Response:
    """All explanations that the parameters mean, newest first, in one file, which is sent as it is read.

    What is stored meanwhile is left out. The table has one row for each target and part of the prompt, or for each
    training pair; a text that a spreadsheet would take for a formula begins with `'`.
    """
    kind = FORMS[form]
    content = export(server.explainer.database, caller.tenant, meant, form)
    name = f'attachment; filename="explanations.{kind.ending}"'
    return StreamingResponse(content, media_type=kind.media_type, headers={"Content-Disposition": name})
