"""The API's description: /openapi.json for programs, /docs for people; both need a key unless opened by setting."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.responses import Response

from app.dependencies import JsonResponse, KeyedRoute
from app.errors import Problem


def add_docs(app: FastAPI, *, open_docs: bool) -> None:
    router = APIRouter(route_class=APIRoute if open_docs else KeyedRoute, include_in_schema=False)
    router.get("/openapi.json")(openapi)
    app.include_router(router)
    app.openapi = lambda: description(app)  # type: ignore[method-assign]


async def openapi(request: Request) -> Response:
    return JsonResponse(request.app.openapi())


def description(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, made once; with our one error body in place of the framework's."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schemas = document["components"]["schemas"]
        schemas |= {"Problem": problem_schema()}
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for operation in (operation for path in document["paths"].values() for operation in path.values()):
            operation["responses"].pop("422", None)
        app.openapi_schema = document
    return app.openapi_schema


def problem_schema() -> dict[str, Any]:
    schema = Problem.model_json_schema()
    fields = schema.pop("$defs")["FieldProblem"]
    schema["properties"]["errors"]["anyOf"][0]["items"] = fields
    return schema
