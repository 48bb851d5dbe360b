"""Jobs in a browser: they are listed, go on while one looks, and end when they are cancelled."""

from __future__ import annotations

import re

import httpx
from playwright.sync_api import Page, Route, expect

from tests.explorer.conftest import Check, Watch

WORD = {"type": "word"}
LONG = "Anna lives in Oslo. Ben lives in Rome. "


def submitted(api: httpx.Client, count: int, **body: object) -> list[str]:
    asked = {"model": "demo-lm", "prompt": LONG * 4 + "Anna lives in", "target": " Oslo", "fresh": True, **body}
    ahead = {"Prefer": "respond-async"}
    return [str(api.post("/explain", json=asked, headers=ahead).json()["id"]) for _ in range(count)]


def test_a_job_goes_on_while_one_looks(page: Page, api: httpx.Client) -> None:
    (job,) = submitted(api, 1)
    page.goto("/explorer/jobs")
    row = page.locator(f"#job-{job}")
    expect(row.locator(".state")).to_have_text("succeeded")
    expect(row.locator(".words")).to_have_text(re.compile(r"^(\d+) of \1$"))
    (later,) = submitted(api, 1)
    expect(page.locator(f"#job-{later}")).to_be_visible(timeout=20_000)
    row.get_by_role("link", name="the answer").click()
    expect(page.locator("h1")).to_have_text("Why this was said")


def test_a_refused_stream_is_asked_for_again(page: Page, watch: Watch) -> None:
    """Later each time; and where the sign-in has ended, too: its page comes instead."""
    watch.expected += ["status of 503", "status of 429", "status of 401", "MIME type"]
    answers = [503, 429, 401, 200]

    def answer(route: Route) -> None:
        if answers:
            route.fulfill(status=answers.pop(0), content_type="text/html", body="not now", headers={"Retry-After": "1"})
        else:
            route.continue_()

    page.route("**/explorer/jobs/events*", answer)
    page.clock.install()
    page.goto("/explorer/jobs")
    for seconds in (5, 10, 20, 40):
        expect(page.locator("#status")).to_have_text(f"Progress is not live: it is asked for again in {seconds} s.")
        expect(page.locator("#jobs")).to_have_attribute("data-following", "no")
        page.clock.fast_forward(seconds * 1000)
    expect(page.locator("#jobs")).to_have_attribute("data-following", re.compile("yes|ended"))
    expect(page.locator("#status")).to_have_text("Progress is live again.")
    assert not answers


def test_a_job_is_followed_and_cancelled(page: Page, api: httpx.Client, fits: Check) -> None:
    """One by hand; the others from elsewhere, which the page shows by itself."""
    *others, last = submitted(api, 8, prompt=LONG * 20 + "Anna lives in", prompt_granularity=WORD, method="ablation")
    page.goto("/explorer/jobs")
    row = page.locator(f"#job-{last}")
    expect(row.locator(".state")).to_have_text(re.compile("queued|running"))
    expect(page.locator("#jobs")).to_have_attribute("data-following", "yes")
    fits(page)
    row.get_by_role("button", name="Cancel").click()
    expect(row.locator(".state")).to_have_text("cancelled")
    expect(row.get_by_role("button")).to_have_count(0)
    assert api.get(f"/jobs/{last}").json()["state"] == "cancelled"
    for job in others:
        api.delete(f"/jobs/{job}")
    for job in others:
        expect(page.locator(f"#job-{job} .state")).to_have_text(re.compile("cancelled|succeeded"))
        expect(page.locator(f"#job-{job}").get_by_role("button")).to_have_count(0)
    expect(page.locator("#status")).to_have_text(re.compile("^explain a prompt, demo-lm: (cancelled|succeeded)$"))
    page.get_by_label("State").select_option("cancelled")
    expect(page.locator("#status")).to_have_text("The list is below.")
    expect(page.locator(".state").first).to_have_text("cancelled")
    assert {each.inner_text() for each in page.locator(".state").all()} == {"cancelled"}
