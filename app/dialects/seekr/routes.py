"""Every route of the dialect."""

from __future__ import annotations

from starlette.routing import BaseRoute

from app.dialects.seekr.context_routes import context_routes
from app.dialects.seekr.file_routes import file_routes
from app.dialects.seekr.inference_routes import inference_routes
from app.dialects.seekr.missing_routes import missing_routes
from app.dialects.seekr.model_routes import model_routes


def seekr_routes() -> list[BaseRoute]:
    return [*missing_routes(), *file_routes(), *model_routes(), *context_routes(), *inference_routes()]
