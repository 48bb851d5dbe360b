"""A drawing on the wire: the SVG that routes give to who prefers one to JSON."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header
from starlette.responses import Response

from app.errors import Responses
from app.media_types import JSON, SVG
from app.pictures import file_policy
from app.plots.canvas import Plot

FORMS = (JSON, SVG)
"""In which an answer that can be drawn is to be had."""

DRAWN: Responses = {200: {"content": {SVG: {"schema": {"type": "string", "description": "A picture."}}}}}

Accept = Annotated[
    str,
    Header(description="`application/json` (default), or `image/svg+xml` for a picture.", examples=["image/svg+xml"]),
]


def picture_response(drawing: Plot) -> Response:
    headers = {"Vary": "Accept", "Content-Security-Policy": file_policy()}
    return Response(drawing.standalone(), media_type=SVG, headers=headers)
