"""Every route of the dialect."""

from __future__ import annotations

from starlette.routing import BaseRoute

from app.dialects.arthur.data_routes import data_routes
from app.dialects.arthur.model_routes import model_routes


def arthur_routes() -> list[BaseRoute]:
    return [*data_routes(), *model_routes()]
