"""The demo in a real browser: signed in, watched for errors and for requests that leave the host."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, sync_playwright

from tests.explorer.demo import KEY, shared_demo

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
NARROW, WIDE = {"width": 400, "height": 900}, {"width": 1600, "height": 1000}
SERIOUS = ("serious", "critical")


@dataclass
class Watch:
    """What a page must not do; `expected` are parts of console lines that a test provokes."""

    host: str
    expected: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"console: {message.text}")

    def error(self, error: Any) -> None:
        self.problems.append(f"script: {error}")

    def request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and parts.netloc != self.host:
            self.problems.append(f"left the host: {request.url}")

    def check(self) -> None:
        assert [each for each in self.problems if not any(part in each for part in self.expected)] == []


@pytest.fixture(scope="session")
def chromium() -> str:
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.skip(f"no browser is installed (Debian: apt install chromium); looked for {', '.join(CHROMIUM)}")
    return found


@pytest.fixture(scope="session")
def url(chromium: str, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[str]:
    """The address of the one demo server of this run, or of one that runs already and has the key of the tests."""
    if "EXPLORER_URL" in os.environ:
        yield os.environ["EXPLORER_URL"]
        return
    folder = tmp_path_factory.getbasetemp()
    with shared_demo(folder if worker_id == "master" else folder.parent) as url:
        yield url


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
    context = browser.new_context()
    page = context.new_page()
    sign_in(page, url, KEY)
    state: Any = context.storage_state()
    context.close()
    return dict(state)


def sign_in(page: Page, url: str, key: str) -> None:
    page.goto(f"{url}/explorer/sign-in")
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{url}/")


@pytest.fixture
def stranger(browser: Browser) -> Iterator[BrowserContext]:
    """A browser of somebody who has not signed in; nothing of it is watched."""
    context = browser.new_context()
    yield context
    context.close()


@pytest.fixture
def watch(url: str) -> Watch:
    return Watch(urlsplit(url).netloc)


@pytest.fixture
def page(browser: Browser, url: str, signed_in: dict[str, Any], watch: Watch) -> Iterator[Page]:
    """A page of a signed-in browser, wide; fails the test for console errors and requests that leave the host."""
    context = browser.new_context(
        base_url=url,
        storage_state=signed_in,  # type: ignore[arg-type]
        viewport=WIDE,  # type: ignore[arg-type]
        reduced_motion="reduce",
    )
    context.set_default_timeout(20_000)
    context.on("request", watch.request)
    context.on("console", watch.console)
    page = context.new_page()
    page.on("pageerror", watch.error)
    yield page
    context.close()
    watch.check()


@pytest.fixture(scope="session")
def api(url: str) -> Iterator[httpx.Client]:
    """The API of the same server, with the admin key."""
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client:
        yield client


Check = Callable[[Page], None]


@pytest.fixture(scope="session")
def fits() -> Check:
    """Checks a page as it stands: nothing is cut off at the side at 400 and 1,600 px, axe has no serious finding."""
    axe = Axe()

    def check(page: Page) -> None:
        for size in (WIDE, NARROW):
            page.set_viewport_size(size)  # type: ignore[arg-type]
            inner = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
            assert inner[0] <= inner[1], f"wider than {size['width']} px: {inner}"
        found = axe.run(page, options={"resultTypes": ["violations"]}).response["violations"]
        serious = [each for each in found if each["impact"] in SERIOUS]
        assert not serious, [(each["id"], [node["html"] for node in each["nodes"]]) for each in serious]
        page.set_viewport_size(WIDE)  # type: ignore[arg-type]

    return check
