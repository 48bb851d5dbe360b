"""Several wires over one core. A new dialect is one folder and one entry here.

Order matters where paths overlap: `/models/{model}/tokenizer` must be seen before `/models/{name}`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from starlette.routing import BaseRoute

from app.dialects.aleph_alpha.routes import aleph_alpha_routes
from app.dialects.arthur.routes import arthur_routes
from app.dialects.native.routes import native_routes
from app.dialects.seekr.routes import seekr_routes

DIALECTS: Mapping[str, Callable[[], list[BaseRoute]]] = {
    "aleph_alpha": aleph_alpha_routes,
    "arthur": arthur_routes,
    "seekr": seekr_routes,
    "native": native_routes,
}
