"""POST /chat/completions over the wire."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import tiny_models
from tests.app.conftest import PROMPT, Running

pytestmark = pytest.mark.anyio

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]
RENDERED = f"system: Be brief.\nuser: {PROMPT}\nassistant:"


async def asked(running: Running, **changes: Any) -> httpx.Response:
    body = {"model": "tiny-lm", "messages": MESSAGES, "maximum_tokens": 6, "seed": 3, **changes}
    return await running.client.post("/chat/completions", json=body)


async def answered(running: Running, **changes: Any) -> dict[str, Any]:
    response = await asked(running, **changes)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def test_it_is_the_completion_of_the_rendered_chat(running: Running) -> None:
    body = await answered(running)
    same = {"model": "tiny-lm", "prompt": RENDERED, "maximum_tokens": 6, "seed": 3}
    completed = (await running.client.post("/complete", json=same)).json()
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": completed["completions"][0]["completion"]}
    assert choice["finish_reason"] == "length" and choice["index"] == 0
    counts = body["usage"]
    assert counts["prompt_tokens"] == completed["num_tokens_prompt_total"]
    assert counts["total_tokens"] == counts["prompt_tokens"] + counts["completion_tokens"]
    assert body["model_version"] == completed["model_version"]


async def test_the_same_in_other_words(running: Running) -> None:
    plain = await answered(running)
    parts = [MESSAGES[0], {"role": "user", "content": [{"type": "text", "text": PROMPT}]}]
    assert await answered(running, messages=parts, temperature=0, top_p=1.0, tools=[], n=1) == plain
    assert await answered(running, maximum_tokens=None, max_tokens=6, response_format={"type": "text"}) == plain
    text = plain["choices"][0]["message"]["content"]
    stopped = (await answered(running, stop=text[2]))["choices"][0]
    assert stopped["message"]["content"] == text[: text.index(text[2])] and stopped["finish_reason"] == "stop"


async def test_a_stream_is_the_whole_in_pieces(running: Running) -> None:
    whole = await answered(running, temperature=1.0)
    response = await asked(running, temperature=1.0, stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line.removeprefix("data: ")) for line in response.text.split("\n\n") if line]
    first, *pieces, end, last = events
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(piece["choices"][0]["delta"]["content"] for piece in pieces)
    assert text == whole["choices"][0]["message"]["content"]
    assert end["choices"][0]["finish_reason"] == "length"
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    assert "usage" not in (await asked(running, stream=True)).text


@pytest.mark.parametrize(
    ("changes", "code", "pointer"),
    [
        ({"messages": []}, "INVALID_REQUEST", "/messages"),
        ({"messages": None}, "INVALID_REQUEST", "/messages"),
        ({"messages": [{"role": "king", "content": ""}]}, "INVALID_REQUEST", "/messages/0/role"),
        ({"messages": [{"role": "user", "content": ""}] * 10_001}, "INVALID_REQUEST", "/messages"),
        ({"messages": [{"role": "user", "content": 1}]}, "INVALID_REQUEST", "/messages/0/content"),
        ({"messages": [{"role": "user", "content": [1] * 100}]}, "INVALID_REQUEST", "/messages/0/content/0"),
        ({"messages": [{"role": "user"}]}, "INVALID_REQUEST", "/messages/0/content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": ""}}]}]},
            "MISSING_CAPABILITY",
            "/messages/0/content/0",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "INVALID_REQUEST", None),
        ({"tools": [{"type": "function"}]}, "MISSING_CAPABILITY", "/tools"),
        ({"response_format": {"type": "json_object"}}, "MISSING_CAPABILITY", "/response_format"),
        ({"logprobs": True}, "MISSING_CAPABILITY", "/logprobs"),
        ({"steering_concepts": ["a"]}, "MISSING_CAPABILITY", "/steering_concepts"),
        ({"n": 2}, "INVALID_REQUEST", "/n"),
        ({"stop": [""]}, "INVALID_REQUEST", "/stop/0"),
        ({"maximum_tokens": 1000}, "CONTEXT_LENGTH_EXCEEDED", "/maximum_tokens"),
        ({"maximum_tokens": 1000, "stream": True}, "CONTEXT_LENGTH_EXCEEDED", "/maximum_tokens"),
    ],
)
async def test_mistakes(running: Running, changes: dict[str, Any], code: str, pointer: str | None) -> None:
    response = await asked(running, **changes)
    assert (response.status_code, response.json()["code"]) == (400, code), response.text
    if pointer is not None:
        assert response.json()["errors"][0]["pointer"] == pointer


async def test_a_model_without_a_template_is_refused(running: Running, models_dir: Path) -> None:
    await running.add(tiny_models.save(models_dir / "no-chat"), "no-chat")
    try:
        for stream in (False, True):
            response = await asked(running, model="no-chat", stream=stream)
            assert (response.status_code, response.json()["code"]) == (400, "MISSING_CAPABILITY")
    finally:
        await running.client.delete("/models/no-chat")
