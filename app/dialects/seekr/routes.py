"""Every route of Seekr's API that is served."""

from __future__ import annotations

from starlette.routing import BaseRoute

from app.dialects.seekr.context_routes import context_routes


def seekr_routes() -> list[BaseRoute]:
    return [*context_routes()]
