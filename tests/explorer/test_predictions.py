"""Stored inferences in a browser: found, looked at one by one and all together, and changed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest
from playwright.sync_api import Locator, Page

from tests.demo_server import INFERENCES
from tests.explorer.conftest import Check, Watch
from tests.explorer.test_hostile import HOSTILE, MODELS, SHORT, WHEN, harmless

PATH = "/explorer/predictions"
TABULAR, TEXTS = f"{PATH}?model=demo-tabular", f"{PATH}?model=demo-text"
PICTURE = {"Accept": "image/svg+xml"}


@pytest.fixture(scope="session")
def explained(api: httpx.Client) -> None:
    """Waits until the scores of the demo's inferences are stored."""
    for _ in range(1200):
        jobs = api.get("/jobs", params={"limit": 100}).json()["jobs"]
        mine = [job for job in jobs if job["kind"] == "explain-inferences"]
        if len({job["model"] for job in mine if job["state"] == "succeeded"}) >= 2:
            return
        assert not [job for job in mine if job["state"] == "failed"]
        time.sleep(0.1)
    raise AssertionError("the demo's inferences are not explained")


pytestmark = [pytest.mark.usefixtures("explained"), pytest.mark.timeout(600)]  # the demo starts, and explains its rows


def drawn(place: Locator) -> str:
    """The markup of the picture in there, once it is there."""
    svg = place.locator("svg.plot")
    svg.wait_for()
    return str(svg.inner_html())


def texts(markup: str) -> list[str]:
    """The words of a picture, tooltips included, in order."""
    return [word for word in re.findall(r">([^<]+)<", markup) if word.strip()]


def of_the_api(api: httpx.Client, place: Locator, id: str) -> list[str]:
    """The words of the picture that the API draws for the query the page shows."""
    query = json.loads(place.locator(f"#{id}-json").text_content() or "")
    answer = api.post("/query", json=query, headers=PICTURE)
    assert answer.status_code == 200, answer.text
    return texts(re.sub(r"<style>.*</style>", "", answer.text, flags=re.DOTALL))


def choose(page: Page, label: str, value: str) -> None:
    with page.expect_response(lambda answer: "/explorer/predictions?" in answer.url):
        page.get_by_label(label, exact=True).first.select_option(value)


def test_pictures_of_many_are_those_of_the_query_beside_them(page: Page, api: httpx.Client, fits: Check) -> None:
    page.goto(TABULAR)
    found = page.locator("#found")
    titles = {"beeswarm": "Scores for malignant, shap", "regional": "Mean size", "time": "Importance over time"}
    for key, title in titles.items():
        if key != "beeswarm":
            choose(page, "Picture", key)
            page.locator("#found svg.plot title").first.filter(has_text=title).wait_for(state="attached")
            assert f"picture={key}" in page.url
        words = texts(drawn(found))
        assert title in words[0] and "worst_concave" not in words
        assert words == of_the_api(api, found, "picture")
        if key == "beeswarm":
            fits(page)
    query = json.loads(page.locator("#picture-json").text_content() or "")
    times = {row["time"] for row in api.post("/query", json=query).json()["query_result"]}
    assert len(times) > 20 and page.locator("#found circle.mark").count() == 6 * len(times)


def test_the_demo_has_as_many_inferences_as_it_was_asked_for(api: httpx.Client) -> None:
    (model,) = [each for each in api.get(MODELS).json() if each["partner_model_id"] == "demo-tabular"]
    answer = api.post("/query", json={"model_id": model["id"], "select": [{"function": "count"}]})
    assert answer.json()["query_result"] == [{"count": INFERENCES}]


def test_words_that_matter(page: Page, api: httpx.Client) -> None:
    page.goto(TEXTS)
    words = texts(drawn(page.locator("#found")))
    assert words[0].startswith("Mean size of scores for urgent, lime")
    assert words == of_the_api(api, page.locator("#found"), "picture")
    assert page.get_by_label("Picture", exact=True).locator("option").all_text_contents() == [
        "Words that matter", "Importance over time",
    ]  # fmt: skip


