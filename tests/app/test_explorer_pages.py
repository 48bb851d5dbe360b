"""The explorer's pages of training data, jobs and stored explanations, as a browser without a script asks for them."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from itertools import count
from uuid import UUID

import httpx
import pytest

from app.differences import MOST_WORDS
from app.explorer.jobs import END, SILENT_LOOKS, SOON, changes
from app.influence import KIND
from storage import api_keys, explanations, jobs
from storage.errors import DatabaseUnavailable
from tests.app.conftest import ADMIN_KEY, PROMPT, Running, Start
from tests.app.test_export import RESULT, traced
from tests.app.test_heatmap import EVIL, plain
from tests.app.test_limits import hold
from tests.storage.test_tenancy import explanation

pytestmark = pytest.mark.anyio

PAGES = ("/explorer/training", "/explorer/jobs", "/explorer/stored")


@pytest.fixture(scope="module")
async def browser(running: Running) -> AsyncIterator[httpx.AsyncClient]:
    """Signed in, with the cookie alone."""
    async with browsing(running, ADMIN_KEY) as client:
        yield client


def browsing(running: Running, key: str) -> SignedIn:
    return SignedIn(running, key)


class SignedIn(httpx.AsyncClient):
    """A client that signs in first."""

    def __init__(self, running: Running, key: str) -> None:
        super().__init__(transport=httpx.ASGITransport(running.app), base_url="http://whence")
        self.key = key

    async def __aenter__(self) -> SignedIn:
        await super().__aenter__()
        form = await self.get("/explorer/sign-in")
        word = re.search(r'name="word" value="([^"]+)"', form.text)
        assert word is not None
        answer = await self.post("/explorer/sign-in", data={"key": self.key, "word": word[1], "next": "/"})
        assert answer.status_code == 303, answer.text
        return self

    async def csrf(self) -> str:
        found = re.search(r'name="csrf" value="([^"]+)"', (await self.get("/")).text)
        assert found is not None
        return found[1]


async def stored(running: Running, *results: dict[str, object], lift: float = 7.5) -> str:
    content = traced(*results, lift=lift).content
    fields = explanation(kind=KIND, request=traced().request, attribution=content, prompt=EVIL, target="said")
    await explanations.add(running.server.explainer.database, "default", **fields)
    return str(fields["id"])


async def test_text_is_nothing_but_text_on_every_page(running: Running, browser: httpx.AsyncClient) -> None:
    pairs = await stored(running, RESULT)
    asked = {"prompt": EVIL, "target": "<i>", "target_granularity": "token"}
    ids = [pairs, (await running.explain(**asked)).json()["id"]]
    places = [*PAGES, f"/explorer/training/{pairs}", *(f"/explorer/stored/{id}" for id in ids)]
    for place in [*places, "/explorer/stored?search=%3Cscript%3E&model=%3Cscript%3E"]:
        answer = await browser.get(place)
        assert answer.status_code == 200 and "script-src 'self'" in answer.headers["content-security-policy"], place
        assert set(re.findall(r"<script[^>]*>", answer.text)) <= {
            tag for tag in re.findall(r"<script[^>]*>", answer.text) if 'src="/explorer/static/' in tag
        }
        assert not re.search(r"<i>|<b>m|onerror=|style=|<[^>]* on\w+=", answer.text), place
    assert EVIL in plain((await browser.get(f"/explorer/stored/{pairs}")).text)


async def test_files_cannot_run_anything(running: Running, browser: httpx.AsyncClient) -> None:
    id = await stored(running, RESULT)
    for form in ("json", "csv", "html", "svg"):
        answer = await browser.get(f"/explorer/stored/{id}/export", params={"format": form})
        assert answer.headers["content-disposition"] == f'attachment; filename="{id}.{form}"'
        assert "script-src" not in answer.headers["content-security-policy"]
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    many = await browser.get("/explorer/stored/export", params={"format": "csv", "search": "said"})
    assert many.status_code == 200 and id in many.text


async def test_a_filter_keeps_what_is_like_it(running: Running, browser: httpx.AsyncClient) -> None:
    low = RESULT | {"influence_level": "low", "file_id": f"file-{UUID(int=3)}", "messages": "Q: lowest\nA: x"}
    id = await stored(running, RESULT, low)
    place = f"/explorer/training/{id}"
    both, one, none = [
        (await browser.get(place, params=params)).text
        for params in ({}, {"level": "low"}, {"level": "low", "file": "file-1"})
    ]
    assert both.count("<article") == 2 and one.count("<article") == 1 and "lowest" in plain(one)
    assert "None of the 2 pairs is like this." in none
    assert (await browser.get(place, headers={"HX-Request": "true"})).text.count("<html") == 0
    empty = await stored(running, lift=0.2)
    assert "Fine-tuning did not make this answer" in (await browser.get(f"/explorer/training/{empty}")).text


async def test_a_map_is_shown_as_one(running: Running, browser: httpx.AsyncClient) -> None:
    id = (await running.explain()).json()["id"]
    answer = await browser.get(f"/explorer/training/{id}")
    assert (answer.status_code, answer.headers["location"]) == (303, f"/explorer/stored/{id}")


async def test_what_was_asked_is_the_same_at_the_api(running: Running, browser: SignedIn) -> None:
    """A model without training data: the refusal of the API, in words, and in the page."""
    asked = {"model": "tiny-lm", "question": "Who?", "csrf": await browser.csrf()}
    page = await browser.post("/explorer/training", data=asked)
    api = await running.client.post("/influence", json={"model_id": "tiny-lm", "question": "Who?"})
    assert page.status_code == api.status_code == 400
    assert api.json()["code"] in page.text and api.json()["detail"] in plain(page.text)
    fragment = await browser.post("/explorer/training", data=asked, headers={"HX-Request": "true"})
    assert fragment.headers["hx-retarget"] == "#problem" and "<html" not in fragment.text
    blank = await browser.post("/explorer/training", data=asked | {"question": " "})
    assert blank.status_code == 400 and "must not be blank" in blank.text


async def test_a_model_that_is_gone_is_not_taken_for_another(running: Running, browser: SignedIn) -> None:
    """Forms name it, and asking it is refused in words."""
    id = await stored(running, RESULT)
    for place, name in (("/?model=gone", "gone"), (f"/explorer/training/{id}", "m")):
        choices = re.findall(r'<select id="model".*?</select>', (await browser.get(place)).text)
        assert choices[0].count(" selected") == 1
        assert f'<option value="{name}" selected>{name} (not available)</option>' in choices[0]
    for place in ("/", "/?model=tiny-lm"):
        assert "(not available)" not in (await browser.get(place)).text
    csrf = await browser.csrf()
    for path, asked in (("prompt", {"prompt": "a", "target": " b"}), ("training", {"question": "Who?"})):
        answer = await browser.post(f"/explorer/{path}", data={"csrf": csrf, "model": "gone", **asked})
        assert answer.status_code == 404 and "is served here" in answer.text, path


async def test_forms_of_others_do_nothing(running: Running, browser: SignedIn) -> None:
    job = await waiting(running)
    csrf = await browser.csrf()
    for headers, data in (
        ({}, {}),
        ({}, {"csrf": csrf[:-1] + "x"}),
        ({"Origin": "http://evil"}, {"csrf": csrf}),
        ({"Sec-Fetch-Site": "same-site"}, {"csrf": csrf}),
    ):
        for place in (f"/explorer/jobs/{job}/cancel", "/explorer/training"):
            assert (await browser.post(place, data=data, headers=headers)).status_code == 403
    assert (await running.client.get(f"/jobs/{job}")).json()["state"] == "queued"
    assert (await browser.get(f"/explorer/jobs/{job}/cancel")).status_code == 405
    done = await browser.post(f"/explorer/jobs/{job}/cancel", data={"csrf": csrf})
    assert (done.status_code, done.headers["location"]) == (303, f"/explorer/jobs/{job}")
    assert (await running.client.get(f"/jobs/{job}")).json()["state"] == "cancelled"
    again = await browser.post(f"/explorer/jobs/{job}/cancel", data={"csrf": csrf})
    assert again.status_code == 303  # it is cancelled, as was asked
    entries = (await running.client.get("/audit", params={"route": "/explorer/jobs/{id}/cancel"})).json()["entries"]
    assert {each["kind"] for each in entries} == {"change"}


async def waiting(running: Running) -> str:
    """A job that nobody looks at."""
    id = explanations.new_id()
    async with running.server.explainer.database.transaction(tenant="default") as session:
        request = {"question": {}, "fresh": True}
        await jobs.add(session, id=id, kind="explain", model=EVIL, request=request, seconds=3600)
    return str(id)


async def test_jobs_are_listed_and_followed_to_their_end(running: Running, browser: SignedIn) -> None:
    job = await waiting(running)
    listed = await browser.get("/explorer/jobs?state=queued")
    assert EVIL in plain(listed.text) and f"/explorer/jobs/{job}/cancel" in listed.text
    await running.client.delete(f"/jobs/{job}")
    first, *events, last, _ = (await browser.get("/explorer/jobs/events")).text.split("\n\n")
    assert (first, last) == ("retry: 1000", "retry: 3000")  # there may be new jobs later
    told = [json.loads(each.removeprefix("data: ")) for each in events]
    assert (told[0]["id"], told[0]["state"], told[0]["finished"]) == (job, "cancelled", True)
    assert SILENT_LOOKS > 1


async def test_one_job_is_followed_on_its_page(running: Running, browser: SignedIn) -> None:
    """However many jobs are newer."""
    job, other = await waiting(running), await waiting(running)
    place = f"/explorer/jobs/events?job={job}"
    assert f'data-live="{place}"' in (await browser.get(f"/explorer/jobs/{job}")).text
    await running.client.delete(f"/jobs/{job}")
    events = (await browser.get(place)).text.split("\n\n")
    assert events[-2] == "event: end\ndata: {}" and len(events) == 4
    assert json.loads(events[1].removeprefix("data: "))["id"] == job
    assert (await browser.get(f"/explorer/jobs/events?job={UUID(int=1)}")).status_code == 404
    await running.client.delete(f"/jobs/{other}")


async def test_a_stream_does_not_outlive_its_key(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends without the word that it is over, and the next one is refused."""
    monkeypatch.setattr("app.explorer.jobs.MOST_SECONDS", 1.5)
    monkeypatch.setattr("app.explorer.jobs.monotonic", count().__next__)  # a second from one look to the next
    job, secret = await waiting(running), (await running.key("read"))["Authorization"].removeprefix("Bearer ")
    async with browsing(running, secret) as client:
        answer = await client.get("/explorer/jobs/events")
        assert job in answer.text and "event: end" not in answer.text and "retry: 3000" not in answer.text
        database = running.server.explainer.database
        row = await api_keys.find_by_secret(database, secret)
        assert row is not None
        async with database.transaction(tenant="default") as session:
            await api_keys.revoke(session, row.id)
        assert (await client.get("/explorer/jobs/events")).status_code == 303
    await running.client.delete(f"/jobs/{job}")


