"""What the vendor's client may ask for and this server has not: one clear answer, the same for every method."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NoReturn

from starlette.routing import BaseRoute

from app.dependencies import ReaderOrIngester, keyed_router
from explainers.errors import MissingCapability

MODEL = "/models/{model_id:uuid}"  # a name with slashes, as in GET /models/{name}, is none
GROUPS = "/api/v3/model_groups"
MISSING: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (f"/api/v4{MODEL}/metrics", ("GET", "POST"), "metrics"),
    (f"/api/v4{MODEL}/metrics/{{metric_id}}", ("GET",), "metrics"),
    (f"/api/v3{MODEL}/alert_rules", ("GET", "POST"), "alert rules"),
    (f"/api/v3{MODEL}/alert_rules/{{alert_rule_id}}", ("PATCH",), "alert rules"),
    ("/api/v3/alerts", ("GET",), "alerts"),
    ("/api/v3/alerts/{alert_id}", ("PATCH",), "alerts"),
    (f"{GROUPS}/{{model_group_id}}", ("GET", "PATCH", "DELETE"), "model groups"),
    (f"{GROUPS}/{{model_group_id}}/versions", ("GET",), "model groups"),
    (f"{GROUPS}/{{model_group_id}}/versions/latest", ("GET",), "model groups"),
    ("/api/v3/service_accounts", ("GET", "POST"), "service accounts (`whence keys` makes API keys)"),
    (f"/api/v3{MODEL}/inferences/images/{{image_id}}", ("GET",), "images of inferences"),
    (f"/api/v3{MODEL}/enrichments/hotspots/find", ("GET",), "hotspots"),
    (f"/api/v3{MODEL}/enrichments/bias_mitigation/curves", ("GET",), "curves of bias mitigation"),
)
"""Path, the methods that the client uses, and what it is about."""


def missing_routes() -> list[BaseRoute]:
    keyed = keyed_router("")
    for path, methods, words in MISSING:
        keyed.add_api_route(path, refusing(words), methods=list(methods), response_model=None, include_in_schema=False)
    return keyed.routes


def refusing(words: str) -> Callable[[ReaderOrIngester], Awaitable[NoReturn]]:
    async def refuse(_: ReaderOrIngester) -> NoReturn:
        raise MissingCapability(f"this server has no {words}")

    return refuse
