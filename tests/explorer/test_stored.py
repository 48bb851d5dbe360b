"""Stored explanations in a browser: found again, opened, taken away; and text that is nothing but text."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.explorer.conftest import Check

EVIL = "<script>document.title='evil'</script><img src=x onerror=\"document.title='evil'\"> lantern & \"quoted\""


@pytest.fixture(scope="module")
def ids(api: httpx.Client) -> dict[str, str]:
    """One explanation of text that would like to be more, and one of training data."""
    asked = {"model": "demo-lm", "prompt": f"{EVIL} Anna lives in", "target": " <b>Oslo</b>"}
    question = {"model_id": "demo-qa", "question": "Which person is the town doctor?"}
    first, second = api.post("/explain", json=asked).json()["id"], api.post("/influence", json=question).json()["id"]
    return {"map": first, "pairs": second}


def search(page: Page, words: str) -> None:
    page.goto("/explorer/stored")
    page.get_by_label("Words of the prompt or the target").fill(words)
    page.get_by_role("button", name="Search").click()
    page.wait_for_url("**/explorer/stored?search=**")


def test_text_is_nothing_but_text(page: Page, ids: dict[str, str], fits: Check) -> None:
    search(page, "LANTERN &")
    fits(page)
    entry = page.locator(".records a").first
    expect(entry).to_contain_text(EVIL)
    entry.click()
    expect(page.locator("h1")).to_have_text("Why this was said")
    text = page.locator(".map p.text").nth(1)
    text.evaluate("text => text.querySelectorAll('span').forEach(each => each.remove())")  # the scores, as told aloud
    assert EVIL in str(text.text_content())
    assert page.locator("main script, main img").count() == 0
    assert "evil" not in page.title()
    fits(page)


def test_a_search_that_finds_nothing_says_so(page: Page) -> None:
    search(page, "words that nobody has said")
    expect(page.locator("#found")).to_have_text("No stored explanation is like this.")


def test_filters_go_together(page: Page, ids: dict[str, str]) -> None:
    page.goto("/explorer/stored")
    page.get_by_label("Kind").select_option("influence")
    page.wait_for_url("**kind=influence**")
    page.get_by_label("Model").select_option("demo-qa")
    page.wait_for_url("**model=demo-qa**")
    expect(page.locator(f"a[href='/explorer/stored/{ids['pairs']}']")).to_be_visible()
    assert page.locator(f"a[href='/explorer/stored/{ids['map']}']").count() == 0
    page.get_by_label("To (UTC)").fill("2020-01-01")
    expect(page.locator("#found")).to_contain_text("No stored explanation is like this.")


def test_pairs_are_shown_with_their_place(page: Page, ids: dict[str, str], fits: Check) -> None:
    page.goto(f"/explorer/stored/{ids['pairs']}")
    expect(page.locator("article.pair h3").first).to_contain_text(", line ")
    fits(page)
    page.get_by_role("link", name="Look at the wording").click()
    expect(page.locator("article.pair").first).to_be_visible()


def download(page: Page, name: str, folder: Path) -> Path:
    with page.expect_download() as found:
        page.get_by_role("link", name=name, exact=True).first.click()
    target = folder / found.value.suggested_filename
    found.value.save_as(target)
    return target


def test_one_and_many_are_taken_away(page: Page, ids: dict[str, str], tmp_path: Path) -> None:
    page.goto(f"/explorer/stored/{ids['map']}")
    assert json.loads(download(page, "JSON", tmp_path).read_text())["id"] == ids["map"]
    with download(page, "CSV", tmp_path).open(newline="") as file:
        assert {row["explanation"] for row in csv.DictReader(file)} == {ids["map"]}
    assert "<script" not in download(page, "HTML", tmp_path).read_text()
    assert download(page, "SVG", tmp_path).read_text().startswith("<svg")
    search(page, "lantern")
    many = json.loads(download(page, "JSON", tmp_path).read_text())["explanations"]
    assert ids["map"] in [each["id"] for each in many] and all("lantern" in json.dumps(each) for each in many)
    with zipfile.ZipFile(download(page, "SVG", tmp_path)) as archive:
        assert f"{ids['map']}.svg" in archive.namelist()


def test_the_page_alone_may_be_opened_from_the_disk(page: Page, ids: dict[str, str], tmp_path: Path) -> None:
    page.goto(f"/explorer/stored/{ids['pairs']}")
    text = download(page, "HTML", tmp_path).read_text()
    assert "//" not in text.replace("http://www.w3.org/2000/svg", "")
