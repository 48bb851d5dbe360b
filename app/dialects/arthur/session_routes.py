"""Who asks: logins, the owner of a key, and the one organization that is theirs."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from app.dependencies import JsonResponse, OpenRoute, ReaderOrIngester, ServerState, keyed_router, remember
from app.dialects.arthur.session_schemas import (
    AuthInfoResponse,
    CurrentOrganization,
    LoginBody,
    LoginResponse,
    OrganizationChoice,
    OrganizationResponse,
    auth_info,
)
from app.errors import problems
from app.login import LIFE_SECONDS, log_in
from app.refusals import NotFound

TAG = "Callers (Arthur's wire)"
CURRENT = "/api/v3/organizations/current"
SAMPLE = {"login": "analyst", "password": "whence_u1Zr8yX0c"}

Credentials = Annotated[LoginBody, Body(openapi_examples={"a key": {"value": SAMPLE}})]
Choice = Annotated[OrganizationChoice, Body(openapi_examples={"own": {"value": {"organization_id": "default"}}})]


def session_routes() -> list[BaseRoute]:
    opened, keyed = APIRouter(route_class=OpenRoute, tags=[TAG]), keyed_router(TAG)
    opened.post(
        "/api/v3/login", summary="Log in", response_model=LoginResponse, responses=problems(400, 401, 413, 415, 429)
    )(enter)
    seen: Any = {"responses": problems(401, 403)}
    chosen: Any = {"responses": problems(400, 401, 403, 404, 413, 415)}
    keyed.get("/api/v3/users/me", summary="Whose key is this?", response_model=OrganizationResponse, **seen)(me)
    keyed.get("/api/v3/users/me/auth_info", summary="Who am I?", response_model=AuthInfoResponse, **seen)(about_me)
    keyed.get(CURRENT, summary="Get the organization", response_model=CurrentOrganization, **seen)(organization)
    keyed.put(CURRENT, summary="Choose the organization", response_model=CurrentOrganization, **chosen)(choose)
    return [*opened.routes, *keyed.routes]


async def enter(request: Request, server: ServerState, body: Credentials) -> Response:
    """The name and the secret of an API key for a token, in the cookie `Authorization`.

    For two hours the token does what the key does, in a header or in the cookie, and ends at once with the key.
    """
    database, folder = server.explainer.database, server.settings.data_dir
    address = request.client.host if request.client else ""
    row, token = await log_in(database, folder, server.logins, address, body.login, body.password)
    remember(request, row)
    response = JsonResponse({"id": str(row.id), "email": ""})
    secure = request.url.scheme == "https"
    response.set_cookie(
        "Authorization", token, max_age=LIFE_SECONDS, httponly=True, samesite="strict", secure=secure
    )  # fmt: skip
    return response


async def me(caller: ReaderOrIngester) -> Response:
    """The organization is the tenant of the key."""
    return JsonResponse({"organization_id": caller.tenant})


async def about_me(caller: ReaderOrIngester) -> Response:
    """The key as a user: its name, its scopes as roles, its tenant as the only organization."""
    return JsonResponse(auth_info(caller))


async def organization(caller: ReaderOrIngester) -> Response:
    """The organization is the tenant of the key."""
    return JsonResponse({"id": caller.tenant})


async def choose(caller: ReaderOrIngester, body: Choice) -> Response:
    """A key belongs to one organization: no other can be chosen."""
    if body.organization_id != caller.tenant:
        raise NotFound("no such organization, or this key does not belong to it")
    return JsonResponse({"id": caller.tenant})
