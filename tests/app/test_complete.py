"""POST /complete over the wire: whole and in events."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import pytest

from app import complete as use_case
from tests.app.conftest import ADMIN_KEY, PROMPT, Running, Start, until

pytestmark = pytest.mark.anyio

CONTROLS = [{"start": 0, "length": 19, "factor": 0.1}]
CONTROLLED = [{"type": "text", "data": PROMPT, "controls": CONTROLS}]
DEFAULTS = {
    "temperature": 0.0, "top_k": 0, "top_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    "repetition_penalties_include_prompt": False, "use_multiplicative_presence_penalty": False, "n": 1,
    "tokens": False, "disable_optimizations": False, "minimum_tokens": 0, "echo": False,
    "use_multiplicative_frequency_penalty": False, "sequence_penalty": 0.0, "sequence_penalty_min_length": 2,
    "use_multiplicative_sequence_penalty": False, "completion_bias_inclusion_first_token_only": False,
    "completion_bias_exclusion_first_token_only": False, "control_log_additive": True,
    "repetition_penalties_include_completion": True, "raw_completion": False,
}  # fmt: skip
"""What the vendor's client always sends."""


async def completed(running: Running, **changes: Any) -> dict[str, Any]:
    response = await asked(running, **changes)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def asked(running: Running, **changes: Any) -> httpx.Response:
    body = {"model": "tiny-lm", "prompt": PROMPT, "maximum_tokens": 8, "minimum_tokens": 9, **changes}
    return await running.client.post("/complete", json=body)


async def streamed(running: Running, **changes: Any) -> list[dict[str, Any]]:
    response = await asked(running, stream=True, **changes)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *parts, last = response.content.split(b"\n\n")
    assert last == b"" and all(part.startswith(b"data: {") and b"\n" not in part for part in parts)
    return [json.loads(part.removeprefix(b"data: ")) for part in parts]


async def test_answer(running: Running) -> None:
    body = await completed(running, **{**DEFAULTS, "minimum_tokens": 9})
    assert list(body) == ["model_version", "completions", "num_tokens_prompt_total", "num_tokens_generated"]
    (completion,) = body["completions"]
    assert list(completion) == ["index", "completion", "finish_reason"]
    assert completion["index"] == 0 and completion["finish_reason"] == "maximum_tokens" and completion["completion"]
    assert body["num_tokens_generated"] == 8
    assert (await completed(running)) == body


async def test_null_means_default(running: Running) -> None:
    optional = [
        *DEFAULTS, "hosting", "best_of", "stop_sequences", "logit_bias", "log_probs", "penalty_bias", "seed",
        "penalty_exceptions", "penalty_exceptions_include_stop_sequences", "completion_bias_inclusion",
        "completion_bias_exclusion", "steering_concepts", "contextual_control_threshold", "stream", "tags",
    ]  # fmt: skip
    plain = await completed(running)
    assert await completed(running, **{**dict.fromkeys(optional), "minimum_tokens": 9}) == plain


async def test_log_probabilities_sum_to_the_evaluation(running: Running) -> None:
    words = (await running.client.post("/tokenize", json={"model": "tiny-lm", "prompt": " Rome in Oslo."})).json()
    readable = {str(token): 1000.0 for token in words["token_ids"][1:]}  # so that the text is read back as the same ids
    for options in ({}, {"contextual_control_threshold": 0.1}, {"control_log_additive": False}):
        asked = {"prompt": CONTROLLED, "temperature": 50.0, "logit_bias": readable, "log_probs": 0, **options}
        (completion,) = (await completed(running, **asked))["completions"]
        total = sum(log_prob for entry in completion["log_probs"] for log_prob in entry.values())
        expected = {"prompt": CONTROLLED, "completion_expected": completion["completion"], **options}
        response = await running.client.post("/evaluate", json={"model": "tiny-lm", **expected})
        result = response.json()["result"]
        assert result["token_count"] == 8
        assert total == pytest.approx(result["log_probability"], abs=1e-4)


