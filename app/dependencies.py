"""What routes ask for: the caller, the database, the runtime; and how a request's body is read.

The key is checked before the body is even looked at: a stranger learns nothing about the fields of a request.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, TypeVar
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Security
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic_core import from_json, to_json
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope

from app.admission import Gate, Limits
from app.audit import Audit
from app.costs import Cost, known
from app.device import ASKED_BY
from app.explain import Explainer
from app.jobs import Jobs
from app.login import token_owner
from app.metrics import Metrics
from app.readiness import Readiness
from app.refusals import BodyTooLarge, Forbidden, MalformedBody, Unauthorized, UnsupportedMediaType
from app.settings import Settings
from app.throttle import Throttle
from app.tokens import is_token
from storage import api_keys
from storage.audit import Entry, Kind

Answer = TypeVar("Answer")

SHORT = 64 * 2**10
"""Bytes of a stranger's body."""

bearer = HTTPBearer(
    auto_error=False,
    scheme_name="key",
    description="An API key, or the token of a login: `Authorization: Bearer <key>` or the bare key.",
)


@dataclass(frozen=True, slots=True)
class Server:
    """What one running server consists of; made by the lifespan, held in `app.state.server`."""

    settings: Settings
    explainer: Explainer
    jobs: Jobs
    audit: Audit
    limits: Limits
    readiness: Readiness
    metrics: Metrics
    logins: Throttle = field(default_factory=Throttle)

    def explainer_for(self, caller: Caller) -> Explainer:
        """What answers this caller, within the limits of its key."""
        patience = self.explainer.runtime.device.retry_after
        gate = Gate(caller.limits, self.explainer.database, caller.tenant, caller.key, patience)
        return replace(self.explainer, gate=gate)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the tenant, and the id, name, scopes and limits of the key."""

    tenant: str
    key: str
    name: str
    scopes: frozenset[str]
    limits: Limits

    def may(self, *scopes: str) -> bool:
        """Whether one of these scopes is theirs; `admin` implies all."""
        return "admin" in self.scopes or not self.scopes.isdisjoint(scopes)


def server_of(request: Request) -> Server:
    server: Server = request.app.state.server
    return server


async def current_server(request: Request) -> Server:
    """As a dependency; a coroutine, since FastAPI sends plain functions through a thread."""
    return server_of(request)


async def authenticate(request: Request) -> Caller:
    """The owner of the request's key, looked up once per request; raises `Unauthorized`."""
    known = getattr(request.state, "caller", None)
    if isinstance(known, Caller):
        return known
    row = await key_of(request)
    if row is None:
        raise Unauthorized("a valid API key is needed: Authorization: Bearer <key>")
    return remember(request, row)


def remember(request: Request, key: Any) -> Caller:
    """The owner of the request, for all who ask later."""
    limits = server_of(request).limits.of(key)
    caller = Caller(key.tenant_id, str(key.id), key.name, frozenset(key.scopes), limits)
    request.state.caller = caller
    ASKED_BY.set((caller.tenant, caller.key))
    return caller


async def key_of(request: Request) -> Any | None:
    """The row of the key that comes with a request, itself or as the token of a login; a header outdoes a cookie."""
    server = server_of(request)
    secret = presented_key(request.headers.get("authorization", "")) or cookie_token(request)
    if is_token(secret):
        return await token_owner(server.explainer.database, server.settings.data_dir, secret)
    return await api_keys.find_by_secret(server.explainer.database, secret) if secret else None


def presented_key(header: str) -> str:
    """The key in an Authorization header: after the scheme `Bearer` in any case, or bare."""
    scheme, _, rest = header.strip().partition(" ")
    return rest.strip() if scheme.lower() == "bearer" else header.strip()


def cookie_token(request: Request) -> str:
    """The token in the cookie of a login, or nothing.

    A browser sends cookies along with what the pages of others ask for, and says so: those are not ours to answer.
    """
    if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return ""
    token = request.cookies.get("Authorization", "")
    return token if is_token(token) else ""


@dataclass(frozen=True, slots=True)
class Allowed:
    """A dependency: the caller, whose key has one of these scopes."""

    scopes: tuple[str, ...]

    async def __call__(self, request: Request, _: Annotated[Any, Security(bearer)]) -> Caller:
        return self.check(await authenticate(request))

    def check(self, caller: Caller) -> Caller:
        """Raises `Forbidden`."""
        if not caller.may(*self.scopes):
            raise Forbidden(f"this key lacks the scope: {' or '.join(self.scopes)}")
        return caller


def allowed(*scopes: str) -> Allowed:
    return Allowed(scopes)


ServerState = Annotated[Server, Depends(current_server)]
Reader = Annotated[Caller, Depends(allowed("read"))]
Asker = Annotated[Caller, Depends(allowed("explain"))]
ReaderOrAsker = Annotated[Caller, Depends(allowed("read", "explain"))]
ReaderOrIngester = Annotated[Caller, Depends(allowed("read", "ingest"))]
Ingester = Annotated[Caller, Depends(allowed("ingest"))]
Admin = Annotated[Caller, Depends(allowed("admin"))]


