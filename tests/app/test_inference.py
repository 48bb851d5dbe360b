"""Chats and completions over Seekr's wire."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.dialects.seekr.inference_answers import offsets
from tests import tiny_models
from tests.app.conftest import PROMPT, Running, Start, until
from tests.app.test_limits import hold

pytestmark = pytest.mark.anyio

CHAT, TEXT = "/v1/inference/chat/completions", "/v1/inference/completions"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]
RENDERED = f"system: Be brief.\nuser: {PROMPT}\nassistant:"
SENT: dict[str, Any] = {
    "max_completion_tokens": None,
    "max_tokens": 6,
    "stop": None,
    "temperature": 0.7,
    "top_p": 1,
    "top_k": 5,
    "repetition_penalty": 1,
    "stream": False,
    "logprobs": False,
    "top_logprobs": None,
    "echo": False,
    "n": 1,
    "safety_model": None,
    "response_format": None,
}
"""All that the vendor's client sends."""


async def asked(running: Running, path: str = CHAT, **changes: Any) -> httpx.Response:
    what = {"messages": MESSAGES} if path == CHAT else {"prompt": PROMPT, "logprobs": None}
    return await running.client.post(path, json={"model": "tiny-lm", **SENT, **what, **changes})


async def answered(running: Running, path: str = CHAT, **changes: Any) -> dict[str, Any]:
    response = await asked(running, path, **changes)
    assert response.status_code == 200, response.text
    assert "\n" not in response.text
    found: dict[str, Any] = response.json()
    return found


async def said(running: Running, path: str = CHAT, **changes: Any) -> str:
    (choice,) = (await answered(running, path, **changes))["choices"]
    text: str = choice["text"] if path == TEXT else choice["message"]["content"]
    return text


