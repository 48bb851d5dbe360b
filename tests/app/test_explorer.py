"""The pages' sign-in and forms against strangers and other sites; what people see is in tests/explorer."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from http.cookies import SimpleCookie
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text

from app.explorer import session
from app.explorer.pages import POLICY, assets
from app.explorer.session import COOKIE, LIFE_SECONDS
from app.explorer.sign_in import local
from app.throttle import Throttle
from tests.app.conftest import ADMIN_KEY, PROMPT, TARGET, Running, Start
from tests.app.test_throttle import stands_still

pytestmark = pytest.mark.anyio

HOME = {"Origin": "http://whence", "Sec-Fetch-Site": "same-origin"}
ELSEWHERE = (
    {"Origin": "http://evil"},
    {"Origin": "null"},
    {"Origin": "http://whence.evil"},
    {"Origin": "http://whence", "Sec-Fetch-Site": "cross-site"},
    {"Origin": "http://evil", "Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "none"},
)
ASKED = {"model": "tiny-lm", "prompt": PROMPT, "target": TARGET}


def browser_of(running: Running, base: str = "http://whence") -> httpx.AsyncClient:
    """With a jar of cookies, and no key in a header."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(running.app), base_url=base)


async def signed_in(browser: httpx.AsyncClient, key: str = ADMIN_KEY, **fields: str) -> httpx.Response:
    page = await browser.get("/explorer/sign-in")
    word = re.search(r'name="word" value="([^"]+)"', page.text)
    assert word is not None
    return await browser.post("/explorer/sign-in", data={"word": word[1], "key": key, **fields}, headers=HOME)


