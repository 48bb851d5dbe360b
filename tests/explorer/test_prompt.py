"""The prompt page in a browser, on the demo models."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Locator, Page, expect

from tests.demo_server import KEY
from tests.explorer.conftest import Check, Watch

PROMPT = "Anna lives in Oslo. Ben lives in Rome. Anna lives in"
PICTURE = Path(__file__).parents[2] / "demo" / "data" / "shapes_example.png"


def ask(page: Page, prompt: str, target: str = "", model: str = "demo-lm", **choices: str) -> Locator:
    """Fills in the form and sends it; the result."""
    page.goto(f"/?model={model}")
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("What the model said").fill(target)
    if choices:
        page.get_by_text("How it is explained").click()
    for label, value in choices.items():
        page.locator(f"[name={label}]").select_option(value) if label != "other_factor" else page.locator(
            f"[name={label}]"
        ).fill(value)
    return send(page)


def send(page: Page) -> Locator:
    page.get_by_role("button", name="Explain").click()
    result = page.locator("#result")
    expect(result.locator(".map").first).to_be_visible()
    return result


def scores(view: Locator) -> dict[str, float]:
    """Pieces of the visible map and their scores, as they stand in the page."""
    found = {}
    for mark in view.locator("p.text mark").all():
        text = str(mark.evaluate("mark => mark.firstChild.nodeType === 3 ? mark.firstChild.data : ''"))
        found[text] = float(str(mark.get_attribute("data-score")))
    return found


def stored_id(page: Page) -> str:
    found = re.search(r"/explorer/prompt/([0-9a-f-]{36})", page.url)
    assert found is not None, page.url
    return found[1]


def test_the_map_shows_the_scores_of_the_api(page: Page, api: httpx.Client, fits: Check) -> None:
    result = ask(page, PROMPT, " Oslo.", granularity="sentence")
    view = result.locator(".view:visible")
    expect(view).to_have_count(1)
    body = {"model": "demo-lm", "prompt": PROMPT, "target": " Oslo.", "prompt_granularity": {"type": "sentence"}}
    answer = api.post("/explain", json=body).raise_for_status().json()
    wanted = [score["score"] for score in answer["explanations"][0]["items"][0]["scores"]]
    shown = scores(view)
    assert list(shown.values()) == [float(f"{score:.4g}") for score in wanted]
    assert max(shown, key=lambda piece: shown[piece]).startswith("Anna lives in Oslo.")
    fits(page)


def test_each_token_of_the_target_has_its_own_map(page: Page, api: httpx.Client) -> None:
    result = ask(page, PROMPT, " Oslo.")
    tokens = result.locator("button.token:not(.all)")
    kept = api.get(f"/explanations/{stored_id(page)}").raise_for_status().json()
    assert [token.inner_text() for token in tokens.all()] == [each["text"] for each in kept["attribution"]["targets"]]
    tokens.nth(1).click()
    expect(tokens.nth(1)).to_have_attribute("aria-pressed", "true")
    view = result.locator(".view:visible")
    expect(view).to_have_count(1)
    expect(view.locator("p.target b")).to_have_text(".")
    assert "target so far" in view.inner_text()
    tokens.nth(0).focus()
    page.keyboard.press("Enter")
    expect(result.locator(".view:visible p.target b")).to_have_text(" Oslo")


def test_numbers_show_on_hover_and_focus(page: Page) -> None:
    result = ask(page, PROMPT, " Oslo")
    mark = result.locator(".view:visible p.text mark").first
    bubble = "mark => getComputedStyle(mark, '::after').content"
    mark.focus()
    assert str(mark.get_attribute("data-score")) in str(mark.evaluate(bubble))
    page.get_by_role("heading", level=1).hover()
    page.get_by_label("Prompt", exact=True).focus()
    assert mark.evaluate(bubble) == "none"
    mark.hover()
    assert str(mark.get_attribute("data-score")) in str(mark.evaluate(bubble))


def test_the_model_answers_first_where_no_target_is_given(page: Page) -> None:
    result = ask(page, PROMPT)
    assert result.locator("button.token").nth(1).inner_text() == " Oslo"
    link = result.get_by_role("link", name="Link to this")
    page.goto(str(link.get_attribute("href")))
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(PROMPT)
    assert page.locator("#partly").count() == 0
    assert result.locator("button.token").nth(1).inner_text() == " Oslo"


def test_the_back_button_leads_to_the_map_before(page: Page) -> None:
    ask(page, PROMPT, " Oslo")
    page.get_by_label("What the model said").fill(" Rome")
    result = send(page)
    expect(result.locator("p.target b").first).to_have_text(" Rome")
    page.go_back()
    expect(result.locator("p.target b").first).to_have_text(" Oslo")
    expect(page.get_by_label("What the model said")).to_have_value(" Oslo")


def test_two_methods_and_two_factors_stand_side_by_side(page: Page, fits: Check) -> None:
    result = ask(page, PROMPT, " Oslo", granularity="sentence", other_method="gradient")
    expect(result.locator(".map h2")).to_have_text(["atman, factor 0.1", "gradient, factor 0.1"])
    first, second = (each.bounding_box() for each in result.locator(".map").all())
    assert first is not None and second is not None and first["y"] == second["y"] and first["x"] < second["x"]
    address = page.url
    result = ask(page, PROMPT, " Oslo", granularity="sentence", other_factor="0.5")
    expect(result.locator(".map h2")).to_have_text(["atman, factor 0.1", "atman, factor 0.5"])
    weaker, stronger = (list(scores(map.locator(".view:visible")).values()) for map in result.locator(".map").all())
    assert max(weaker) != max(stronger)
    legends = {
        tuple(each.inner_text() for each in map.locator(".view:visible .legend mark").all())
        for map in result.locator(".map").all()
    }
    expect(page.locator("#scale")).to_contain_text("one scale")
    assert len(legends) == 1
    page.goto(address)
    expect(result.locator(".map h2")).to_have_text(["atman, factor 0.1", "gradient, factor 0.1"])
    expect(page.locator("[name=other_method]")).to_have_value("gradient")
    assert page.locator("#partly").count() == 0
    fits(page)


def test_faithfulness_and_noise_stand_beside_the_map(page: Page, api: httpx.Client) -> None:
    page.goto("/")
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_label("What the model said").fill(" Oslo")
    page.get_by_text("How it is explained").click()
    page.get_by_label("Test the scores").check()
    page.get_by_label("Noise of each score").check()
    result = send(page)
    kept = api.get(f"/explanations/{stored_id(page)}").raise_for_status().json()
    score = kept["attribution"]["facts"]["faithfulness"]["score"]
    expect(result.locator("dl")).to_contain_text(f"{score:.2f} (1: the first piece was all that mattered")
    expect(result.locator("dl")).to_contain_text("no larger than the noise of the model's arithmetic")
    result.get_by_text("The scores as numbers").click()
    expect(result.locator("td").filter(has_text="±").first).to_be_visible()


def test_tiles_lie_over_the_image(page: Page, fits: Check) -> None:
    page.goto("/?model=demo-vision")
    page.get_by_label("Prompt", exact=True).fill("What colour is the circle?")
    page.get_by_label("What the model said").fill(" yellow")
    page.get_by_label("Image").set_input_files(PICTURE)
    result = send(page)
    image = result.locator(".view:visible svg.image")
    assert image.locator("rect").count() > 4
    box, best = image.bounding_box(), image.locator("rect[class*=' p']").first.bounding_box()
    assert box is not None and best is not None and box["width"] > 100
    assert box["x"] <= best["x"] and best["x"] + best["width"] <= box["x"] + box["width"] + 1
    fits(page)
    page.reload()
    page.get_by_label("What the model said").fill(" blue")
    send(page)  # about the same image, which is not chosen once more
    expect(result.locator(".view:visible p.target b").first).to_have_text(" blue")
    assert image.locator("rect").count() > 4


def test_a_chat_is_asked_about_by_its_messages(page: Page) -> None:
    page.goto("/?model=demo-qa")
    page.get_by_label("Chat").check()
    page.get_by_label("Prompt", exact=True).fill("user: Who keeps the mill?")
    result = send(page)
    expect(result.locator(".view:visible h3")).to_contain_text(["message 1, user"])
    page.reload()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("user: Who keeps the mill?")
    expect(page.get_by_label("Chat")).to_be_checked()


def test_refusals_are_told_in_words(page: Page, watch: Watch) -> None:
    watch.expected.append("400 (Bad Request)")
    page.goto("/")
    page.get_by_label("Prompt", exact=True).fill("Anna")
    page.get_by_label("Chat").check()
    page.get_by_role("button", name="Explain").click()
    expect(page.locator("#problem")).to_contain_text("must begin with")
    expect(page.locator("#problem")).to_contain_text("INVALID_REQUEST")
    page.get_by_label("Text", exact=True).check()
    send(page)
    expect(page.locator("#problem")).to_be_empty()


def test_the_commands_that_are_shown_ask_the_same(page: Page, tmp_path: Path) -> None:
    result = ask(page, 'It\'s "Anna" who lives in Oslo.\nAnna $HOME `x` lives in', " Oslo", granularity="sentence")
    id = stored_id(page)
    result.get_by_text("Ask the same with").click()
    environment = {"KEY": KEY, "PATH": "/usr/bin:/bin"}
    script = tmp_path / "ask.py"
    script.write_text(result.locator("pre").nth(1).inner_text(), encoding="utf-8")
    for command in (["bash", "-c", result.locator("pre").nth(0).inner_text()], [sys.executable, script]):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
        answer: Any = json.loads(done.stdout) if done.stdout.startswith('{"') else done.stdout
        assert (answer["id"] if isinstance(answer, dict) else id) == id and id in done.stdout


def test_the_policy_would_stop_what_escaping_missed(page: Page, watch: Watch) -> None:
    watch.expected.append("Content Security Policy")
    page.goto("/")
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=data:, onerror=window.taken=1>')")
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.taken=1'}))")
    page.wait_for_timeout(200)
    assert page.evaluate("window.taken") is None
    left = "fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'stopped')"
    assert page.evaluate(left) == "stopped"


def test_it_works_without_scripts(plain: Page) -> None:
    plain.goto("/")
    plain.get_by_label("Prompt", exact=True).fill(PROMPT)
    plain.get_by_label("What the model said").fill(" Oslo.")
    plain.get_by_role("button", name="Explain").click()
    plain.wait_for_url("**/explorer/prompt/*")
    assert plain.locator(".view:visible").count() == 3