async def plain(running: Running, **how: Any) -> dict[str, Any]:
    """The same by the route of another wire."""
    body = {"model": "tiny-lm", "prompt": RENDERED, "maximum_tokens": 6, **how}
    response = await running.client.post("/complete", json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def chunks(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, end, rest = response.text.split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    assert response.text.isascii() and all(event.startswith("data: {") and "\n" not in event for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events]


async def test_it_is_the_greedy_completion_of_the_rendered_chat(running: Running) -> None:
    body = await answered(running, temperature=0)
    same = await plain(running)
    text = same["completions"][0]["completion"]
    assert body["choices"] == [
        {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": text}}
    ]
    assert (body["object"], body["model"], type(body["created"])) == ("chat.completion", "tiny-lm", int)
    read, written = same["num_tokens_prompt_total"], same["num_tokens_generated"]
    counts = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    assert body["usage"] == counts
    assert set(body) == {"id", "object", "created", "model", "choices", "usage"}
    for how in (
        {"top_k": 50, "top_p": 0.9},
        {"top_k": None},
        {"max_tokens": 1, "max_completion_tokens": 6},
        {"n": None},
    ):
        assert await said(running, temperature=0, **how) == text
    parts = [MESSAGES[0], {"role": "user", "content": [{"type": "text", "text": PROMPT}]}]
    nothing = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "unknown": 1}
    assert await said(running, temperature=0, messages=parts, **nothing) == text


async def test_tokens_are_drawn_as_asked(running: Running) -> None:
    drawn = {"temperature": 1.5, "seed": 7, "n": 8}

    async def texts(**how: Any) -> list[str]:
        return [choice["message"]["content"] for choice in (await answered(running, **drawn | how))["choices"]]

    async def same(**how: Any) -> list[str]:
        return [each["completion"] for each in (await plain(running, **drawn | how))["completions"]]

    assert await texts(top_k=5) == await same(top_k=5)
    free = await same(top_k=0)
    assert len(set(free)) > 1
    for off in (None, 0, -1):
        assert await texts(top_k=off) == free
    assert await texts(top_k=-1, top_p=0.5) == await same(top_p=0.5)
    greedy = await said(running, temperature=0)
    assert await texts(top_k=-1, top_p=0) == [greedy] * 8
    penalty = {"presence_penalty": 0.5, "use_multiplicative_presence_penalty": True}
    repeated = await same(**penalty, repetition_penalties_include_prompt=True, top_k=5)
    assert await texts(repetition_penalty=1.5, top_k=5) == repeated != await texts(top_k=5)
    assert await said(running) == await said(running)  # what the client sends by default, twice


async def test_stop(running: Running) -> None:
    text = await said(running, temperature=0)
    for stop in (text[2], ["none of it", text[2]]):
        (choice,) = (await answered(running, temperature=0, stop=stop))["choices"]
        assert choice["message"]["content"] == text[: text.index(text[2])] and choice["finish_reason"] == "stop"


async def test_the_context_ends_an_answer(running: Running) -> None:
    body = await answered(running, max_tokens=100_000, temperature=0)
    assert body["choices"][0]["finish_reason"] in ("length", "stop")
    assert body["usage"]["total_tokens"] <= 256
    long = [{"role": "user", "content": "Anna lives in Oslo. " * 500}]
    response = await asked(running, messages=long)
    assert (response.status_code, response.json()["code"]) == (400, "CONTEXT_LENGTH_EXCEEDED")


async def test_a_stream_is_the_whole_in_pieces(running: Running) -> None:
    for path in (CHAT, TEXT):
        whole = await answered(running, path, n=2)
        found = chunks(await asked(running, path, n=2, stream=True, stream_options={"include_usage": True}))
        *events, last = found
        assert last["choices"] == [] and last["usage"] == whole["usage"]
        kind = "chat.completion.chunk" if path == CHAT else "completion.chunk"
        assert {(each["object"], each["model"], each["id"]) for each in found} == {(kind, "tiny-lm", found[0]["id"])}
        for number, choice in enumerate(whole["choices"]):
            own = [each["choices"][0] for each in events if each["choices"][0]["index"] == number]
            text = "".join(each["delta"]["content"] for each in own)
            assert text == (choice["message"]["content"] if path == CHAT else choice["text"])
            reasons = [each["finish_reason"] for each in own]
            assert reasons == [None] * (len(own) - 1) + [choice["finish_reason"]]
            assert [each["delta"].get("role") for each in own[:1]] == (["assistant"] if path == CHAT else [None])
            assert path == CHAT or "".join(each["text"] for each in own) == text
        assert all(each["choices"] for each in chunks(await asked(running, path, stream=True)))


async def test_log_probabilities_and_the_prompt(running: Running) -> None:
    same = await plain(running, log_probs=3, echo=True, tokens=True)
    body = await answered(running, temperature=0, logprobs=True, top_logprobs=3, echo=True)
    (choice,) = body["choices"]
    text, found = choice["message"]["content"], choice["logprobs"]
    assert RENDERED + text == same["completions"][0]["completion"]
    assert len(found["tokens"]) == body["usage"]["completion_tokens"]
    assert found["text_offset"] == sorted(found["text_offset"])
    whole = [text.startswith(token, at) for token, at in zip(found["tokens"], found["text_offset"], strict=True)]
    assert whole == [token in text for token in found["tokens"]]
    prompt = body["prompt"][0]
    assert prompt["text"] == RENDERED and prompt["logprobs"]["token_logprobs"][0] is None
    told = same["completions"][0]["log_probs"]
    assert len(told) == len(prompt["logprobs"]["tokens"]) + len(found["tokens"])
    for number, most in enumerate(found["top_logprobs"]):
        assert len(most) <= 3 and max(most.values()) == found["token_logprobs"][number]  # greedy: the most probable
    (bare,) = (await answered(running, temperature=0, logprobs=True))["choices"]
    assert bare["logprobs"]["token_logprobs"] == pytest.approx(found["token_logprobs"], abs=1e-5)
    assert (bare["logprobs"]["tokens"], bare["logprobs"]["top_logprobs"]) == (found["tokens"], [])
    assert (await answered(running, temperature=0, echo=True))["prompt"] == [{"text": RENDERED, "logprobs": None}]


async def test_plain_texts(running: Running) -> None:
    body = await answered(running, TEXT, temperature=0, logprobs=2, echo=True)
    same = await plain(running, prompt=PROMPT)
    assert body["choices"][0]["text"] == same["completions"][0]["completion"]
    assert (body["object"], body["prompt"][0]["text"]) == ("text.completion", PROMPT)
    assert len(body["choices"][0]["logprobs"]["top_logprobs"]) == 6
    assert "logprobs" not in (await answered(running, TEXT, logprobs=None))["choices"][0]


def test_offsets_of_tokens_that_are_parts_of_characters() -> None:
    assert offsets("Anna keeps", ["Anna", " ke", "eps"]) == [0, 4, 7]
    assert offsets("a\u00fcb c", ["a", "<0xC3>", "<0xBC>", "b", " c"]) == [0, 1, 1, 2, 3]
    assert offsets("\ufffd\ufffdaa", ["<0xFF>", "<0xFE>", "a", "a"]) == [0, 0, 2, 3]
    assert offsets("", ["<0xC3>", ""]) == [0, 0]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("changes", "code", "pointer"),
    [
        ({"messages": []}, "INVALID_REQUEST", "/messages"),
        ({"messages": None}, "INVALID_REQUEST", "/messages"),
        ({"messages": [{"role": "tool", "content": ""}]}, "INVALID_REQUEST", "/messages/0/role"),
        ({"messages": [{"role": "user"}]}, "INVALID_REQUEST", "/messages/0/content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "INVALID_REQUEST", None),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": ""}}]}]},
            "MISSING_CAPABILITY",
            "/messages/0/content/0",
        ),
        ({"tools": [{"type": "function"}]}, "MISSING_CAPABILITY", "/tools"),
        ({"tool_choice": "auto"}, "MISSING_CAPABILITY", "/tool_choice"),
        ({"response_format": {"type": "json_object", "schema_": {}}}, "MISSING_CAPABILITY", "/response_format"),
        ({"safety_model": "guard"}, "MISSING_CAPABILITY", "/safety_model"),
        ({"max_tokens": 0}, "INVALID_REQUEST", "/max_tokens"),
        ({"max_completion_tokens": True}, "INVALID_REQUEST", "/max_completion_tokens"),
        ({"temperature": True}, "INVALID_REQUEST", "/temperature"),
        ({"temperature": -1}, "INVALID_REQUEST", "/temperature"),
        ({"top_p": 1.1}, "INVALID_REQUEST", "/top_p"),
        ({"top_k": -2}, "INVALID_REQUEST", "/top_k"),
        ({"repetition_penalty": 0}, "INVALID_REQUEST", "/repetition_penalty"),
        ({"stop": [""]}, "INVALID_REQUEST", "/stop/0"),
        ({"n": 0}, "INVALID_REQUEST", "/n"),
        ({"top_logprobs": 101}, "INVALID_REQUEST", "/top_logprobs"),
    ],
    ids=range(20),
)
async def test_mistakes(
    running: Running, changes: dict[str, Any], code: str, pointer: str | None, stream: bool
) -> None:
    response = await asked(running, stream=stream, **changes)
    assert (response.status_code, response.json()["code"]) == (400, code), response.text
    if pointer is not None:
        assert response.json()["errors"][0]["pointer"] == pointer


