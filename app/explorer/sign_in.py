"""The way in and out, and the static files: what strangers may ask for."""

from __future__ import annotations

import hmac
import re
import secrets
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from app.dependencies import ServerState, ShortRequest, media_type_of, remember
from app.errors import ProblemResponse, refusal_response
from app.explorer.pages import HEADERS, assets, page
from app.explorer.session import (
    FORMS,
    SIGN_IN,
    changing_page_router,
    end_session,
    moved,
    same_origin,
    secure,
    session_of,
    set_cookie,
    sign_in,
)
from app.refusals import BodyTooLarge, Forbidden, NotFound, TooManyFailures, Unauthorized, UnsupportedMediaType

ENTRY = "whence-entry"
"""Cookie of a form that nobody has signed in with yet: it must come back with the same word in it."""
LOCAL = re.compile(r"/(explorer/[\w./?&=%+~-]*|[?][\w./?&=%+~-]*)?", re.ASCII)
"""Where a sign-in may lead: to a page of ours."""
FOREVER = "public, max-age=31536000, immutable"


def sign_in_routes() -> list[BaseRoute]:
    opened, changing = APIRouter(include_in_schema=False), changing_page_router()
    opened.get(SIGN_IN)(sign_in_page)
    opened.post(SIGN_IN)(enter)
    opened.get("/explorer/static/{name}")(static)
    changing.post("/explorer/sign-out")(leave)
    return [*opened.routes, *changing.routes]


async def sign_in_page(request: Request, next: str = "/") -> Response:
    """Links from elsewhere come without the cookie; who has one is led on by a link of ours."""
    if await session_of(request) is not None:
        return moved(local(next))
    return entry(request, next)


def entry(request: Request, next: str, refusal: ProblemResponse | None = None) -> Response:
    """The form, with a word that it has in common with a cookie."""
    word = secrets.token_urlsafe(24)
    status = 200 if refusal is None else refusal.status_code
    words = None if refusal is None else refusal.detail
    response = page(request, "sign_in.html", status, word=word, next=local(next), words=words)
    if refusal is not None:
        request.scope["state"]["problem"] = refusal.code
        if "retry-after" in refusal.headers:
            response.headers["Retry-After"] = refusal.headers["retry-after"]
    response.set_cookie(ENTRY, word, path=SIGN_IN, httponly=True, samesite="strict", secure=secure(request))
    return response


async def enter(request: Request, server: ServerState) -> Response:
    """An API key for a cookie."""
    request, next = ShortRequest(request.scope, request.receive), "/"
    try:
        fields = await short_form(request)
        next = fields.get("next", "/")
        from_our_form(request, fields.get("word", ""))
        database, folder = server.explainer.database, server.settings.data_dir
        address = request.client.host if request.client else ""
        row, token = await sign_in(database, folder, server.logins, address, fields.get("key", "").strip())
    except (Unauthorized, TooManyFailures, Forbidden, BodyTooLarge, UnsupportedMediaType) as error:
        return entry(request, next, refusal_response(error))
    remember(request, row)
    response = moved(local(next))
    set_cookie(response, request, token)
    return response


async def short_form(request: ShortRequest) -> dict[str, str]:
    """The fields of a stranger's form; raises BodyTooLarge and UnsupportedMediaType."""
    if media_type_of(request) != FORMS[0]:
        raise UnsupportedMediaType(f"send the form as {FORMS[0]}")
    body = (await request.body()).decode("utf-8", errors="replace")
    try:
        return {name: values[-1] for name, values in parse_qs(body, max_num_fields=10).items()}
    except ValueError:
        return {}


def from_our_form(request: Request, word: str) -> None:
    """Raises Forbidden: else a page of another could sign people in with a key of its own."""
    kept = request.cookies.get(ENTRY, "")
    if not kept or not hmac.compare_digest(kept.encode(), word.encode()) or not same_origin(request):
        raise Forbidden("the form was not sent from this page: try again")


async def leave(request: Request) -> Response:
    """Signs out: the session ends, and the browser forgets the cookie."""
    await end_session(request)
    response = moved(SIGN_IN)
    set_cookie(response, request, "")
    return response


async def static(name: str, v: str = "") -> Response:
    """A file of the pages; its address carries its digest, so that browsers need not ask twice."""
    found = assets().get(name)
    if found is None:
        raise NotFound("there is no such file")
    kept = FOREVER if v == found.digest else "no-cache"
    return Response(found.content, media_type=found.media_type, headers={**HEADERS, "Cache-Control": kept})


def local(path: str) -> str:
    return path if LOCAL.fullmatch(path) else "/"