@pytest.fixture
async def browser(running: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with browser_of(running) as browser:
        yield browser


@pytest.fixture
async def csrf(browser: httpx.AsyncClient) -> str:
    """Of a browser that has signed in."""
    assert (await signed_in(browser)).status_code == 303
    found = re.search(r'name="csrf" value="([^"]+)"', (await browser.get("/")).text)
    assert found is not None
    return found[1]


async def test_the_cookie_is_safe_and_opens_pages_alone(running: Running, browser: httpx.AsyncClient) -> None:
    answer = await signed_in(browser, next="/?model=tiny-lm")
    assert (answer.status_code, answer.headers["location"]) == (303, "/?model=tiny-lm")
    cookie = SimpleCookie(answer.headers["set-cookie"])[COOKIE]
    assert cookie["httponly"] and cookie["samesite"].lower() == "strict" and cookie["path"] == "/"
    assert not cookie["secure"] and not cookie["domain"] and int(cookie["max-age"]) == LIFE_SECONDS
    assert ADMIN_KEY not in cookie.value
    assert (await browser.get("/")).status_code == 200
    for way in ({"Authorization": f"Bearer {cookie.value}"}, {"Cookie": f"Authorization={cookie.value}"}, {}):
        for path in ("/models", "/explanations", "/openapi.json"):
            assert (await browser.get(path, headers=way)).status_code == 401
    explained = await browser.post("/explain", json=ASKED, headers=HOME)
    assert explained.status_code == 401


@pytest.mark.parametrize("base", ["https://whence", "http://whence"])
async def test_over_tls_the_cookie_is_bound_to_the_host(running: Running, base: str) -> None:
    """Also where a proxy speaks it: then the browser alone says so."""
    async with browser_of(running, base) as browser:
        page = await browser.get("/explorer/sign-in")
        word = re.search(r'name="word" value="([^"]+)"', page.text)
        assert word is not None
        home = {"Origin": "https://whence", "Sec-Fetch-Site": "same-origin"}
        answer = await browser.post("/explorer/sign-in", data={"word": word[1], "key": ADMIN_KEY}, headers=home)
        name, value = f"__Host-{COOKIE}", SimpleCookie(answer.headers["set-cookie"])
        assert list(value) == [name] and value[name]["secure"] and value[name]["path"] == "/"
        assert not value[name]["domain"]
        cookie = {"Cookie": f"{name}={value[name].value}"}
        assert (await browser.get("/", headers=cookie)).status_code == 200
        plain = {"Cookie": f"{COOKIE}={value[name].value}"}  # which another host of the domain could set
        if base.startswith("https"):
            assert (await browser.get("/", headers=plain)).status_code == 303
        token = re.findall(r'name="csrf" value="([^"]+)"', (await browser.get("/", headers=cookie)).text)[0]
        left = await browser.post("/explorer/sign-out", data={"csrf": token}, headers=home | cookie)
        assert left.headers["set-cookie"].startswith(f'{name}="";') and "Secure" in left.headers["set-cookie"]


async def test_the_cookie_of_an_api_login_opens_no_page(running: Running, browser: httpx.AsyncClient) -> None:
    body = {"login": "WHENCE_API_KEY", "password": ADMIN_KEY}
    assert (await browser.post("/api/v3/login", json=body)).status_code == 200
    assert (await browser.get("/api/v3/users/me")).status_code == 200
    assert (await browser.get("/")).status_code == 303
    token = browser.cookies["Authorization"]
    assert (await browser.get("/", headers={"Cookie": f"{COOKIE}={token}"})).status_code == 303


async def test_a_form_needs_the_token_of_its_session_and_this_host(
    running: Running, browser: httpx.AsyncClient, csrf: str
) -> None:
    assert (await browser.post("/explorer/prompt", data=ASKED | {"csrf": csrf}, headers=HOME)).status_code == 303
    async with browser_of(running) as other:
        await signed_in(other)
        found = re.search(r'name="csrf" value="([^"]+)"', (await other.get("/")).text)
        assert found is not None
        theirs = found[1]
    for wrong in ("", "x", csrf[:-1], theirs, csrf + "é"):
        for form in (ASKED | {"csrf": wrong}, ASKED):
            answer = await browser.post("/explorer/prompt", data=form, headers=HOME)
            assert answer.status_code == 403 and "load the page again" in answer.text
    for headers in ELSEWHERE:
        for path in ("/explorer/prompt", "/explorer/sign-out"):
            answer = await browser.post(path, data=ASKED | {"csrf": csrf}, headers=headers)
            assert answer.status_code == 403, (headers, path)
    assert (await browser.get("/")).status_code == 200


async def test_another_site_cannot_sign_people_in(running: Running, browser: httpx.AsyncClient) -> None:
    for word in ("", "x"):
        answer = await browser.post("/explorer/sign-in", data={"word": word, "key": ADMIN_KEY}, headers=HOME)
        assert answer.status_code == 403 and COOKIE not in browser.cookies
    page = await browser.get("/explorer/sign-in")
    word = re.findall(r'name="word" value="([^"]+)"', page.text)[0]
    for headers in ELSEWHERE:
        form = {"word": word, "key": ADMIN_KEY}
        answer = await browser.post("/explorer/sign-in", data=form, headers=headers)
        assert answer.status_code == 403 and COOKIE not in browser.cookies
        word = re.findall(r'name="word" value="([^"]+)"', answer.text)[0]


async def test_sign_ins_are_throttled_with_the_logins(start: Start) -> None:
    async with start() as running, browser_of(running) as browser:
        stands_still(running)
        for number in range(10):
            assert (await signed_in(browser, f"wrong-{number}")).status_code == 401
            body = {"login": f"name-{number}", "password": "wrong"}
            assert (await browser.post("/api/v3/login", json=body)).status_code == 401
        answer = await signed_in(browser)
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1 and COOKIE not in browser.cookies


async def test_right_sign_ins_use_nothing_up(running: Running, browser: httpx.AsyncClient) -> None:
    throttle = Throttle(of_address=2)
    server = running.server
    for _ in range(5):
        await session.sign_in(server.explainer.database, server.settings.data_dir, throttle, "a", ADMIN_KEY)


@pytest.mark.parametrize("key", ["", "x" * 60_000, "\x00", "é' OR 1=1", "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.e30.x"])
async def test_odd_keys_are_wrong_keys(running: Running, browser: httpx.AsyncClient, key: str) -> None:
    answer = await signed_in(browser, key)
    assert answer.status_code == 401 and (key not in answer.text or not key)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"word=" + b"x" * 70_000, "application/x-www-form-urlencoded"),
        (b"&".join(b"a=1" for _ in range(2000)), "application/x-www-form-urlencoded"),
        (b"\xff\xfe=%ff", "application/x-www-form-urlencoded"),
        (b"--b\r\nbroken", "multipart/form-data; boundary=b"),
        (b"{}", "application/json"),
        (b"", ""),
    ],
    ids=["long", "many", "bytes", "multipart", "json", "none"],
)
async def test_odd_forms_of_strangers_are_refused(
    running: Running, browser: httpx.AsyncClient, csrf: str, content: bytes, kind: str
) -> None:
    headers = HOME | {"Content-Type": kind, "X-CSRF-Token": csrf}
    entered = await browser.post("/explorer/sign-in", content=content, headers=headers)
    assert entered.status_code in (401, 403, 413, 415)
    asked = await browser.post("/explorer/prompt", content=content, headers=headers)
    assert asked.status_code in (400, 404), asked.text