async def test_options_reach_the_engine(running: Running) -> None:
    plain = (await completed(running))["completions"][0]["completion"]
    seen = [plain]
    changes: list[dict[str, Any]] = [
        {"prompt": [{**CONTROLLED[0], "controls": [{"start": 0, "length": 19, "factor": 0.0}]}]},
        {"temperature": 1.0},
        {"temperature": 1.0, "seed": 1},
        {"top_k": 5},
        {"top_p": 0.9},
        {"frequency_penalty": -50.0, "repetition_penalties_include_prompt": True},
        {"presence_penalty": -50.0, "repetition_penalties_include_prompt": True},
        {"logit_bias": {"70": 1000.0}},
    ]
    for change in changes:
        found = (await completed(running, **change))["completions"][0]["completion"]
        assert found not in seen, change
        seen.append(found)
    assert (await completed(running, top_k=1))["completions"][0]["completion"] == plain
    assert (await completed(running, maximum_tokens=0))["completions"][0]["completion"] == ""
    stop = plain[2:4]
    stopped = (await completed(running, stop_sequences=[stop]))["completions"][0]
    assert stopped["completion"] == plain[: plain.index(stop)]
    assert stopped["finish_reason"] == "stop_sequence_reached"


async def test_tokens_and_log_probabilities(running: Running) -> None:
    options = {"log_probs": 2, "tokens": True, "echo": True, "raw_completion": True, "n": 2, "temperature": 1.0}
    body = await completed(running, **options)
    prompt_tokens = body["num_tokens_prompt_total"] // 2
    assert body["num_tokens_generated"] == 16
    assert [item["index"] for item in body["completions"]] == [0, 1]
    for item in body["completions"]:
        assert item["completion"].startswith(PROMPT) and item["raw_completion"].startswith(PROMPT)
        assert len(item["completion_tokens"]) == len(item["log_probs"]) == prompt_tokens + 8
        assert "".join(item["completion_tokens"][:prompt_tokens]) == PROMPT
        assert item["log_probs"][0] == {} and all(2 <= len(entry) <= 3 for entry in item["log_probs"][1:])
        for token, entry in zip(item["completion_tokens"][1:], item["log_probs"][1:], strict=True):
            assert token in entry and all(log_prob < 0 for log_prob in entry.values())


async def test_best_of(running: Running) -> None:
    body = await completed(running, n=2, best_of=4, temperature=1.0, log_probs=0)
    first, second = (
        sum(log_prob for entry in item["log_probs"] for log_prob in entry.values()) for item in body["completions"]
    )
    assert first >= second
    assert body["num_tokens_generated"] == 32


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n": 3, "temperature": 1.0, "log_probs": 1, "tokens": True, "raw_completion": True},
        {"echo": True, "log_probs": 0, "tokens": True},
        {"stop_sequences": ["e", "\n"], "temperature": 1.5, "n": 4},
        {"maximum_tokens": 0},
        {"prompt": CONTROLLED, "contextual_control_threshold": 0.1},
    ],
)
async def test_a_stream_is_the_whole_in_pieces(running: Running, options: dict[str, Any]) -> None:
    whole = await completed(running, **options)
    events = await streamed(running, **options)
    kinds = [event["type"] for event in events]
    assert kinds[-1] == "completion_summary" and "completion_summary" not in kinds[:-1]
    totals = {name: whole[name] for name in ("num_tokens_prompt_total", "num_tokens_generated")}
    assert events[-1] == {"type": "completion_summary", **totals}
    for item in whole["completions"]:
        mine = [event for event in events[:-1] if event["index"] == item["index"]]
        *chunks, summary = mine
        assert summary == {
            "type": "stream_summary",
            "index": item["index"],
            "model_version": whole["model_version"],
            "finish_reason": item["finish_reason"],
        }
        assert chunks and {chunk["type"] for chunk in chunks} == {"stream_chunk"}
        for name in item.keys() - {"index", "finish_reason"}:
            joined = chunks[0][name]
            for chunk in chunks[1:]:
                joined = joined + chunk[name]
            assert joined == item[name], name