def test_a_filter_narrows_picture_and_table(page: Page, api: httpx.Client) -> None:
    page.goto(TABULAR)
    assert page.locator("#rows tbody tr").count() == 25
    page.get_by_role("link", name="Next page").click()
    page.get_by_text("Page 2", exact=True).wait_for()
    first = page.locator("#rows tbody th").first.inner_text()
    page.get_by_label("Property").first.select_option("malignant")
    page.get_by_label("is", exact=True).first.select_option("gte")
    page.get_by_label("Value").first.fill("0.99")
    page.get_by_role("button", name="Look").click()
    page.wait_for_url("**value=0.99**")
    query = json.loads(page.locator("#rows-json").text_content() or "")
    rows = api.post("/query", json=query).json()["query_result"]
    assert all(row["malignant"] >= 0.99 for row in rows)
    shown = page.locator("#rows tbody th").all_inner_texts()
    assert shown == [row["partner_inference_id"] for row in rows][:25] and first not in shown[:1]
    address = page.url
    page.goto(address)  # a permalink
    assert page.locator("#rows tbody th").all_inner_texts() == shown
    assert page.get_by_label("Value").first.input_value() == "0.99"


def test_what_is_wrong_or_missing_is_said(page: Page, watch: Watch, fits: Check) -> None:
    watch.expected += ["status of 400", "status of 404", "Response Status Error Code 400"]
    page.goto(TABULAR)
    page.get_by_label("Property").first.select_option("malignant")
    page.get_by_label("Value").first.fill("much")
    page.get_by_role("button", name="Look").click()
    problem = page.get_by_role("alert").filter(has_text="INVALID_REQUEST")
    problem.wait_for()
    page.get_by_label("Value").first.fill("2")
    page.get_by_role("button", name="Look").click()
    page.get_by_text("No inference passes this filter.").wait_for()
    page.get_by_text("no rows answer this query: there is nothing to draw").wait_for()
    for path in ("/explorer/predictions?model=nobody", "/explorer/predictions/one?model=demo-text&inference=nobody"):
        answer = page.goto(path)
        assert answer is not None and answer.status == 404
        fits(page)


def test_one_row_as_waterfall_and_bars(page: Page, api: httpx.Client, fits: Check) -> None:
    page.goto(TABULAR)
    page.locator("#rows tbody a").first.click()
    bars, steps = page.locator("#scores"), page.locator("#waterfall")
    assert texts(drawn(bars)) == of_the_api(api, bars, "scores")
    asked = json.loads(steps.locator("#waterfall-json").text_content() or "")
    answer = api.get(asked["path"], params=asked["query"], headers=asked["headers"])
    alone = re.sub(r"<style>.*</style>", "", answer.text, flags=re.DOTALL)
    assert texts(drawn(steps)) == texts(alone)
    output = float(re.findall(r"output: ([\d.e-]+)", drawn(steps))[0])
    row = {each.locator("th").inner_text(): each.locator("td") for each in page.locator("#values ~ * tr").all()}
    assert "mean_radius" in row
    shown = page.locator(".outputs strong").first.inner_text()
    assert output == pytest.approx(float(shown), abs=1e-5)
    fits(page)


