"""The form of the explorer's prompt page and the maps it shows, without a browser."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from threading import get_ident
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from jinja2 import Template
from PIL import Image as Pillow

from app.explain import Stored, fetch_explanation
from app.explorer import maps
from app.explorer.maps import Map, as_curl, map_of, maps_of
from app.explorer.pages import environment
from app.explorer.question_form import (
    Form,
    asks,
    bodies_of,
    body_from,
    body_of,
    compared,
    form_of,
    messages_of,
    question_of,
    spoken,
)
from app.heatmap import heat_map, level
from app.heatmap_svg import heat_map_svg
from explainers.errors import InvalidRequest
from explainers.pictures import grid
from explainers.types import Attribution, Feature, Image, Span, Target, Text
from tests.app.conftest import ADMIN_KEY, PROMPT, Running
from tests.app.test_explorer_pages import browsing
from tests.app.test_heatmap import stored as kept
from tests.app.test_heatmap import word_features

pytestmark = pytest.mark.anyio

BASE = "http://whence/"

# -- the form and the body ---------------------------------------------------------------------------------------------

BODIES = [
    {"model": "m", "prompt": "a b", "target": "c"},
    {"model": "m", "prompt": "a", "generate": {"maximum_tokens": 4}, "target_granularity": "token"},
    {"model": "m", "prompt": "a", "target": "c", "method": "ablation", "samples": 32, "evaluate": True},
    {"model": "m", "prompt": "a", "target": "c", "method": "screened", "exact_scores": 3, "uncertainty": True},
    {"model": "m", "prompt": "a", "target": "c", "control_factor": 0.5, "normalize": True, "postprocessing": "square"},
    {"model": "m", "prompt": "a,b", "target": "c", "prompt_granularity": {"type": "custom", "delimiter": ","}},
    {
        "model": "m",
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        "target": "c",
    },
    {
        "model": "m",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a", "name": "x"}, {"type": "text", "text": "b"}]}
        ],
        "target": "c",
    },
    {
        "model": "m",
        "prompt": [
            {
                "type": "text",
                "data": "ab",
                "controls": [{"start": 0, "length": 1, "factor": 0.5, "token_overlap": "complete"}],
            },
            {
                "type": "token_ids",
                "data": [1, 2],
                "controls": [{"index": 1, "factor": 2.0}],
            },
        ],
        "target": "c",
    },
]


@pytest.mark.parametrize("number", range(len(BODIES)))
async def test_a_stored_question_is_told_as_the_body_that_asks_it(number: int) -> None:
    body = BODIES[number]
    record = question_of(body).record
    assert body_from("m", record) == body
    assert asks(body, record) and not asks(body | {"target": "d"}, record)


async def test_a_question_that_cannot_be_told_is_not_told() -> None:
    body = {"model": "m", "prompt": "a", "generate": {"maximum_tokens": 4, "temperature": 0.7}}
    assert body_from("m", question_of(body).record) is None


@pytest.mark.parametrize("number", [0, 1, 6])
async def test_the_form_holds_what_it_asked(number: int) -> None:
    body = BODIES[number]
    assert bodies_of(form_of(body, "id"), None) == [body_of(form_of(body, "id"), None)] == [body]


@pytest.mark.parametrize("said", ["user: a", "system: s\nuser: a\n\nb\nassistant: c", "user:", "user: a\n"])
async def test_chats_are_read_as_they_are_written(said: str) -> None:
    assert messages_of(spoken(messages_of(said))) == messages_of(said)


@pytest.mark.parametrize("said", ["", "hello", "[1", "x\nuser: a", "[" * 100_000])
async def test_what_is_no_chat_is_refused(said: str) -> None:
    with pytest.raises(InvalidRequest):
        messages_of(said)


async def test_a_chat_with_an_image_is_refused_in_words(running: Running) -> None:
    """And not asked without it."""
    with pytest.raises(InvalidRequest, match="takes no image"):
        body_of(Form(model="m", chat=True, prompt="user: a", target="c"), b"image")
    async with browsing(running, ADMIN_KEY) as browser:
        asked = {"csrf": await browser.csrf(), "model": "tiny-lm", "kind": "chat", "prompt": "user: a", "target": " b"}
        files = {"image": ("shape.png", b"image", "image/png")}
        answer = await browser.post("/explorer/prompt", data=asked, files=files)
        assert answer.status_code == 400 and "a chat takes no image" in answer.text
        empty = {"image": ("", b"", "application/octet-stream")}  # as browsers send it where none was chosen
        assert (await browser.post("/explorer/prompt", data=asked, files=empty)).status_code == 303


# -- the maps ----------------------------------------------------------------------------------------------------------


async def mapped(running: Running, **changes: Any) -> Map:
    answer = await running.explain(target=" Oslo Rome", target_granularity="token", **changes)
    id = answer.raise_for_status().json()["id"]
    stored = await fetch_explanation(running.server.explainer.database, "default", id)
    assert isinstance(stored, Stored)
    return map_of(stored, BASE)


def three_tokens(noise: float | None = None) -> Stored:
    """Scores of " a", " b" and " c" over two words, whose sums are 12 and 1.5 nats, and of " a" for those after it."""
    targets = tuple(Target(f" {letter}", Span(2 * place, 2 * place + 2)) for place, letter in enumerate("abc"))
    values = np.array([[4.0, 0.5, 0.0], [5.0, -2.0, 8.0], [3.0, 3.0, 8.0]])
    noises = None if noise is None else np.full_like(values, noise)
    features = (*word_features("x y", 0), Feature(" a", 1, Span(0, 2)))
    attribution = Attribution("atman", features, targets, values, uncertainty=noises)
    return kept((Text("x y"),), " a b c", attribution)


def page_of(*found: Map) -> str:
    """The maps as the pages show them."""
    return environment().get_template("maps.html").render(maps=found, address="/")


def scores_of(answer: Any) -> list[float]:
    return sorted(score["score"] for score in answer.json()["explanations"][0]["items"][0]["scores"])


@pytest.mark.parametrize("method", ["atman", "gradient"])
async def test_the_whole_target_is_the_sum_of_its_tokens(running: Running, method: str) -> None:
    """Which is what asking about it as a whole answers."""
    found = await mapped(running, method=method)
    shown = sorted(number.score for number in found.views[0].numbers)
    assert found.views[0].name == "whole target" and len(found.views) > 2
    assert shown == pytest.approx(scores_of(await running.explain(target=" Oslo Rome", method=method)), abs=1e-4)
    for changes in ({"postprocessing": "absolute"}, {"normalize": True}):
        views = (await mapped(running, method=method, **changes)).views
        assert all(view.token for view in views)  # which do not add up


@pytest.mark.parametrize("method", ["ablation", "screened"])
async def test_a_sum_that_is_no_answer_is_called_a_sum(running: Running, method: str) -> None:
    """These methods answer about the target as a whole with other numbers."""
    options = {"exact_scores": 2} if method == "screened" else {}
    found = await mapped(running, method=method, **options)
    shown = sorted(number.score for number in found.views[0].numbers)
    answer = await running.explain(target=" Oslo Rome", method=method, **options)
    assert shown != pytest.approx(scores_of(answer), abs=1e-4)
    assert found.views[0].name == "sum over the tokens" and "whole target" not in page_of(found)


def test_the_noise_of_a_sum_is_at_most_the_sum_of_the_noises() -> None:
    page = page_of(map_of(three_tokens(noise=0.6), BASE))
    whole, first, *_ = page.split('<div class="view"')[1:]
    assert whole.count("at most ± 1.8") == 2 and whole.count("(perhaps no larger than noise)") == 1
    assert first.count("± 0.6") == 2 and first.count("(no larger than noise)") == 1 and "at most ±" not in first
    assert "±" not in page_of(map_of(three_tokens(), BASE))


def test_each_map_has_the_legend_of_its_own_colours() -> None:
    whole, *tokens = map_of(three_tokens(), BASE).views
    assert [piece.text for piece in whole.levels] == ["-12", "-3", "+0", "+3", "+12"]
    for view in tokens:
        assert [piece.text for piece in view.levels] == ["-8", "-2", "+0", "+2", "+8"]
    for view in (whole, *tokens):
        shown = [piece for part in view.section.items for piece in part.pieces if piece.scores]
        assert all(piece.level == level(piece.scores[0], view.levels[-1].scores[0]) for piece in shown)
    sections = page_of(map_of(three_tokens(), BASE)).split('<div class="view"')[1:]
    assert [">+12</mark>" in each for each in sections] == [True, False, False, False]


def test_maps_beside_each_other_have_one_scale() -> None:
    """Whichever of their views are shown: the same colour is the same number, and that is said."""
    large = three_tokens()
    small = replace(large, attribution=replace(large.attribution, values=large.attribution.values / 4))
    both = maps_of([small, large], BASE)
    for view in (view for map in both for view in map.views):
        assert [piece.text for piece in view.levels] == ["-12", "-3", "+0", "+3", "+12"]
        shown = [piece for part in view.section.items for piece in part.pieces if piece.scores]
        assert shown and all(piece.level == level(piece.scores[0], 12.0) for piece in shown)
    assert "Both maps have one scale" in page_of(*both)
    assert 'id="scale"' not in page_of(*maps_of([large], BASE))


def test_numbers_of_two_kinds_have_no_scale_in_common() -> None:
    plain = three_tokens()
    shares = replace(plain, request={**plain.request, "config": {**plain.request["config"], "normalize": True}})
    both = maps_of([plain, shares], BASE)
    page = page_of(*both)
    assert "a scale of its own" in page and "nats: orange, solid line" in page
    assert "shares of the range from the least score to the largest: the stronger the orange" in page
    assert "shares of the range" in heat_map(shares) and ">shares</text>" in heat_map_svg(shares)
    assert [map.views for map in both] == [map_of(stored, BASE).views for stored in (plain, shares)]


COMPARED = [
    ({}, {"method": "gradient"}),
    ({}, {"control_factor": 0.5}),
    ({"control_factor": 0.5}, {"method": "gradient"}),
    ({"method": "ablation"}, {"control_factor": 0.123456789}),
    ({"control_factor": 2.0}, {"method": "ablation"}),
]


@pytest.mark.parametrize(("first", "second"), COMPARED, ids=range(len(COMPARED)))
async def test_the_form_holds_what_it_compared(first: dict[str, Any], second: dict[str, Any]) -> None:
    bodies = [BODIES[0] | first, BODIES[0] | second]
    form = compared(form_of(bodies[0], "id"), bodies[1])
    assert bodies_of(form, None) == bodies


async def test_the_address_of_a_comparison_brings_it_back(running: Running) -> None:
    """Maps and form; what the form cannot hold is said."""
    async with browsing(running, ADMIN_KEY) as browser:
        asked = {"model": "tiny-lm", "prompt": PROMPT, "target": " Oslo", "method": "gradient", "factor": "0.25"}
        asked |= {"csrf": await browser.csrf(), "other_method": "atman", "other_factor": "0.75"}
        place = (await browser.post("/explorer/prompt", data=asked)).headers["location"]
        page = (await browser.get(place)).text
        assert re.findall(r'<h2 id="m\d">([^<]*)</h2>', page) == ["gradient, factor 0.25", "atman, factor 0.75"]
        other = page[page.index('id="other_method"') :]
        assert re.findall(r"<option selected>(\w+)", other)[0] == "atman" and 'value="0.75"' in other
        assert 'id="partly"' not in page and "Both maps have one scale" in page
        different = (await running.explain(target=" Rome")).json()["id"]
        page = (await browser.get(f"{place.partition('=')[0]}={different}")).text
        assert 'id="partly"' in page and page.count('<article class="map"') == 2


async def test_noise_is_counted_over_what_the_answer_holds(running: Running) -> None:
    found = await mapped(running, uncertainty=True)
    answer = await running.explain(target=" Oslo Rome", target_granularity="token", uncertainty=True)
    scores = [score for each in answer.json()["explanations"] for item in each["items"] for score in item["scores"]]
    below = sum("below_noise" in score for score in scores)
    assert found.noisy == (below, len(scores), max(score["uncertainty"] for score in scores))


async def test_a_page_has_room_for_so_many_pieces(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    full = await mapped(running)
    monkeypatch.setattr(maps, "MOST_PIECES", 1)
    short = await mapped(running)
    assert [view.name for view in short.views] == [view.name for view in full.views[:2]]
    assert (full.left_out, short.left_out) == (0, len(full.views) - 2)


def test_an_image_is_in_the_page_once_for_each_map() -> None:
    """However many tokens have a map of their own, and with names of its own where two maps stand beside each other."""
    data = BytesIO()
    Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)).save(data, "PNG")
    features = tuple(Feature(f"tile {n}", 1, tile) for n, tile in enumerate(grid(2, 2)))
    sizes = []
    for count in (1, 3, 9):
        targets = tuple(Target("a", Span(place, place + 1)) for place in range(count))
        attribution = Attribution("atman", features, targets, np.ones((count, 4)))
        found = map_of(kept((Text("x"), Image(data.getvalue())), "a" * count, attribution), BASE)
        page = page_of(found, found)
        assert page.count("data:image/png;base64,") == 2
        for number in (1, 2):
            assert page.count(f'<image id="m{number}image2"') == 1
            assert page.count(f'<use href="#m{number}image2"/>') == len(found.views)
        assert len(ids := re.findall(r' id="([^"]+)"', page)) == len(set(ids))
        sizes.append(len(page))
    assert sizes[2] - sizes[1] < 6 * 2 * 6_000 < 6 * 2 * len(data.getvalue())


async def test_pages_of_maps_are_made_beside_the_event_loop(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise and what is copied are found once for each map, and the template is filled in a thread."""
    threads: list[int] = []
    times: list[UUID] = []
    render, noisy_of = Template.render, maps.noisy_of

    def rendered(template: Template, *args: Any, **fields: Any) -> str:
        threads.append(get_ident())
        return render(template, *args, **fields)

    def counted(stored: Stored) -> maps.Noisy | None:
        times.append(stored.id)
        return noisy_of(stored)

    monkeypatch.setattr(Template, "render", rendered)
    monkeypatch.setattr(maps, "noisy_of", counted)
    async with browsing(running, ADMIN_KEY) as browser:
        asked = {"model": "tiny-lm", "prompt": PROMPT, "target": " Oslo Rome", "each": "on", "uncertainty": "on"}
        asked["csrf"] = await browser.csrf()
        threads.clear()
        answer = await browser.post("/explorer/prompt", data=asked, headers={"HX-Request": "true"})
        place = answer.raise_for_status().headers["hx-push-url"]
        whole = await browser.get(place)
        stored = await browser.get(place.replace("/prompt/", "/stored/"))
    assert all("± " in each.text and "Bearer $KEY" in each.text for each in (answer, whole, stored))
    assert len(times) == 3 and len(threads) == 3 and get_ident() not in threads


