"""How a page is made: templates, what every page knows, safe headers."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request
from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic_core import to_json
from starlette.responses import Response
from starlette.routing import BaseRoute

from app.dependencies import Caller
from app.plots.canvas import STYLE

STATIC = Path(__file__).parent / "static"
KINDS: Mapping[str, str] = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".txt": "text/plain"}

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""No inline script and no inline style: pictures have classes and attributes."""

HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "same-origin",  # without one, browsers would name no origin with a form either
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Vary": "Cookie, HX-Request",
}

HTMX = {
    "allowEval": False,
    "allowScriptTags": False,
    "includeIndicatorStyles": False,
    "historyCacheSize": 0,  # what was asked is kept by the server, not by the browser
    "historyRestoreAsHxRequest": False,
    "refreshOnHistoryMiss": True,
    "selfRequestsOnly": True,
    "responseHandling": [{"code": "204", "swap": False}, {"code": "...", "swap": True}],
}
"""Refusals are swapped in as well: they are in words."""


@dataclass(frozen=True, slots=True)
class Page:
    """An entry of the navigation; shown to keys with one of these scopes."""

    title: str
    path: str
    scopes: tuple[str, ...]
    routes: Callable[[], Sequence[BaseRoute]]


@dataclass(frozen=True, slots=True)
class Asset:
    """A static file, and the digest that its address carries."""

    content: bytes
    media_type: str
    digest: str


@cache
def environment() -> Environment:
    made = Environment(
        loader=PackageLoader("app.explorer"),
        autoescape=True,
        undefined=StrictUndefined,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.update(asset=address_of, htmx_config=to_json(HTMX).decode())
    return made


def prepare_pages() -> None:
    """Compiles all templates and reads all files, which otherwise the first who come wait for."""
    for name in environment().list_templates():
        environment().get_template(name)
    assets()


@cache
def assets() -> Mapping[str, Asset]:
    """Every static file by its name; nothing else can be asked for."""
    return {path.name: asset(path) for path in sorted([*STATIC.iterdir(), STYLE]) if path.suffix in KINDS}


def asset(path: Path) -> Asset:
    content = path.read_bytes()
    return Asset(content, KINDS[path.suffix], hashlib.sha256(content).hexdigest()[:16])


def address_of(name: str) -> str:
    return f"/explorer/static/{name}?v={assets()[name].digest}"


def page(request: Request, template: str, status: int = 200, **context: Any) -> Response:
    """A page, or a fragment of one: what the template says; everything put into it is escaped."""
    text = environment().get_template(template).render(**common(request), **context)
    return Response(text, status, dict(HEADERS), media_type="text/html")


async def large_page(request: Request, template: str, **context: Any) -> Response:
    """The same in a thread: one with very many pieces takes long."""
    return await asyncio.to_thread(page, request, template, **context)


def common(request: Request) -> dict[str, Any]:
    """What every template knows: the path, the navigation of this caller, and the token that its forms carry."""
    caller = getattr(request.state, "caller", None)
    pages: tuple[Page, ...] = request.app.state.pages
    return {
        "path": request.url.path,
        "caller": caller,
        "pages": [page for page in pages if isinstance(caller, Caller) and caller.may(*page.scopes)],
        "csrf": getattr(request.state, "csrf", ""),
    }


def swaps(request: Request) -> bool:
    """Whether only a fragment is wanted, to be put into the page that is there already."""
    return request.headers.get("hx-request") == "true"
