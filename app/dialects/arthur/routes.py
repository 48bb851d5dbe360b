"""Every route of the dialect."""

from __future__ import annotations

from starlette.routing import BaseRoute

from app.dialects.arthur.data_routes import data_routes
from app.dialects.arthur.explanation_routes import explanation_routes
from app.dialects.arthur.model_routes import model_routes
from app.dialects.arthur.query_routes import query_routes


def arthur_routes() -> list[BaseRoute]:
    return [*query_routes(), *data_routes(), *explanation_routes(), *model_routes()]