def test_a_line_for_a_shell_works(page: Page, api: httpx.Client) -> None:
    page.goto(f"{TABULAR}&picture=regional")
    line = page.locator("#picture-line").text_content() or ""
    key = api.headers["authorization"].removeprefix("Bearer ")
    done = subprocess.run(
        ["sh", "-c", line], env={**os.environ, "KEY": key}, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("<svg") and "Mean size of scores" in done.stdout


def test_sliders_change_the_answer_as_they_move(page: Page, api: httpx.Client, fits: Check) -> None:
    page.goto("/explorer/predictions/one?model=demo-tabular&inference=patient-0001")
    page.locator("#waterfall svg").wait_for()
    slider = page.get_by_role("slider", name="mean_concave_points")
    with page.expect_response("**/what-if") as told:
        slider.evaluate("each => { each.value = 0.15; each.dispatchEvent(new Event('input', {bubbles: true})) }")
    assert told.value.status == 200
    outcome = page.locator("#outcome tr.chosen")
    outcome.wait_for()
    assert page.locator("output", has_text="0.15").count() == 1
    body = json.loads(page.locator("#trial-json").text_content() or "")
    given = {each["attribute_name"]: each["attribute_value"] for each in body["model_pipeline_input"]}
    assert given["mean_concave_points"] == 0.15 and given["mean_radius"] == 13.71  # others exactly as they were
    (model,) = [each for each in api.get(MODELS).json() if each["partner_model_id"] == "demo-tabular"]
    answer = api.post(f"{MODELS}/{model['id']}/what_if", json=body).json()["predicted_values"][0]
    cells = outcome.locator("td").all_inner_texts()
    assert float(cells[0]) == pytest.approx(answer["attribute_value"], rel=1e-3)
    assert float(cells[1].split()[1]) == pytest.approx(answer["change"], abs=1e-4) and answer["change"] > 0.1
    fits(page)
    with page.expect_response("**/what-if"):
        page.get_by_role("button", name="As it was").click()
    page.locator("#outcome tr.chosen td", has_text=re.compile("^0$")).wait_for()
    slider.focus()
    with page.expect_response("**/what-if"):
        page.keyboard.press("ArrowRight")


def test_a_text_and_what_if_it_said_something_else(page: Page, api: httpx.Client, fits: Check) -> None:
    page.goto("/explorer/predictions/one?model=demo-text&inference=message-002")
    place = page.locator("#scores")
    words = texts(drawn(place))
    assert "injured, position 3" in " ".join(words) and words == of_the_api(api, place, "scores")
    page.get_by_label("note").fill("Hello, the lamp works.")
    page.get_by_role("button", name="Ask the model").click()
    page.locator("#outcome tr.chosen .fall").wait_for()
    assert "works, position 3" in drawn(page.locator("#trial"))
    fits(page)


def test_scores_that_are_not_stored_are_computed_when_asked_for(page: Page, api: httpx.Client) -> None:
    asked = {"model": "demo-tabular", "algorithm": "tree_shap"}
    names = (f"patient-{place:04d}" for place in range(1, 500))
    scores = ((name, api.get(f"{PATH}/scores", params=asked | {"inference": name}).text) for name in names)
    missing = next(name for name, text in scores if "nothing to draw" in text)
    page.goto(f"{PATH}/one?inference={missing}&model=demo-tabular&algorithm=tree_shap")
    page.get_by_role("button", name="Compute the scores").click()
    assert "mean_radius" in drawn(page.locator("#scores"))
    page.reload()
    assert "mean_radius" in drawn(page.locator("#scores"))


def test_without_scripts_the_same_can_be_done(plain: Page) -> None:
    page = plain
    page.goto(TABULAR)
    page.get_by_role("link", name="Next page").click()
    page.get_by_text("Page 2", exact=True).wait_for()
    page.locator("#rows tbody a").first.click()
    page.get_by_role("link", name="To the picture").first.click()
    assert "Scores for malignant" in drawn(page.locator("main"))
    page.go_back()
    page.get_by_role("button", name="To the picture").click()
    assert "malignant of patient-" in drawn(page.locator("main"))
    page.go_back()
    page.get_by_role("button", name="Ask the model").click()
    assert "the changed row" in drawn(page.locator("main")) and page.locator("#outcome").count() == 1


def test_words_and_scores_of_texts(page: Page, api: httpx.Client) -> None:
    """Also in pictures, and in what is asked with a form."""
    (model,) = [each for each in api.get(MODELS).json() if each["partner_model_id"] == "demo-text"]
    id = f"{SHORT}/{uuid4()}?a=b&c#d"
    values = {"note": f"smoke {HOSTILE}"}
    values |= predicted(api, model["id"], values["note"])
    record = {"partner_inference_id": id, "inference_timestamp": WHEN, "inference_data": values}
    assert api.post(f"{MODELS}/{model['id']}/inferences", json=[record]).json()["counts"]["success"] == 1
    place = f"{MODELS}/{model['id']}/inferences/{quote(id, safe='')}/explanation"
    assert api.get(place, params={"algorithm": "lime"}).status_code == 200  # and stored
    page.goto(f"/explorer/predictions?model=demo-text&property=partner_inference_id&comparator=eq&value={quote(id)}")
    harmless(page, id)
    page.locator("#rows tbody a").first.click()
    page.locator("#scores svg.plot").wait_for()
    harmless(page, id, values["note"])
    page.get_by_label("note").fill(f"No smoke. {HOSTILE}")
    page.get_by_role("button", name="Ask the model").click()
    page.locator("#trial svg.plot").wait_for()
    harmless(page, HOSTILE)


def predicted(api: httpx.Client, model: str, note: str) -> dict[str, float]:
    body = {"model_pipeline_input": [{"attribute_name": "note", "attribute_value": note}], "compare_to": "message-001"}
    values = api.post(f"{MODELS}/{model}/what_if", json=body).json()["predicted_values"]
    return {each["attribute_name"]: each["attribute_value"] for each in values}


ODD = ["", "\x00", "'; DROP TABLE inferences --", "<script>", "1e999", "9" * 400]
FIELDS = (
    "model",
    "output",
    "algorithm",
    "picture",
    "interval",
    "property",
    "comparator",
    "value",
    "number",
    "inference",
)


def test_nothing_that_an_address_says_makes_the_server_fail(api: httpx.Client) -> None:
    """Each field in turn is odd; the others are right."""
    right = {"model": "demo-text", "inference": "message-001", "property": "urgent", "value": "0.5"}
    for path in ("", "/rows", "/one", "/scores"):
        for name in FIELDS if path == "" else ("model", "output", "inference", "number"):
            for odd in ODD if path == "" else ODD[1:3]:
                answer = api.get(PATH + path, params=right | {name: odd})
                assert answer.status_code in (200, 400, 404), (path, name, odd, answer.status_code)
                assert "<script>" not in answer.text or "json" in answer.headers["content-type"], (path, name)
    many = [("property", "malignant")] * 11
    assert api.get(PATH, params=[("model", "demo-text"), *many]).status_code == 400


def test_nothing_that_a_form_says_makes_the_server_fail(api: httpx.Client) -> None:
    row = {"model": "demo-tabular", "inference": "patient-0001"}
    schema = next(each for each in api.get(MODELS).json() if each["partner_model_id"] == "demo-tabular")
    inputs = [each["name"] for each in schema["attributes"] if each["stage"] == "PIPELINE_INPUT"]
    row |= {f"input.{name}": "1.5" for name in inputs}
    right = api.post(f"{PATH}/what-if", data=row)
    assert right.status_code == 200 and "malignant" in right.text
    assert api.post(f"{PATH}/explained", data=row).status_code == 200
    for name in ("model", "output", "algorithm", "inference", "plot"):
        for odd in ODD:
            answer = api.post(f"{PATH}/explained", data=row | {name: odd})
            assert answer.status_code in (200, 400, 404), (name, odd, answer.status_code, answer.text)
    for name in list(row)[:4]:
        for odd in ODD:
            answer = api.post(f"{PATH}/what-if", data=row | {name: odd})
            assert answer.status_code in (200, 400, 404), (name, odd, answer.status_code, answer.text)
        left = {each: value for each, value in row.items() if each != name}
        assert api.post(f"{PATH}/what-if", data=left).status_code in (200, 400, 404), name
    assert api.post(f"{PATH}/what-if", json=row).status_code in (400, 404, 415)
    assert api.post(f"{PATH}/what-if", data=row, files={"x": ("a", b"b")}).status_code in (200, 400)


def test_a_form_of_another_page_is_refused(page: Page, watch: Watch) -> None:
    watch.expected.append("status of 403")
    page.goto(TABULAR)
    post = f"token => fetch('{PATH}/what-if', {{method: 'POST', headers: {{'X-CSRF-Token': token}}}})"
    for token in ("", "wrong"):
        assert (
            page.evaluate(f"{post}.then(answer => answer.status)".replace("token => ", "async token => "), token) == 403
        )
