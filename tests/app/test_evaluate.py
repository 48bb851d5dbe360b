"""POST /evaluate over the wire, and the identity that ties it to /explain."""

from __future__ import annotations

from typing import Any

import pytest

from tests.app.conftest import PROMPT, TARGET, Running

pytestmark = pytest.mark.anyio

SENTENCE = {"start": 0, "length": 19}


async def evaluated(running: Running, controls: list[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    prompt = [{"type": "text", "data": PROMPT, "controls": controls or []}]
    body = {"model": "tiny-lm", "prompt": prompt, "completion_expected": TARGET, **changes}
    response = await running.client.post("/evaluate", json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def test_answer(running: Running) -> None:
    body = await evaluated(running, contextual_control_threshold=None, hosting=None, tags=["a"], unknown=1)
    assert list(body) == ["model_version", "result", "num_tokens_prompt_total"]
    assert body["model_version"].startswith("sha256:")
    result = body["result"]
    assert list(result) == [
        "log_probability", "log_perplexity", "log_perplexity_per_token", "log_perplexity_per_character",
        "correct_greedy", "token_count", "character_count", "completion",
    ]  # fmt: skip
    assert result["log_perplexity"] == -result["log_probability"] > 0
    assert result["log_perplexity_per_token"] * result["token_count"] == pytest.approx(result["log_perplexity"])
    assert result["log_perplexity_per_character"] * 5 == pytest.approx(result["log_perplexity"])
    assert result["character_count"] == len(TARGET)
    tokens = (await running.client.post("/tokenize", json={"model": "tiny-lm", "prompt": PROMPT})).json()["token_ids"]
    assert body["num_tokens_prompt_total"] == len(tokens) - 1 + result["token_count"]  # without the start token


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"control_factor": 0.0},
        {"control_log_additive": False},
        {"contextual_control_threshold": 0.2},
        {"control_token_overlap": "complete", "control_factor": 0.3},
    ],
)
async def test_a_score_is_a_difference_of_perplexities(running: Running, options: dict[str, Any]) -> None:
    standing = {"start": 20, "length": 3, "factor": 0.5}
    prompt = [{"type": "text", "data": PROMPT, "controls": [standing]}]
    explained = await running.explain(prompt=prompt, prompt_granularity={"type": "word"}, **options)
    scores = explained.json()["explanations"][0]["items"][0]["scores"]
    shared = {name: value for name, value in options.items() if name.startswith("con") and "_token_" not in name}
    shared.pop("control_factor", None)
    without = (await evaluated(running, [standing], **shared))["result"]["log_perplexity"]
    overlap = options.get("control_token_overlap", "partial")
    for score in scores:
        chunk = {"start": score["start"], "length": score["length"], "factor": options.get("control_factor", 0.1)}
        found = await evaluated(running, [standing, {**chunk, "token_overlap": overlap}], **shared)
        assert found["result"]["log_perplexity"] - without == pytest.approx(score["score"], abs=1e-4)


async def test_greedy(running: Running) -> None:
    other = (await evaluated(running))["result"]
    assert other["correct_greedy"] == (other["completion"] == TARGET)
    asked = {"model": "tiny-lm", "prompt": PROMPT, "maximum_tokens": other["token_count"], "minimum_tokens": 99}
    completed = (await running.client.post("/complete", json=asked)).json()["completions"][0]
    assert completed["completion"] == other["completion"]


async def test_empty_prompt(running: Running) -> None:
    body = await evaluated(running, prompt="")
    assert body["num_tokens_prompt_total"] == 1 + body["result"]["token_count"]


@pytest.mark.parametrize(
    ("changes", "status", "code", "pointer"),
    [
        ({"completion_expected": ""}, 400, "INVALID_REQUEST", "/completion_expected"),
        ({"completion_expected": None}, 400, "INVALID_REQUEST", "/completion_expected"),
        ({"completion_expected": 3}, 400, "INVALID_REQUEST", "/completion_expected"),
        ({"prompt": None}, 400, "INVALID_REQUEST", "/prompt"),
        ({"contextual_control_threshold": 2}, 400, "INVALID_REQUEST", "/contextual_control_threshold"),
        ({"control_log_additive": 1}, 400, "INVALID_REQUEST", "/control_log_additive"),
        ({"prompt": "Oslo " * 300}, 400, "CONTEXT_LENGTH_EXCEEDED", "/prompt"),
        ({"model": "nowhere"}, 404, "UNKNOWN_MODEL", None),
    ],
)
async def test_mistakes(running: Running, changes: dict[str, Any], status: int, code: str, pointer: str | None) -> None:
    body = {"model": "tiny-lm", "prompt": PROMPT, "completion_expected": TARGET, **changes}
    response = await running.client.post("/v1/evaluate", json=body)
    assert (response.status_code, response.json()["code"]) == (status, code), response.text
    if pointer is not None:
        assert response.json()["errors"][0]["pointer"] == pointer