async def test_a_page_ends_with_its_key(running: Running, browser: httpx.AsyncClient) -> None:
    header = await running.key("read", tenant="pages-of-one")
    secret = header["Authorization"].removeprefix("Bearer ")
    await signed_in(browser, secret)
    page = await browser.get("/")
    assert page.status_code == 200 and "lacks the scope" in page.text
    database = running.server.explainer.database
    async with database.transaction(tenant="pages-of-one") as session:
        await session.execute(text("UPDATE api_keys SET revoked_at = now()"))
    assert (await browser.get("/")).status_code == 303
    swapped = await browser.get("/", headers={"HX-Request": "true"})
    assert (swapped.status_code, swapped.headers["hx-redirect"]) == (401, "/explorer/sign-in")


async def test_a_key_without_the_scope_is_refused_in_words(running: Running, browser: httpx.AsyncClient) -> None:
    header = await running.key("read", tenant="pages-of-two")
    await signed_in(browser, header["Authorization"].removeprefix("Bearer "))
    token = re.findall(r'name="csrf" value="([^"]+)"', (await browser.get("/")).text)[0]
    answer = await browser.post("/explorer/prompt", data=ASKED | {"csrf": token}, headers=HOME)
    assert answer.status_code == 403 and "lacks the scope: explain" in answer.text