@pytest.mark.parametrize(
    ("changes", "code", "pointer"),
    [
        ({"maximum_tokens": -1}, "INVALID_REQUEST", "/maximum_tokens"),
        ({"maximum_tokens": 2.5}, "INVALID_REQUEST", "/maximum_tokens"),
        ({"maximum_tokens": 1000}, "CONTEXT_LENGTH_EXCEEDED", "/maximum_tokens"),
        ({"temperature": -0.1}, "INVALID_REQUEST", "/temperature"),
        ({"temperature": True}, "INVALID_REQUEST", "/temperature"),
        ({"top_k": "3"}, "INVALID_REQUEST", "/top_k"),
        ({"top_p": 1.1}, "INVALID_REQUEST", "/top_p"),
        ({"n": 0}, "INVALID_REQUEST", "/n"),
        ({"n": 2, "best_of": 2}, "INVALID_REQUEST", "/best_of"),
        ({"best_of": 2, "stream": True}, "INVALID_REQUEST", "/best_of"),
        ({"stop_sequences": "end"}, "INVALID_REQUEST", "/stop_sequences"),
        ({"stop_sequences": [""]}, "INVALID_REQUEST", "/stop_sequences/0"),
        ({"stop_sequences": ["x"] * 65}, "INVALID_REQUEST", "/stop_sequences"),
        ({"stop_sequences": ["x" * 257]}, "INVALID_REQUEST", "/stop_sequences/0"),
        ({"prompt": [{"type": "text", "data": ""}] * 10_001}, "INVALID_REQUEST", "/prompt"),
        ({"prompt": [{**CONTROLLED[0], "controls": CONTROLS * 10_001}]}, "INVALID_REQUEST", "/prompt/0/controls"),
        ({"prompt": [{**CONTROLLED[0], "controls": CONTROLS * 5_001}] * 2}, "INVALID_REQUEST", "/prompt"),
        ({"logit_bias": {str(bad): "x" for bad in range(10_001)}}, "INVALID_REQUEST", "/logit_bias"),
        ({"logit_bias": {"x": 1.0}}, "INVALID_REQUEST", "/logit_bias"),
        ({"logit_bias": {"5000": 1.0}}, "INVALID_REQUEST", "/logit_bias/5000"),
        ({"logit_bias": {"5": "1"}}, "INVALID_REQUEST", "/logit_bias/5"),
        ({"log_probs": -1}, "INVALID_REQUEST", "/log_probs"),
        ({"echo": 1}, "INVALID_REQUEST", "/echo"),
        ({"stream": "yes"}, "INVALID_REQUEST", "/stream"),
        ({"frequency_penalty": -1, "use_multiplicative_frequency_penalty": True}, "INVALID_REQUEST", None),
        ({"sequence_penalty": 0.5}, "MISSING_CAPABILITY", "/sequence_penalty"),
        ({"sequence_penalty_min_length": 1}, "INVALID_REQUEST", "/sequence_penalty_min_length"),
        ({"penalty_bias": "a"}, "MISSING_CAPABILITY", "/penalty_bias"),
        ({"penalty_exceptions": ["a"]}, "MISSING_CAPABILITY", "/penalty_exceptions"),
        ({"completion_bias_inclusion": ["a"]}, "MISSING_CAPABILITY", "/completion_bias_inclusion"),
        ({"completion_bias_exclusion": ["a"]}, "MISSING_CAPABILITY", "/completion_bias_exclusion"),
        ({"steering_concepts": ["a"]}, "MISSING_CAPABILITY", "/steering_concepts"),
        ({"prompt": None}, "INVALID_REQUEST", "/prompt"),
        ({"prompt": [{"type": "image", "data": "iVBORw0KGgo="}]}, "MISSING_CAPABILITY", "/prompt/0"),
        ({"prompt": "Oslo " * 300}, "CONTEXT_LENGTH_EXCEEDED", "/prompt"),
        ({"prompt": "Oslo " * 300, "stream": True}, "CONTEXT_LENGTH_EXCEEDED", "/prompt"),
    ],
)
async def test_mistakes(running: Running, changes: dict[str, Any], code: str, pointer: str | None) -> None:
    response = await asked(running, **changes)
    assert (response.status_code, response.json()["code"]) == (400, code), response.text
    if pointer is not None:
        assert response.json()["errors"][0]["pointer"] == pointer


