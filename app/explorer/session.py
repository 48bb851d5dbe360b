"""Signing in to the pages: a cookie that stands for an API key, and forms that only our own pages can send.

Context: browsers send cookies along with whatever the pages of others make them ask for. Decision: the cookie holds a
signed token of limited life, which names the key and never holds it, and whose row is read at every request; it is
signed with a secret of its own, so that the API knows it no more than a forged one. It is HttpOnly and
SameSite=Strict, and over TLS bound to this host (`__Host-`). What changes or computes anything must come from a page
of this host, and carry the session's own token. Consequences: the cookie ends with its key and after a working day;
signing out is written down until then, so that a copy of the cookie opens nothing either; a request with a key in its
header is a program's, and needs no cookie.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import UUID, uuid4

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.dependencies import CountedRoute, KeyedRoute, media_type_of, remember, server_of
from app.errors import ANSWERS, ProblemResponse, answer_http, answer_invalid, refusal_response
from app.explorer.pages import HEADERS, page, swaps
from app.login import kept_secret, signing_secret
from app.refusals import BodyTooLarge, Forbidden, Unauthorized
from app.throttle import Throttle
from app.tokens import claims_of, encoded, is_token, signed
from storage import api_keys
from storage.audit import Kind
from storage.database import Database

COOKIE = "whence-explorer"
LIFE_SECONDS = 8 * 60 * 60
"""A working day."""
PURPOSE = b"whence explorer sign-in"
FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
MOST_FIELDS = 200
SIGN_IN = "/explorer/sign-in"

REFUSALS: tuple[type[Exception], ...] = (*ANSWERS, RequestValidationError, HTTPException)


@dataclass(frozen=True, slots=True)
class Session:
    """A sign-in: its id, when it expires, the row of its key, and the token that its forms carry."""

    id: UUID
    until: datetime
    key: Any
    csrf: str


class PageRequest(Request):
    """A request whose body is a form, of which no more is read than any other body may be long."""

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            limit, content = server_of(self).settings.body_limit_bytes, bytearray()
            async for chunk in self.stream():
                content += chunk[: limit + 1 - len(content)]
            if len(content) > limit:
                raise BodyTooLarge(f"the form is larger than the {limit} bytes this server reads")
            self._body = bytes(content)
        return self._body

    async def fields(self) -> FormData:
        """The form, read once; the files in it lie in memory or in unnamed files."""
        if media_type_of(self) not in FORMS:
            return FormData()
        await self.body()
        return await self.form(max_files=1, max_fields=MOST_FIELDS, max_part_size=len(self._body))


class PageRoute(KeyedRoute):
    """A page: its caller is known by the cookie, and refusals are told in words.

    A request with a key in its header is answered as at the API, refusals included.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def handle(request: Request) -> Response:
            request = PageRequest(request.scope, request.receive)
            if request.headers.get("authorization"):
                return await answer(request)
            try:
                await admit(request)
                return await answer(request)
            except Unauthorized as error:
                return to_sign_in(request, error)
            except REFUSALS as error:
                return await refused(request, error)
            finally:
                await request.close()  # and with it the files of its form

        return handle


class CountedPageRoute(PageRoute, CountedRoute):
    """A page whose work is the database's: it counts as a request of the key."""


class ChangingPageRoute(PageRoute):
    """A page that changes something: written down in the audit log before it begins."""

    def kind(self, method: str) -> Kind:
        return "change"


def page_router() -> APIRouter:
    """Pages are no part of the API, and left out of its description."""
    return APIRouter(route_class=PageRoute, include_in_schema=False)


def changing_page_router() -> APIRouter:
    return APIRouter(route_class=ChangingPageRoute, include_in_schema=False)


def counted_page_router() -> APIRouter:
    return APIRouter(route_class=CountedPageRoute, include_in_schema=False)


async def admit(request: PageRequest) -> None:
    """Raises Unauthorized without a good cookie, and Forbidden for a form that is not from a page of the session."""
    session = await session_of(request)
    if session is None:
        raise Unauthorized("sign in with an API key")
    remember(request, session.key)
    request.state.session, request.state.csrf = session, session.csrf
    if request.method in ("GET", "HEAD"):
        return
    given = request.headers.get("x-csrf-token") or (await request.fields()).get("csrf", "")
    right = isinstance(given, str) and hmac.compare_digest(given.encode(), session.csrf.encode())
    if not right or not same_origin(request):
        raise Forbidden("this was not sent from a page of this sign-in: load the page again")


async def session_of(request: Request) -> Session | None:
    """Who has signed in; None for a bad, expired or ended cookie, or a key that is usable no more."""
    server, token = server_of(request), next(filter(None, map(request.cookies.get, cookie_names(request))), "")
    kept = kept_secret(server.settings.data_dir) if is_token(token) else None
    if kept is None:
        return None
    secret = secret_from(kept)
    claims = claims_of(token, secret, time.time())
    if claims is None:
        return None
    id, until = UUID(claims["jti"]), datetime.fromtimestamp(claims["exp"], UTC)
    key = await api_keys.find_in_session(server.explainer.database, claims["tenant"], UUID(claims["sub"]), id)
    return None if key is None else Session(id, until, key, csrf_of(token, secret))


