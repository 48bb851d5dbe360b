"""Signing in and out, in a browser; what strangers and other sites can do is in tests/app/test_explorer.py."""

from __future__ import annotations

from playwright.sync_api import BrowserContext, Page

from tests.demo_server import KEY
from tests.explorer.conftest import Check, Watch, sign_in


def test_a_key_opens_the_pages_and_signing_out_closes_them(
    stranger: BrowserContext, url: str, watch: Watch, fits: Check
) -> None:
    watch.expected.append("status of 401")
    page = stranger.new_page()
    page.goto(f"{url}/?model=demo-lm")
    assert "/explorer/sign-in?next=" in page.url
    fits(page)
    page.get_by_label("API key").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    assert "no key of this server" in page.locator("#refusal").inner_text()
    page.get_by_label("API key").fill(KEY)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{url}/?model=demo-lm")
    (cookie,) = [each for each in stranger.cookies() if each["name"] == "whence-explorer"]
    assert cookie["httpOnly"] and cookie["sameSite"] == "Strict" and KEY not in cookie["value"]
    assert page.evaluate("document.cookie") == ""
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url(f"{url}/explorer/sign-in")
    page.goto(url)
    assert "/explorer/sign-in" in page.url


SEEN_ELSEWHERE = ("/explorer/predictions", "/explorer/jobs", "/explorer/stored")
"""With something on them, in the tests of these pages."""


def test_the_navigation_leads_to_every_page(page: Page, url: str, fits: Check) -> None:
    page.goto("/")
    links = page.get_by_role("navigation").get_by_role("link")
    for address in [link.get_attribute("href") for link in links.all()]:
        answer = page.goto(str(address))
        assert answer is not None and answer.status == 200
        assert page.locator("nav a[aria-current=page]").get_attribute("href") == address
        if address not in SEEN_ELSEWHERE:
            fits(page)


def test_the_keyboard_reaches_the_content_first(page: Page) -> None:
    page.goto("/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the content"
    page.keyboard.press("Enter")
    assert page.url.endswith("#main")


def test_the_cookie_opens_no_route_of_the_api(stranger: BrowserContext, url: str, watch: Watch) -> None:
    watch.expected.append("status of 401")
    page = stranger.new_page()
    sign_in(page, url, KEY)
    for path in ("/models", "/explanations", "/jobs", "/audit"):
        assert page.evaluate("path => fetch(path).then(answer => answer.status)", path) == 401
