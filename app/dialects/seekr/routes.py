"""Every route of the dialect."""

from __future__ import annotations

from starlette.routing import BaseRoute

from app.dialects.seekr.context_routes import context_routes
from app.dialects.seekr.file_routes import file_routes
from app.dialects.seekr.inference_routes import inference_routes
from app.dialects.seekr.influence_routes import influence_routes
from app.dialects.seekr.missing_routes import missing_routes
from app.dialects.seekr.model_routes import model_routes


def seekr_routes() -> list[BaseRoute]:
    routes = [missing_routes, file_routes, influence_routes, inference_routes, context_routes, model_routes]
    return [route for made in routes for route in made()]