class JsonResponse(Response):
    """Compact JSON from plain values."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return to_json(content)


class JsonRequest(Request):
    """A request whose JSON is read strictly: UTF-8, no NaN or Infinity, no half surrogates, bounded depth."""

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            try:
                self._json = from_json(await self.body(), allow_inf_nan=False, cache_strings="keys")
            except ValueError as error:
                raise MalformedBody(f"the body is not JSON: {error}") from None
        return self._json


class ShortRequest(JsonRequest):
    """A request of a stranger; its body is read to the end, and refused when it is long."""

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            content = bytearray()
            async for chunk in self.stream():
                content += chunk[: SHORT + 1 - len(content)]
            if len(content) > SHORT:
                raise BodyTooLarge(f"the body is larger than the {SHORT} bytes this route reads")
            self._body = bytes(content)
        return self._body


class KeyedRoute(APIRoute):
    """A route that needs a key, and reads its body only after the key has been found good, and good enough.

    A change is written down in the audit log before it begins.
    """

    needs: Allowed | None = None
    """Which scopes; None: any key will do."""
    passing: int | None = None
    """The status of what another attempt may not meet, in place of 503 and 507."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()
        has_body = self.body_field is not None
        self.needs = needed(self.dependant)

        async def handle(request: Request) -> Response:
            caller = await authenticate(request)
            if self.needs is not None:
                self.needs.check(caller)
            if self.kind(request.method) == "change":
                await begin_change(request, caller)
            if has_body:
                request = JsonRequest(request.scope, request.receive)
                await read_json(request)
            return await answer(request)

        return handle

    def kind(self, method: str) -> Kind:
        """What the audit log takes a request for, by the scope that it needs."""
        scopes = () if self.needs is None else self.needs.scopes
        if method == "DELETE" or (method != "GET" and scopes in CHANGING):
            return "change"
        return "computation" if scopes == ("explain",) else "read"


CHANGING = (("ingest",), ("admin",))


def needed(dependant: Dependant) -> Allowed | None:
    """The scopes that the dependencies of a route ask for."""
    if isinstance(dependant.call, Allowed):
        return dependant.call
    return next(filter(None, map(needed, dependant.dependencies)), None)


async def begin_change(request: Request, caller: Caller) -> None:
    """Raises DatabaseUnavailable where the log cannot be written."""
    request.state.audit_entry = entry = audit_entry(request.scope, caller)
    await server_of(request).audit.begin(caller.tenant, entry)


def audit_entry(scope: Scope, caller: Caller, **made: str) -> Entry:
    """What the audit log keeps of a request: names in its path, never its query or body."""
    route = scope.get("route")
    return Entry(
        kind=route.kind(scope["method"]) if isinstance(route, KeyedRoute) else "change",  # a login
        method=scope["method"],
        route=getattr(route, "path_format", ""),
        object={name: str(value) for name, value in scope.get("path_params", {}).items()} | made,
        key=UUID(caller.key),
        key_name=caller.name,
        request_id=scope["state"].get("request_id"),
    )


class CountedRoute(KeyedRoute):
    """A route whose work is the database's: a request of the key like any other, and none when it is refused.

    What is computed for is counted by its use case, which knows what is stored already.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def handle(request: Request) -> Response:
            caller = await authenticate(request)
            gate = server_of(request).explainer_for(caller).gate.for_requests()
            announced = request.headers.get("content-length", "")
            cost = Cost(bytes=int(announced) if announced.isdecimal() else 0)
            async with gate.admitted(known(cost)) as charge:
                charge.free = True
                response = await answer(request)
                charge.free = response.status_code >= 400
                return response

        return handle


class OpenRoute(APIRoute):
    """A route that strangers may ask, with a body of JSON, of which no more is kept than such a body needs."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def handle(request: Request) -> Response:
            request = ShortRequest(request.scope, request.receive)
            await read_json(request)
            return await answer(request)

        return handle


def keyed_router(tag: str, prefix: str = "", *, counted: bool = False) -> APIRouter:
    """A router whose routes need a key; below a prefix they are the same routes again, left out of the description."""
    kind = CountedRoute if counted else KeyedRoute
    return APIRouter(prefix=prefix, route_class=kind, tags=[tag], include_in_schema=not prefix)


async def read_json(request: JsonRequest) -> None:
    """Reads the body into the request; raises when it is not declared as JSON, or is not JSON."""
    if media_type_of(request).startswith("multipart/"):  # which may be large: not even read
        must_be_json(request)
    if not await request.body():
        raise MalformedBody("a JSON body is required")
    must_be_json(request)
    await request.json()


def must_be_json(request: Request) -> None:
    media_type = media_type_of(request)
    if media_type != "application/json" and not re.fullmatch(r"application/.+\+json", media_type):
        raise UnsupportedMediaType("send the body with Content-Type: application/json")


def media_type_of(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def while_connected(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """The outcome of `work`, which is cancelled as soon as the client goes away.

    The body must have been read: from then on the only message that can come is the disconnection.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(disconnection(request.receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for pending in (task, watcher):
            pending.cancel()
        await asyncio.wait({task, watcher})
        quiet(task)


async def disconnection(receive: Receive) -> None:
    message: Message = {}
    while message.get("type") != "http.disconnect":
        message = await receive()


def quiet(task: asyncio.Future[Any]) -> None:
    """Looks at a task's error, so that asyncio does not report it as never seen."""
    if not task.cancelled():
        task.exception()