@pytest.mark.parametrize("changes", [{"echo": True}, {"logprobs": True}, {"top_logprobs": 1}], ids=range(3))
async def test_what_is_not_told_in_a_stream(running: Running, changes: dict[str, Any]) -> None:
    response = await asked(running, stream=True, **changes)
    assert (response.status_code, response.json()["code"]) == (400, "MISSING_CAPABILITY")
    response = await asked(running, TEXT, stream=True, **({"logprobs": 0} if "echo" not in changes else changes))
    assert (response.status_code, response.json()["code"]) == (400, "MISSING_CAPABILITY")


async def test_models_that_cannot_chat(running: Running, models_dir: Path) -> None:
    await running.add(tiny_models.save(models_dir / "no-template"), "no-template")
    try:
        for stream in (False, True):
            response = await asked(running, model="no-template", stream=stream)
            assert (response.status_code, response.json()["code"]) == (400, "MISSING_CAPABILITY")
            response = await asked(running, model="nobody", stream=stream)
            assert (response.status_code, response.json()["code"]) == (404, "UNKNOWN_MODEL")
        assert (await asked(running, TEXT, model="no-template", temperature=0)).status_code == 200
    finally:
        await running.client.delete("/models/no-template")


async def test_keys(running: Running) -> None:
    for path in (CHAT, TEXT):
        for headers in ({"Authorization": ""}, {"Authorization": "Bearer wrong"}):
            response = await running.client.post(path, content=b"{", headers=headers)
            assert (response.status_code, response.json()["code"]) == (401, "UNAUTHORIZED")
        response = await running.client.post(path, json={}, headers=await running.key("read", "ingest"))
        assert response.status_code == 403
        stranger = await running.key("admin", tenant="elsewhere")
        what = {"model": "tiny-lm", "messages": MESSAGES, "prompt": PROMPT}
        response = await running.client.post(path, json=what, headers=stranger)
        assert (response.status_code, response.json()["code"]) == (404, "UNKNOWN_MODEL")


async def test_a_full_queue_is_a_client_error(start: Start, tiny_lm: Path) -> None:
    async with start(queue_limit=1) as running:
        await running.add(tiny_lm, "queue-lm")
        opened = await hold(running)
        waiting = asyncio.create_task(asked(running, model="queue-lm"))
        await until(lambda: running.server.explainer.runtime.device.waiting == 1)
        for stream in (False, True):
            full = await asked(running, model="queue-lm", stream=stream)
            assert (full.status_code, full.json()["code"]) == (429, "QUEUE_FULL")
            assert int(full.headers["retry-after"]) > 0
        opened.set()
        assert (await waiting).status_code == 200
        await running.client.delete("/models/queue-lm")


async def test_a_deadline_is_a_client_error(start: Start, tiny_lm: Path) -> None:
    async with start(deadline_seconds=0.2) as running:
        await running.add(tiny_lm, "late-lm")
        opened = await hold(running)
        late = await asked(running, model="late-lm")
        assert (late.status_code, late.json()["code"]) == (409, "CONFLICT")
        opened.set()
        await running.client.delete("/models/late-lm")
