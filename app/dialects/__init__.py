"""Several wires over one core. A new dialect is one folder and one entry here.

Order matters where paths overlap: `/models/{model}/tokenizer` must be seen before `/models/{name}`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fastapi import APIRouter

from app.dialects.aleph_alpha.routes import aleph_alpha_router
from app.dialects.native.routes import native_router

DIALECTS: Mapping[str, Callable[[], APIRouter]] = {
    "aleph_alpha": aleph_alpha_router,
    "native": native_router,
}