async def test_neutral_values_are_accepted(running: Running) -> None:
    neutral = {
        "penalty_bias": "", "penalty_exceptions": [], "penalty_exceptions_include_stop_sequences": True,
        "completion_bias_inclusion": [], "completion_bias_exclusion": [], "steering_concepts": [],
        "use_multiplicative_sequence_penalty": True, "stop_sequences": ["\N{SNOWMAN}"],
    }  # fmt: skip
    assert await completed(running, **neutral) == await completed(running)
    meets = {"stop_sequences": ["a"], "presence_penalty": 1, "penalty_exceptions_include_stop_sequences": True}
    assert (await asked(running, **meets)).json()["code"] == "MISSING_CAPABILITY"


async def test_keys_and_models(running: Running) -> None:
    reader = await running.key("read")
    body = {"model": "tiny-lm", "prompt": PROMPT, "stream": True}
    assert (await running.client.post("/complete", json=body, headers=reader)).status_code == 403
    assert (await running.client.post("/v1/complete", json={**body, "model": "nowhere"})).status_code == 404


async def test_the_deadline_stops_the_work(start: Start, running: Running) -> None:
    async with start(deadline_seconds=0.05) as hurried:
        long = {"maximum_tokens": None, "minimum_tokens": 10**6, "n": 64, "temperature": 1.0}
        response = await asked(hurried, **long)
        assert (response.status_code, response.json()["code"]) == (409, "CONFLICT")
        assert "job" not in response.json()
        await until(lambda: hurried.server.explainer.runtime.device.waiting == 0)


async def test_others_get_the_device_in_between(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    long = {"maximum_tokens": 200, "minimum_tokens": 201, "n": 8, "temperature": 1.0}

    async def note(name: str, **changes: Any) -> None:
        assert (await asked(running, **changes)).status_code == 200
        order.append(name)

    for module in ("device", "schedule"):
        monkeypatch.setattr(f"app.{module}.QUANTUM", 0.01)
    first = asyncio.create_task(note("long", **long))
    await until(lambda: running.server.explainer.runtime.device.running == 1)
    await asyncio.gather(first, note("short", maximum_tokens=1))
    assert order == ["short", "long"]


async def test_the_device_stops_when_the_client_goes_away(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that is left after its first event."""
    pieces: list[object] = []
    run = use_case.run

    async def counted(*arguments: Any, **named: Any) -> Any:
        *others, listen = arguments

        def heard(event: object) -> None:
            pieces.append(event)
            listen(event)
            time.sleep(0.001)  # so that the client is gone long before all is said

        return await run(*others, heard, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(use_case, "run", counted)
    body = {"model": "tiny-lm", "prompt": PROMPT, "minimum_tokens": 999, "temperature": 1.0, "n": 32, "stream": True}
    sent: list[dict[str, Any]] = []
    gone = asyncio.Event()
    messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if message.get("body"):
            gone.set()

    headers = [(b"authorization", f"Bearer {ADMIN_KEY}".encode()), (b"content-type", b"application/json")]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": "/complete",
        "raw_path": b"/complete", "root_path": "", "scheme": "http", "query_string": b"", "headers": headers,
        "client": ("127.0.0.1", 1), "server": ("whence", 80), "state": {},
    }  # fmt: skip
    await running.app(scope, receive, send)
    heard = len(pieces)
    assert heard < 32 * 150, "all of it was generated"
    assert sent[0]["status"] == 200 and sent[-1].get("more_body")
    await completed(running, maximum_tokens=0)  # the device is free again
    assert len(pieces) < heard + 64
