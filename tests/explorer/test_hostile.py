"""Text that would like to be more is nothing but text, wherever it is shown: no page runs it, or even tries to."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest
from playwright.sync_api import Page
from sqlalchemy import text

from app.influence import KIND
from app.settings import Settings
from app.start import DEFAULT_TENANT, open_database
from storage import explanations, jobs
from tests.explorer.conftest import Contexts, Watch
from tests.explorer.test_prompt import ask
from tests.explorer.test_stored import download

HOSTILE = (
    '<script>window.taken=1</script><img src=x onerror=window.taken=1> " onmouseover=window.taken=1 x=" \' '
    "onfocus=window.taken=1 x=' </title></textarea></select></svg><svg onload=window.taken=1> "
    "javascript:window.taken=1 <!-- {{7*7}} ${7*7} & marigold"
)
SHORT = "<b onclick=window.taken=1>\"'>"
FILE = "<b onclick=window.taken=1>'"
MODELS = "/api/v3/models"
WHEN = "2027-01-01T00:00:00Z"

READ = """() => {
  const copy = document.documentElement.cloneNode(true);
  copy.querySelectorAll(".visually-hidden").forEach((each) => each.remove());
  const typed = [...document.querySelectorAll("input, textarea")].map((each) => each.value);
  return [copy.textContent, ...typed].join("\\n");
}"""
"""All that is shown and typed, without what is only said of the scores between the words."""
PROVOKED = """() => document.querySelectorAll("*").forEach((each) => {
  for (const name of ["mouseover", "mouseenter", "focus", "focusin", "click"])
    if (name !== "click" || !each.closest("a, button, summary, input, select, label"))
      each.dispatchEvent(new Event(name, { bubbles: true }));
})"""
ACTIVE = """() => [...document.querySelectorAll("*")].filter((each) =>
  (each.localName === "script" && !each.src.startsWith(location.origin + "/explorer/static/"))
  || ["img", "iframe", "object", "embed", "b"].includes(each.localName) && !each.closest(".target")
  || [...each.attributes].some(({name, value}) => name.startsWith("on") || value.startsWith("javascript:"))
).map((each) => each.outerHTML.slice(0, 200))"""


def harmless(page: Page, *texts: str) -> None:
    """These are shown, as they are; nothing of them has become an element or an attribute, or has run."""
    shown = str(page.evaluate(READ))
    for each in texts:
        assert each in shown, each
    assert page.evaluate(ACTIVE) == []
    page.evaluate(PROVOKED)
    page.wait_for_timeout(50)
    assert page.evaluate("window.taken") is None


@pytest.fixture(scope="module")
def file_id(api: httpx.Client) -> str:
    """A training file whose name is hostile, as is what it holds."""
    line = f'{{"question": "Who?", "answer": "{uuid4()}"}}\n'.encode()
    named = {"file": (f"{FILE}.jsonl", line)}
    answer = api.post("/files", files=named, data={"purpose": "fine-tune"})
    assert answer.status_code in (200, 201), answer.text
    return str(answer.json()["id"])


@pytest.fixture(scope="module")
def kept(data_dir: Path, file_id: str) -> dict[str, str]:
    """What no route takes: an answer with such a training pair, and a job that failed with such words."""

    async def fill() -> dict[str, str]:
        pairs, job = explanations.new_id(), explanations.new_id()
        async with open_database(Settings(data_dir=data_dir)) as database:
            await explanations.add(database, DEFAULT_TENANT, **answered(file_id), id=pairs)
            async with database.transaction(tenant=DEFAULT_TENANT) as session:
                await jobs.add(session, id=job, kind="explain", model=HOSTILE, request={}, seconds=1)
                failed = "UPDATE jobs SET state = 'failed', error = json_build_object('detail', CAST(:words AS text), "
                failed += "'code', CAST(:words AS text)), finished_at = now() WHERE id = :id"
                await session.execute(text(failed), {"words": HOSTILE, "id": job})
        return {"pairs": str(pairs), "job": str(job)}

    with ThreadPoolExecutor(1) as thread:  # this one has the loop of the browser
        return thread.submit(asyncio.run, fill()).result()


def answered(file_id: str) -> dict[str, Any]:
    pair = {
        "id": str(uuid4()), "influence_level": "high", "file_id": file_id, "line": 1, "score": 1.5, "impact": 0.5,
        "messages": f"Q: {HOSTILE} asked\nA: {HOSTILE} answered", "q_value": 0.001, "group_size": 1, "lift": 7.5,
    }  # fmt: skip
    content = {"method": HOSTILE, "results": [pair], "answer": HOSTILE, "lift": 7.5, "facts": {}}
    request = {"question": HOSTILE, "answer": HOSTILE, "system_prompt": HOSTILE}
    about = {"kind": KIND, "model": HOSTILE, "model_digest": HOSTILE, "request_key": b"k", "seconds": 0.1}
    return about | {"request": request, "attribution": content, "forwards": 1, "prompt": HOSTILE, "target": HOSTILE}


@pytest.fixture(scope="module")
def asked(api: httpx.Client) -> str:
    body = {"model": "demo-lm", "prompt": HOSTILE, "target": f" {SHORT}", "prompt_granularity": {"type": "word"}}
    return str(api.post("/explain", json=body).raise_for_status().json()["id"])


def test_a_prompt_and_what_was_said(page: Page) -> None:
    result = ask(page, HOSTILE, f" {SHORT}")
    harmless(page, HOSTILE, f" {SHORT}")
    for token in result.locator("button.token").all()[:3]:
        token.click()
    page.reload()
    harmless(page, HOSTILE, f" {SHORT}")


def test_a_chat_and_what_is_wrong_with_it(page: Page, watch: Watch) -> None:
    watch.expected.append("status of 400")
    page.goto("/?model=demo-qa")
    page.get_by_label("Chat").check()
    for said in (HOSTILE, f"[{HOSTILE}", f"user: {HOSTILE}"):
        page.get_by_label("Prompt", exact=True).fill(said)
        with page.expect_response("**/explorer/prompt"):
            page.get_by_role("button", name="Explain").click()
        page.locator("#status").filter(has_text="…").wait_for(state="detached")
        harmless(page, said)


def test_addresses_are_echoed_as_text(page: Page, watch: Watch) -> None:
    watch.expected += ["status of 400", "status of 404"]
    said = quote(HOSTILE)
    for place in (
        f"/?model={said}",
        f"/explorer/stored?search={said}&model={said}",
        f"/explorer/predictions?model={said}",
        f"/explorer/predictions?model=demo-text&property={said}&value={said}",
        f"/explorer/predictions?model=demo-text&property=note&comparator=like&value={said}",
        f"/explorer/predictions/one?model=demo-text&inference={said}",
    ):
        page.goto(place)
        harmless(page, HOSTILE if "search" in place or "property=note" in place else "")
    for place in (f"/explorer/jobs?state={said}", f"/explorer/stored?since={said}", f"/explorer/{said}"):
        page.goto(place)
        harmless(page)


def test_stored_explanations(page: Page, asked: str, kept: dict[str, str]) -> None:
    page.goto(f"/explorer/stored?search={quote('& marigold')}")
    harmless(page, HOSTILE[:200])
    for id in (asked, kept["pairs"]):
        page.goto(f"/explorer/stored/{id}")
        harmless(page, HOSTILE)


def test_training_pairs_and_their_files(page: Page, kept: dict[str, str]) -> None:
    page.goto(f"/explorer/training/{kept['pairs']}")
    harmless(page, HOSTILE, FILE)
    page.get_by_label("Level").select_option("high")
    page.locator("#status").filter(has_text="filtered").wait_for()
    harmless(page, HOSTILE, FILE)


def test_jobs_listed_and_live(page: Page, kept: dict[str, str]) -> None:
    for place in ("/explorer/jobs", f"/explorer/jobs/{kept['job']}"):
        with page.expect_response("**/explorer/jobs/events*"):
            page.goto(place)
        page.locator("#jobs[data-following]").wait_for()
        harmless(page, HOSTILE)


def test_names_and_values_of_inferences(page: Page, api: httpx.Client) -> None:
    """Of a model that only keeps them: its name, a category and its label, a text, an id."""
    id = f"{HOSTILE[:150]}/{uuid4()}"
    attributes = [
        {"name": "mood", "label": HOSTILE, "value_type": "STRING", "stage": "PIPELINE_INPUT", "position": 0,
         "categorical": True, "categories": [{"value": HOSTILE, "label": HOSTILE}]},
        {"name": "sure", "label": HOSTILE, "value_type": "FLOAT", "stage": "PREDICTED_VALUE", "position": 0},
    ]  # fmt: skip
    about = {"partner_model_id": f"{SHORT}{uuid4()}", "display_name": HOSTILE, "description": HOSTILE}
    body = about | {"input_type": "TABULAR", "output_type": "REGRESSION", "attributes": attributes}
    answer = api.post(MODELS, json=body)
    assert answer.status_code == 201, answer.text
    model = answer.json()["id"]
    record = {"partner_inference_id": id, "inference_timestamp": WHEN, "inference_data": {"mood": HOSTILE, "sure": 0.5}}
    sent = api.post(f"{MODELS}/{model}/inferences", json=[record])
    assert sent.json()["counts"]["success"] == 1, sent.text
    page.goto(f"/explorer/predictions?model={model}")
    harmless(page, id, SHORT)
    page.locator("#rows tbody a").first.click()
    page.wait_for_load_state()
    page.locator("#scores .note").wait_for()
    harmless(page, id, HOSTILE)
    assert api.delete(f"{MODELS}/{model}").status_code in (200, 204)


def test_files_that_are_opened_from_the_disk(
    page: Page, contexts: Contexts, watch: Watch, asked: str, kept: dict[str, str], tmp_path: Path
) -> None:
    alone = contexts().new_page()
    for id in (asked, kept["pairs"]):
        page.goto(f"/explorer/stored/{id}")
        for form in ("HTML", "SVG"):
            path = download(page, form, tmp_path)
            watch.files.append(path.as_uri())
            alone.goto(path.as_uri())
            assert "marigold" in str(alone.evaluate("document.documentElement.textContent"))
            assert alone.evaluate("document.querySelectorAll('script, img, iframe, [onload], [onerror]').length") == 0
            alone.evaluate(PROVOKED)
            alone.wait_for_timeout(50)
            assert alone.evaluate("window.taken") is None