async def test_an_expired_cookie_opens_nothing(
    running: Running, browser: httpx.AsyncClient, csrf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = session.time.time()
    monkeypatch.setattr(session.time, "time", lambda: now + LIFE_SECONDS + 1)
    assert (await browser.get("/")).status_code == 303


async def test_forged_cookies_open_nothing(running: Running, browser: httpx.AsyncClient, csrf: str) -> None:
    good = browser.cookies[COOKIE]
    head, claims, signature = good.split(".")
    forged = ["", "x", head, f"{head}.{claims}.", f"{head}.{claims}.{signature[::-1]}", f"{head}..{signature}",
              f"eyJhbGciOiJub25lIn0.{claims}.{signature}", good + "x", ADMIN_KEY]  # fmt: skip
    for cookie in forged:
        async with browser_of(running) as other:
            assert (await other.get("/", headers={"Cookie": f"{COOKIE}={cookie}"})).status_code == 303, cookie


async def test_signing_out_ends_the_session_for_all_who_have_its_cookie(
    running: Running, browser: httpx.AsyncClient, csrf: str
) -> None:
    """And no other one of the same key."""
    cookies = {"Cookie": f"{COOKIE}={browser.cookies[COOKIE]}"}
    async with browser_of(running) as copy, browser_of(running) as other:
        await signed_in(other)
        assert (await copy.get("/", headers=cookies)).status_code == 200
        answer = await browser.post("/explorer/sign-out", data={"csrf": csrf}, headers=HOME)
        assert answer.headers["location"] == "/explorer/sign-in" and COOKIE not in browser.cookies
        for path in ("/", "/explorer/stored", "/explorer/jobs/events"):
            assert (await copy.get(path, headers=cookies)).status_code == 303
        again = await copy.post("/explorer/prompt", data=ASKED | {"csrf": csrf}, headers=HOME | cookies)
        assert again.status_code == 401
        assert (await other.get("/")).status_code == 200
    entries = (await running.client.get("/audit", params={"route": "/explorer/sign-out"})).json()["entries"]
    assert {each["kind"] for each in entries} == {"change"}


async def test_who_may_see_no_page_may_still_sign_out(running: Running, browser: httpx.AsyncClient) -> None:
    """A key that neither reads nor explains: it is told so, and not shut in."""
    header = await running.key("ingest", tenant="pages-of-three")
    await signed_in(browser, header["Authorization"].removeprefix("Bearer "))
    page = await browser.get("/")
    assert page.status_code == 403 and "lacks the scope" in page.text and "sign out first" in page.text
    token = re.findall(r'name="csrf" value="([^"]+)"', page.text)[0]
    answer = await browser.post("/explorer/sign-out", data={"csrf": token}, headers=HOME)
    assert answer.status_code == 303 and COOKIE not in browser.cookies


async def test_a_key_that_only_asks_is_answered_without_scripts(running: Running, browser: httpx.AsyncClient) -> None:
    """It could not open the address of what is stored, and is not sent there."""
    header = await running.key("explain")
    await signed_in(browser, header["Authorization"].removeprefix("Bearer "))
    token = re.findall(r'name="csrf" value="([^"]+)"', (await browser.get("/")).text)[0]
    form = ASKED | {"csrf": token, "other_method": "gradient"}
    answer = await browser.post("/explorer/prompt", data=form, headers=HOME)
    assert answer.status_code == 200 and answer.text.count('<article class="map"') == 2
    assert "this answer has no address" in answer.text and "Link to this" not in answer.text
    assert 'name="prompt"' in answer.text and PROMPT in answer.text
    swapped = await browser.post("/explorer/prompt", data=form, headers=HOME | {"HX-Request": "true"})
    assert swapped.status_code == 200 and "hx-push-url" not in swapped.headers


async def test_every_page_has_the_policy(running: Running, browser: httpx.AsyncClient, csrf: str) -> None:
    gone = f"/explorer/prompt/{UUID(int=0)}"
    for path, status in (("/", 200), ("/explorer/sign-in", 303), (gone, 404), ("/?model=<b>", 200)):
        answer = await browser.get(path)
        assert (answer.status_code, answer.headers["content-security-policy"]) == (status, POLICY), path
        assert answer.headers["cache-control"] == "no-store" and answer.headers["x-frame-options"] == "DENY"
        assert "<b>" not in answer.text
    async with browser_of(running) as stranger:
        assert (await stranger.get("/explorer/sign-in")).headers["content-security-policy"] == POLICY


async def test_static_files_are_those_and_no_others(browser: httpx.AsyncClient) -> None:
    for name, asset in assets().items():
        answer = await browser.get(f"/explorer/static/{name}?v={asset.digest}")
        assert answer.content == asset.content and "immutable" in answer.headers["cache-control"]
        assert (await browser.get(f"/explorer/static/{name}")).headers["cache-control"] == "no-cache"
    for name in ("..%2fpages.py", "%2e%2e%2fpages.py", "pages.py", "", "htmx.min.js%00"):
        assert (await browser.get(f"/explorer/static/{name}")).status_code == 404


@pytest.mark.parametrize(
    "next",
    [
        "//evil",
        "/\\evil",
        "https://evil",
        "javascript:alert(1)",
        "/explorer//evil",
        "/models",
        "/\n//evil",
        "",
        "/?a\r\nX: 1",
    ],
)
async def test_a_sign_in_leads_to_our_pages_alone(running: Running, next: str) -> None:
    async with browser_of(running) as browser:
        place = (await signed_in(browser, next=next)).headers["location"]
    assert place == local(next) and place.startswith("/") and not place.startswith("//") and "\n" not in place
    assert place == "/" or place.startswith("/explorer/")


async def test_questions_are_audited_and_counted_as_those_of_the_api(
    running: Running, browser: httpx.AsyncClient, csrf: str
) -> None:
    await browser.post("/explorer/prompt", data=ASKED | {"csrf": csrf, "factor": "0.7"}, headers=HOME)
    entries = (await running.client.get("/audit?limit=20")).json()["entries"]
    routes = {(each["method"], each["route"], each["kind"]) for each in entries}
    assert ("POST", "/explorer/prompt", "computation") in routes and ("POST", "/explorer/sign-in", "change") in routes


async def test_the_limits_of_a_key_hold_in_pages(running: Running, browser: httpx.AsyncClient) -> None:
    header = await running.key("admin", requests_per_minute=1)
    await signed_in(browser, header["Authorization"].removeprefix("Bearer "))
    token = re.findall(r'name="csrf" value="([^"]+)"', (await browser.get("/")).text)[0]
    answers = [
        await browser.post("/explorer/prompt", data=ASKED | {"csrf": token, "factor": factor}, headers=HOME)
        for factor in ("0.31", "0.32")
    ]
    assert [answer.status_code for answer in answers] == [303, 429] and "retry-after" in answers[1].headers
