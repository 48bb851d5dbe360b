"""Every route of the dialect."""

from __future__ import annotations

from starlette.routing import BaseRoute

from app.dialects.arthur.data_routes import data_routes
from app.dialects.arthur.explanation_routes import explanation_routes
from app.dialects.arthur.missing_routes import missing_routes
from app.dialects.arthur.model_routes import model_routes
from app.dialects.arthur.query_routes import query_routes
from app.dialects.arthur.session_routes import session_routes


def arthur_routes() -> list[BaseRoute]:
    """The models come last: among them is a path that matches all below it."""
    return [
        *session_routes(),
        *explanation_routes(),
        *query_routes(),
        *data_routes(),
        *missing_routes(),
        *model_routes(),
    ]