async def end_session(request: Request) -> None:
    """Ends the sign-in that a request comes with, whoever else has its cookie."""
    session: Session | None = getattr(request.state, "session", None)
    if session is not None:
        async with server_of(request).explainer.database.transaction(tenant=session.key.tenant_id) as opened:
            await api_keys.end_session(opened, session.id, session.until)


async def sign_in(database: Database, folder: Path, throttle: Throttle, address: str, key: str) -> tuple[Any, str]:
    """The row of this key, and a token for the cookie; counted with the logins of the API.

    Raises `Unauthorized`, and `TooManyFailures` where an address tries too often: a key alone has no name to watch.
    """
    throttle.begin(address, key)
    try:
        row = await api_keys.find_by_secret(database, key)
        if row is not None:
            token = token_for(row, folder)
    except BaseException:  # nobody knows whether it was right
        throttle.forgive(address, key)
        raise
    if row is None:
        raise Unauthorized("this is no key of this server, or it has been revoked or has expired")
    throttle.forgive(address, key)
    return row, token


def token_for(row: Any, folder: Path) -> str:
    now = int(time.time())
    claims = {"sub": str(row.id), "tenant": row.tenant_id, "iat": now, "exp": now + LIFE_SECONDS, "jti": uuid4().hex}
    return signed(claims, secret_from(signing_secret(folder)))


def secret_from(secret: bytes) -> bytes:
    """A secret of the pages alone: the API takes none of their tokens, and they take none of its."""
    return hmac.digest(secret, PURPOSE, "sha256")


def csrf_of(token: str, secret: bytes) -> str:
    return encoded(hmac.digest(secret, b"form " + token.encode(), "sha256"))


def same_origin(request: Request) -> bool:
    """Whether the browser says that a page of this host sends it; one that says nothing has the token alone.

    What it says of the site counts first: behind a proxy, our own name may not be the one that the browser knows.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        return site == "same-origin"
    return origin is None or urlsplit(origin).netloc == request.headers.get("host", "")


def secure(request: Request) -> bool:
    """Whether the browser speaks TLS: to us, or to a proxy in front of us, as it says itself with a form."""
    return request.url.scheme == "https" or request.headers.get("origin", "").startswith("https://")


def cookie_names(request: Request) -> tuple[str, ...]:
    """Where a token may stand. Of the first one the browser sees to it that no other host has set it."""
    return (f"__Host-{COOKIE}",) if secure(request) else (f"__Host-{COOKIE}", COOKIE)


def set_cookie(response: Response, request: Request, token: str) -> None:
    """An empty token takes the cookie away, whatever it is called."""
    names, life = cookie_names(request), LIFE_SECONDS if token else 0
    for name in names[-1:] if token else names:
        prefixed = name != COOKIE
        response.set_cookie(name, token, max_age=life, path="/", httponly=True, samesite="strict", secure=prefixed)


def to_sign_in(request: Request, error: Unauthorized) -> Response:
    """Pages lead to the sign-in and back again; what is swapped into a page makes the browser go there."""
    if request.method == "GET" and not swaps(request):
        query = f"?{request.url.query}" if request.url.query else ""
        return Response(status_code=303, headers={"Location": f"{SIGN_IN}?next={quote(request.url.path + query)}"})
    response = told(request, refusal_response(error), str(error))
    response.headers["HX-Redirect"] = SIGN_IN
    return response


async def refused(request: Request, error: Exception) -> Response:
    """A refusal in words: as a page, or as what is put where the page tells of problems."""
    match error:
        case RequestValidationError():
            problem = await answer_invalid(request, error)
        case HTTPException():
            problem = await answer_http(request, error)
        case _:
            problem = refusal_response(error)
    assert isinstance(problem, ProblemResponse)  # noqa: S101 - all of them are
    return told(request, problem, problem.detail, getattr(error, "job", None))


def told(request: Request, problem: ProblemResponse, words: str, job: str | None = None) -> Response:
    """The words of a problem; of work that goes on, with the way to its job."""
    request.scope["state"]["problem"] = problem.code  # for the log and the metrics
    template = "problem.html" if swaps(request) else "refused.html"
    response = page(request, template, problem.status_code, words=words, code=problem.code, job=job)
    for name in ("retry-after", "www-authenticate", "ratelimit", "ratelimit-policy"):
        if name in problem.headers:
            response.headers[name] = problem.headers[name]
    if swaps(request):
        response.headers.update({"HX-Retarget": "#problem", "HX-Reswap": "innerHTML"})
    return response


def moved(path: str) -> Response:
    """On to another page, as after a form."""
    return Response(status_code=303, headers={**HEADERS, "Location": path})
