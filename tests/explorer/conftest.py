"""The demo in a real browser: signed in, watched for errors and for requests that leave the host."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    WebError,
    expect,
    sync_playwright,
)

from tests.demo_server import KEY, Demo

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
expect.set_options(timeout=60_000)  # milliseconds, for all tests here
NARROW, WIDE = {"width": 400, "height": 900}, {"width": 1600, "height": 1000}
LOOKS = (("light", WIDE), ("dark", NARROW))
TOLD = "Content Security Policy"
VIOLATIONS = f"""document.addEventListener("securitypolicyviolation",
  (event) => console.error("{TOLD}: " + event.violatedDirective + " " + event.blockedURI))"""
OPEN = "() => [...document.querySelectorAll('details:not([open])')].map(each => (each.open = true, each))"
FINDINGS = """axe.run({resultTypes: ["violations"]}).then(({violations}) =>
  violations.map(each => [each.id, each.impact, each.nodes.map(node => node.html)]))"""


@dataclass
class Watch:
    """What a page must not do; `expected` are parts of console lines that a test provokes.

    `files` are the addresses of files from the disk that a test opens.
    """

    host: str
    expected: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def over(self, context: BrowserContext) -> BrowserContext:
        """Watches all pages that this browser opens from now on, those without scripts too."""
        context.on("console", self.console)
        context.on("weberror", self.error)
        context.on("request", self.request)
        context.on("page", lambda page: page.on("websocket", lambda socket: self.left(socket.url)))
        context.add_init_script(VIOLATIONS)
        context.set_default_timeout(60_000)
        return context

    def console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"console: {message.text}")

    def error(self, error: WebError) -> None:
        self.problems.append(f"script: {error.error}")

    def request(self, request: Request) -> None:
        self.left(request.url)

    def left(self, address: str) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("data", "blob") and parts.netloc != self.host and address not in self.files:
            self.problems.append(f"left the host: {address}")

    def check(self) -> None:
        assert [each for each in self.problems if not any(part in each for part in self.expected)] == []


@pytest.fixture(scope="session")
def chromium() -> str:
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.skip(f"no browser is installed (Debian: apt install chromium); looked for {', '.join(CHROMIUM)}")
    return found


@pytest.fixture(scope="session")
def url(chromium: str, request: pytest.FixtureRequest) -> str:
    """The address of the one demo server of this run, or of one that runs already and has the key of the tests."""
    demo: Demo | None = None if "EXPLORER_URL" in os.environ else request.getfixturevalue("demo")
    return os.environ["EXPLORER_URL"] if demo is None else demo.url


@pytest.fixture(scope="session")
def data_dir(url: str, request: pytest.FixtureRequest) -> Path:
    """That of the demo server."""
    if "EXPLORER_URL" in os.environ:
        pytest.skip("the data of a server that runs already are its own")
    demo: Demo = request.getfixturevalue("demo")
    return demo.log.parent / "data"


@pytest.fixture(scope="package")
def browser(chromium: str) -> Iterator[Browser]:
    """Not of the whole session: while it runs, no coroutine of another test can. Those of browsers are none."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def signed_in(browser: Browser, url: str) -> dict[str, Any]:
    """The cookies of one sign-in, for all pages."""
    watch = Watch(urlsplit(url).netloc)
    context = watch.over(browser.new_context())
    page = context.new_page()
    sign_in(page, url, KEY)
    state: Any = context.storage_state()
    context.close()
    watch.check()
    return dict(state)


def sign_in(page: Page, url: str, key: str) -> None:
    page.goto(f"{url}/explorer/sign-in")
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{url}/")


@pytest.fixture
def watch(url: str) -> Watch:
    return Watch(urlsplit(url).netloc)


Contexts = Callable[..., BrowserContext]


@pytest.fixture
def contexts(browser: Browser, url: str, watch: Watch) -> Iterator[Contexts]:
    """Makes browsers for a test, which fails for what one of them must not do. There are no others: see test_watch."""
    made: list[BrowserContext] = []

    def make(**options: Any) -> BrowserContext:
        made.append(watch.over(browser.new_context(base_url=url, **options)))
        return made[-1]

    yield make
    for context in made:
        context.close()
    watch.check()


@pytest.fixture
def stranger(contexts: Contexts) -> BrowserContext:
    """A browser of somebody who has not signed in."""
    return contexts()


@pytest.fixture
def page(contexts: Contexts, signed_in: dict[str, Any]) -> Page:
    """A page of a signed-in browser, wide."""
    return contexts(storage_state=signed_in, viewport=WIDE, reduced_motion="reduce").new_page()


@pytest.fixture
def plain(contexts: Contexts, signed_in: dict[str, Any]) -> Page:
    """The same of a browser that runs no scripts."""
    return contexts(storage_state=signed_in, java_script_enabled=False).new_page()


@pytest.fixture(scope="session")
def api(url: str) -> Iterator[httpx.Client]:
    """The API of the same server, with the admin key."""
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client:
        yield client


Check = Callable[[Page], None]


@pytest.fixture(scope="session")
def fits() -> Check:
    """Checks a page as it stands, unfolded: light at 1,600 px, and dark at 400.

    Nothing is cut off at the side, and axe finds nothing.
    """

    def check(page: Page) -> None:
        opened = page.evaluate_handle(OPEN)
        page.evaluate(AXE_SCRIPT)
        for colours, size in LOOKS:
            page.emulate_media(color_scheme=colours)  # type: ignore[arg-type]
            page.set_viewport_size(size)  # type: ignore[arg-type]
            inner = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
            assert inner[0] <= inner[1], f"wider than {size['width']} px: {inner}"
            assert page.evaluate(FINDINGS) == [], (colours, size["width"])
        page.emulate_media(color_scheme="light")
        page.set_viewport_size(WIDE)  # type: ignore[arg-type]
        opened.evaluate("opened => opened.forEach(each => { each.open = false })")

    return check
