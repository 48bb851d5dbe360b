"""What the vendor's client may ask for and this server has not: one clear answer for every method."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NoReturn

from starlette.routing import BaseRoute

from app.dependencies import Reader
from app.dialects.seekr.router import flow_router
from explainers.errors import MissingCapability

EVERY = ("GET", "POST", "PUT", "PATCH", "DELETE")
MISSING: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("/v1/flow/files/validate_metadata", ("POST",), "alignment of documents"),
    ("/v1/flow/fine-tune", ("POST",), "fine-tuning: register what was fine-tuned elsewhere"),
    ("/v1/flow/fine-tunes", EVERY, "fine-tuning: register what was fine-tuned elsewhere"),
    ("/v1/flow/fine-tunes/{rest:path}", EVERY, "fine-tuning: register what was fine-tuned elsewhere"),
    ("/v1/explainability/context-attributor-from-run", ("POST",), "stored runs of agents"),
)
"""Path, methods, and what it is about."""


def missing_routes() -> list[BaseRoute]:
    flow = flow_router()
    for path, methods, words in MISSING:
        flow.add_api_route(path, refusing(words), methods=list(methods), response_model=None, include_in_schema=False)
    return flow.routes


def refusing(words: str) -> Callable[[Reader], Awaitable[NoReturn]]:
    async def refuse(_: Reader) -> NoReturn:
        raise MissingCapability(f"this server has no {words}")

    return refuse
