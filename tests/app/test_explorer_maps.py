"""The form of the explorer's prompt page and the maps it shows, without a browser."""

from __future__ import annotations

from typing import Any

import pytest

from app.explain import Stored, fetch_explanation
from app.explorer import maps
from app.explorer.maps import Map, map_of
from app.explorer.question_form import asks, bodies_of, body_from, body_of, form_of, messages_of, question_of, spoken
from explainers.errors import InvalidRequest
from tests.app.conftest import Running

pytestmark = pytest.mark.anyio

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


# -- the maps ----------------------------------------------------------------------------------------------------------


async def mapped(running: Running, **changes: Any) -> Map:
    answer = await running.explain(target=" Oslo Rome", target_granularity="token", **changes)
    id = answer.raise_for_status().json()["id"]
    stored = await fetch_explanation(running.server.explainer.database, "default", id)
    assert isinstance(stored, Stored)
    return map_of(stored)


async def test_the_whole_target_is_the_sum_of_its_tokens(running: Running) -> None:
    """Which is what asking about it as a whole answers."""
    found, answer = await mapped(running), await running.explain(target=" Oslo Rome")
    whole = answer.json()["explanations"][0]["items"][0]["scores"]
    shown = {number.score for number in found.views[0].numbers}
    assert found.views[0].name == "whole target" and len(found.views) > 2
    assert sorted(shown) == pytest.approx(sorted(score["score"] for score in whole), abs=1e-4)
    for changes in ({"postprocessing": "absolute"}, {"normalize": True}):
        assert all(view.token for view in (await mapped(running, **changes)).views)  # which do not add up


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