async def test_a_stream_waits_for_the_database_and_ends_with_the_server() -> None:
    looks: list[tuple[()] | None] = [None, ()]

    async def look() -> tuple[()]:
        found = looks.pop(0)
        if found is None:
            raise DatabaseUnavailable("away")
        return found

    assert [each async for each in changes(look, lambda: False, END)] == [SOON, END] and not looks
    assert [each async for each in changes(look, lambda: True, END)] == [SOON]


async def test_what_goes_on_leads_to_its_job(start: Start, running: Running) -> None:
    async with start(deadline_seconds=0.2) as hurried, browsing(hurried, ADMIN_KEY) as client:
        await hurried.explain()  # the model is loaded
        release = await hold(hurried)
        asked = {"csrf": await client.csrf(), "model": "tiny-lm", "prompt": "And then?", "target": " Oslo"}
        late = await client.post("/explorer/prompt", data=asked)
        found = re.search(r'href="(/explorer/jobs/[^"]+)"', late.text)
        assert late.status_code == 409 and found is not None, late.text
        assert "explain a prompt" in (await client.get(found[1])).text
        release.set()


async def test_texts_too_long_to_be_compared_are_called_so(running: Running, browser: SignedIn) -> None:
    long = RESULT | {"messages": "Q: " + "mill " * MOST_WORDS + "\nA: x"}
    both = [(await browser.get(f"/explorer/training/{await stored(running, each)}")).text for each in (long, RESULT)]
    assert [text.count("too long to be compared") for text in both] == [1, 0]