def test_every_token_has_a_name_that_can_be_said() -> None:
    texts = ("a", "\n", "", "  ", "\n\t", "\u200b", ".")
    targets = tuple(Target(text) for text in texts)
    attribution = Attribution("atman", word_features("x", 0), targets, np.ones((len(texts), 1)))
    found = map_of(kept((Text("x"),), "".join(texts), attribution), BASE)
    said = ["token 2: line break", "token 3: empty", "token 4: 2 × space", "token 5: line break, tab"]
    said = ["whole target", "a", *said, "token 6: zero width space", "."]
    assert [view.label for view in found.views] == said
    page = page_of(found)
    assert re.findall(r'<div class="view" [^>]*aria-label="([^"]*)"', page) == said
    assert re.findall(r'<button [^>]*aria-label="([^"]*)">', page) == said[2:-1]


def test_the_command_hands_on_a_body_of_any_size(tmp_path: Path) -> None:
    """Run by bash, with a program in place of curl that keeps its arguments and its input."""
    curl = tmp_path / "curl"
    curl.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$KEPT/arguments"\nexec cat > "$KEPT/input"\n')
    curl.chmod(0o755)
    hostile = "$HOME `id` $(id) \\ ' \" é\nEND_OF_QUESTION\n"
    body = {"model": "m", "prompt": hostile * 5000, "target": "c"}
    command = as_curl("http://whence/", body)
    assert len(command) > 150_000
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "KEPT": str(tmp_path), "KEY": "secret"}
    done = subprocess.run(
        ["bash"], input=command.encode(), env=environment, capture_output=True, timeout=30, check=True
    )
    assert not done.stderr and json.loads((tmp_path / "input").read_bytes()) == body
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert arguments[:2] == ["-s", "http://whence/explain"] and arguments[-2:] == ["--data-binary", "@-"]
    assert "Authorization: Bearer secret" in arguments