async def test_a_key_sees_and_does_what_its_scopes_let_it(running: Running) -> None:
    job, id = await waiting(running), (await running.explain(prompt=PROMPT)).json()["id"]
    for scope, opened in (("read", 200), ("explain", 403), ("ingest", 403)):
        secret = (await running.key(scope))["Authorization"].removeprefix("Bearer ")
        async with browsing(running, secret) as client:
            for place in ("/explorer/stored", "/explorer/jobs", f"/explorer/stored/{id}", "/explorer/jobs/events"):
                if not (scope == "read" and place.endswith("events")):  # which would be followed to its end
                    assert (await client.get(place)).status_code == opened, (scope, place)
            training = (await client.get("/explorer/training")).status_code
            assert training == (403 if scope == "ingest" else 200)
            if scope != "ingest":
                sent = {"csrf": await client.csrf(), "model": "tiny-lm", "question": "Who?"}
                expected = 403 if scope == "read" else 400
                assert (await client.post("/explorer/training", data=sent)).status_code == expected
                if scope == "read":
                    assert (await client.post(f"/explorer/jobs/{job}/cancel", data=sent)).status_code == 403
    await running.client.delete(f"/jobs/{job}")


@pytest.mark.parametrize(
    "place",
    ["?since=yesterday", "?cursor=x", "?search=" + "x" * 1001, "/export?format=exe", "/export?since=1",
     "?until=9999-12-31", "/export?until=9999-12-31"],
)  # fmt: skip
async def test_what_cannot_be_meant_is_told(browser: SignedIn, place: str) -> None:
    answer = await browser.get(f"/explorer/stored{place}")
    assert answer.status_code == 400 and "INVALID" in answer.text


async def test_what_is_not_there_is_not_there(browser: SignedIn) -> None:
    for place in ("/explorer/stored/{}", "/explorer/stored/{}/export", "/explorer/training/{}", "/explorer/jobs/{}"):
        for id in (UUID(int=1), "x"):
            assert (await browser.get(place.format(id))).status_code == 404
