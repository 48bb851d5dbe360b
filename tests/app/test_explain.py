"""POST /explain over the wire, to the letter of the contract."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest

from tests.app.conftest import PROMPT, TARGET, Running, Start, ready

pytestmark = pytest.mark.anyio

ITEM_KINDS = [
    {"type": "text", "data": PROMPT, "controls": None},
    {"type": "token_ids", "data": [70, 71, 72]},
    {"type": "text", "data": ""},
]


def scores(body: dict[str, Any], explanation: int = 0, item: int = 0) -> list[Any]:
    found: list[Any] = body["explanations"][explanation]["items"][item]["scores"]
    return found


async def test_complete_answer(running: Running) -> None:
    response = await running.explain(prompt_granularity={"type": "sentence"})
    body = response.json()
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert list(body) == ["model_version", "explanations", "id", "model_digest", "method", "seconds", "forwards"]
    assert body["model_version"].startswith("sha256:") and body["method"] == "atman"
    (explanation,) = body["explanations"]
    assert explanation["target"] == TARGET
    assert [item["type"] for item in explanation["items"]] == ["text", "target"]
    spans = [PROMPT[score["start"] : score["start"] + score["length"]] for score in scores(body)]
    assert spans == ["Anna lives in Oslo.", "Ben lives in Rome.", "Anna lives in"]
    assert scores(body, item=1) == []


async def test_token_answer(running: Running) -> None:
    target = " Oslo and Rome"
    body = (await running.explain(prompt=ITEM_KINDS, target=target, target_granularity="token")).json()
    assert "".join(explanation["target"] for explanation in body["explanations"]) == target
    assert len(body["explanations"]) > 2
    for position, explanation in enumerate(body["explanations"]):
        assert [item["type"] for item in explanation["items"]] == ["text", "token_ids", "text", "target"]
        of_text, of_ids, empty, before = (item["scores"] for item in explanation["items"])
        assert set(of_text[0]) == {"start", "length", "score"}
        assert len(of_ids) == 3 and all(isinstance(score, float) for score in of_ids)
        assert empty == []
        assert len(before) == position and all(set(score) == {"start", "length", "score"} for score in before)


async def test_complete_is_the_sum_of_tokens(running: Running) -> None:
    asked = {"target": " Oslo and Rome", "prompt_granularity": {"type": "word"}}
    whole = scores((await running.explain(**asked)).json())
    parts = (await running.explain(**asked, target_granularity="token")).json()
    for column, piece in enumerate(whole):
        total = sum(scores(parts, row)[column]["score"] for row in range(len(parts["explanations"])))
        assert piece["score"] == pytest.approx(total, abs=1e-5)


async def test_bare_string_is_one_text_item(running: Running) -> None:
    bare = await running.explain(prompt=PROMPT)
    items = await running.explain(prompt=[{"type": "text", "data": PROMPT, "controls": []}])
    assert bare.content == items.content


@pytest.mark.parametrize("prompt", ["", []])
async def test_empty_prompt(running: Running, prompt: object) -> None:
    response = await running.explain(prompt=prompt)
    assert response.status_code == 200
    assert [item["scores"] for item in response.json()["explanations"][0]["items"] if item["scores"]] == []


async def test_null_means_default(running: Running) -> None:
    optional = (
        "hosting", "control_factor", "contextual_control_threshold", "control_log_additive", "postprocessing",
        "normalize", "prompt_granularity", "target_granularity", "control_token_overlap", "method", "fresh",
        "evaluate", "uncertainty", "dry_run", "generate", "messages", "exact_scores", "samples", "tags", "unknown",
    )  # fmt: skip
    plain = await running.explain()
    nulls = await running.explain(**dict.fromkeys(optional))
    assert nulls.status_code == 200 and nulls.content == plain.content


async def test_options_reach_the_method(running: Running) -> None:
    """A client release once dropped `control_factor` silently; users check."""
    word = {"prompt_granularity": {"type": "word"}}
    plain = scores((await running.explain(**word)).json())
    changes: list[dict[str, Any]] = [
        {"control_factor": 0.5},
        {"control_log_additive": False},
        {"contextual_control_threshold": 0.0},
        {"postprocessing": "absolute"},
        {"postprocessing": "square"},
        {"normalize": True},
        {"prompt_granularity": {"type": "custom", "delimiter": "."}},
        {"prompt": [{"type": "text", "data": PROMPT, "controls": [{"start": 0, "length": 4, "factor": 0.2}]}]},
        {"prompt": [{"type": "token_ids", "data": [70, 71], "controls": [{"index": 1, "factor": 3}]}]},
    ]
    seen = [plain]
    for change in changes:
        found = scores((await running.explain(**{**word, **change})).json())
        assert found not in seen, change
        seen.append(found)


async def test_factor_one_changes_nothing(running: Running) -> None:
    found = scores((await running.explain(control_factor=1)).json())
    assert max(abs(score["score"]) for score in found) < 1e-4


async def test_token_overlap_of_a_control_wins(running: Running) -> None:
    async def asked(request: str, control: str | None) -> list[Any]:
        part = {"start": 5, "length": 2, "factor": 0, "token_overlap": control}
        prompt = [{"type": "text", "data": PROMPT, "controls": [part]}]
        return scores((await running.explain(prompt=prompt, control_token_overlap=request)).json())

    granularity = await asked("partial", "partial")
    assert await asked("partial", None) == granularity
    assert await asked("partial", "complete") != granularity


@pytest.mark.parametrize(
    ("changes", "code", "pointer"),
    [
        ({"target": None}, "INVALID_REQUEST", "/target"),
        ({"target": ""}, "INVALID_REQUEST", "/target"),
        ({"target": 3}, "INVALID_REQUEST", "/target"),
        ({"model": None}, "INVALID_REQUEST", "/model"),
        ({"prompt": None}, "INVALID_REQUEST", "/prompt"),
        ({"prompt": 7}, "INVALID_REQUEST", "/prompt"),
        ({"prompt": [{"type": "sound", "data": ""}]}, "INVALID_REQUEST", "/prompt/0"),
        ({"prompt": [{"data": ""}]}, "INVALID_REQUEST", "/prompt/0"),
        ({"prompt": [{"type": "text"}]}, "INVALID_REQUEST", "/prompt/0/data"),
        ({"control_factor": True}, "INVALID_REQUEST", "/control_factor"),
        ({"control_factor": "0.1"}, "INVALID_REQUEST", "/control_factor"),
        ({"control_factor": -0.1}, "INVALID_REQUEST", "/control_factor"),
        ({"contextual_control_threshold": 1.5}, "INVALID_REQUEST", "/contextual_control_threshold"),
        ({"control_log_additive": 1}, "INVALID_REQUEST", "/control_log_additive"),
        ({"normalize": "yes"}, "INVALID_REQUEST", "/normalize"),
        ({"postprocessing": "cube"}, "INVALID_REQUEST", "/postprocessing"),
        ({"prompt_granularity": "sentence"}, "INVALID_REQUEST", "/prompt_granularity"),
        ({"prompt_granularity": {}}, "INVALID_REQUEST", "/prompt_granularity/type"),
        ({"prompt_granularity": {"type": "letter"}}, "INVALID_REQUEST", "/prompt_granularity/type"),
        ({"prompt_granularity": {"type": "custom"}}, "INVALID_REQUEST", "/prompt_granularity/delimiter"),
        ({"prompt_granularity": {"type": "custom", "delimiter": ""}}, "INVALID_REQUEST", None),
        ({"target_granularity": "word"}, "INVALID_REQUEST", "/target_granularity"),
        ({"control_token_overlap": "half"}, "INVALID_REQUEST", "/control_token_overlap"),
        ({"method": "sorcery"}, "MISSING_CAPABILITY", "/method"),
        ({"method": 7}, "INVALID_REQUEST", "/method"),
        ({"method": "screened", "exact_scores": 0}, "INVALID_REQUEST", "/exact_scores"),
        ({"exact_scores": 2.5}, "INVALID_REQUEST", "/exact_scores"),
        ({"evaluate": 1}, "INVALID_REQUEST", "/evaluate"),
        ({"uncertainty": "true"}, "INVALID_REQUEST", "/uncertainty"),
        ({"dry_run": []}, "INVALID_REQUEST", "/dry_run"),
        ({"dry_run": True, "generate": {}, "target": None}, "INVALID_REQUEST", "/dry_run"),
        ({"dry_run": True, "target": None}, "INVALID_REQUEST", "/target"),
        ({"generate": True, "target": None}, "INVALID_REQUEST", "/generate"),
        ({"generate": {"maximum_tokens": 0}, "target": None}, "INVALID_REQUEST", "/generate/maximum_tokens"),
        ({"generate": {"maximum_tokens": True}, "target": ""}, "INVALID_REQUEST", "/generate/maximum_tokens"),
        ({"generate": {"temperature": -1}, "target": ""}, "INVALID_REQUEST", "/generate/temperature"),
        ({"generate": {"stop_sequences": [""]}, "target": ""}, "INVALID_REQUEST", "/generate/stop_sequences/0"),
        ({"generate": {"maximum_tokens": 999}, "target": ""}, "CONTEXT_LENGTH_EXCEEDED", "/generate/maximum_tokens"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "INVALID_REQUEST", "/messages"),
        ({"prompt": None, "messages": []}, "INVALID_REQUEST", "/messages"),
        ({"prompt": None, "messages": [{"role": "god", "content": ""}]}, "INVALID_REQUEST", "/messages/0/role"),
        ({"prompt": None, "messages": [{"role": "user"}]}, "INVALID_REQUEST", "/messages/0/content"),
        ({"prompt": "Oslo " * 300}, "CONTEXT_LENGTH_EXCEEDED", "/prompt"),
    ],
)
async def test_bad_fields(running: Running, changes: dict[str, Any], code: str, pointer: str | None) -> None:
    response = await running.explain(**changes)
    body = response.json()
    assert (response.status_code, body["code"]) == (400, code), body
    if pointer is not None:
        assert body["errors"][0]["pointer"] == pointer


def text(**control: Any) -> dict[str, Any]:
    return {"type": "text", "data": "ab", "controls": [control]}


def ids(*ids: Any, **control: Any) -> dict[str, Any]:
    return {"type": "token_ids", "data": list(ids), "controls": [control] if control else []}


@pytest.mark.parametrize(
    ("item", "pointer"),
    [
        (text(start=0, length=3, factor=1), "/prompt/0/controls/0"),
        (text(start=0, length=-1, factor=1), "/prompt/0/controls/0/length"),
        (text(start=-1, length=1, factor=1), "/prompt/0/controls/0/start"),
        (text(start=0, length=1, factor=False), "/prompt/0/controls/0/factor"),
        (text(start=0, length=1), "/prompt/0/controls/0/factor"),
        (text(start=0, length=1, factor=1, token_overlap="some"), "/prompt/0/controls/0/token_overlap"),
        (ids(1, "2"), "/prompt/0/data/1"),
        (ids(1.5), "/prompt/0/data/0"),
        (ids(-1), "/prompt/0/data/0"),
        (ids(5000), "/prompt/0/data/0"),
        (ids(1, index=1, factor=1), "/prompt/0/controls/0/index"),
        (ids(1, pos=0, factor=1), "/prompt/0/controls/0/index"),
        ({"type": "image", "data": "?!"}, "/prompt/0/data"),
        ({"type": "image", "data": "", "x": 1}, "/prompt/0"),
    ],
)
async def test_bad_items(running: Running, item: dict[str, Any], pointer: str) -> None:
    response = await running.explain(prompt=[item])
    assert (response.status_code, response.json()["code"]) == (400, "INVALID_REQUEST")
    assert response.json()["errors"][0]["pointer"] == pointer


async def test_image_for_a_text_model(running: Running) -> None:
    image = {"type": "image", "data": base64.b64encode(b"\x89PNG\r\n").decode(), "x": 0, "y": 0, "size": 4}
    rect = {"left": 0, "top": 0.5, "width": 1, "height": 0.5}
    response = await running.explain(prompt=[{**image, "controls": [{"rect": rect, "factor": 0.1}]}])
    assert (response.status_code, response.json()["code"]) == (400, "MISSING_CAPABILITY")
    outside = {**image, "controls": [{"rect": {**rect, "height": 0.6}, "factor": 0.1}]}
    assert (await running.explain(prompt=[outside])).json()["errors"][0]["pointer"] == "/prompt/0/controls/0/rect"


async def test_overflowing_factor_is_a_bad_request(running: Running) -> None:
    """Scores that are no numbers never leave, and are never a defect that clients would retry."""
    response = await running.explain(control_factor=1e308, control_log_additive=False)
    assert response.status_code in (200, 400)
    assert "NaN" not in response.text and "Infinity" not in response.text


@pytest.mark.parametrize("name", ["nothing", "a/b", "\x00", "x" * 5000])
async def test_unknown_model(running: Running, name: str) -> None:
    response = await running.explain(model=name)
    assert (response.status_code, response.json()["code"]) == (404, "UNKNOWN_MODEL")


async def test_repeated_and_fresh(running: Running) -> None:
    first = await running.explain()
    assert (await running.explain()).content == first.content
    fresh = (await running.explain(fresh=True)).json()
    assert fresh["id"] != first.json()["id"]
    assert fresh["explanations"] == first.json()["explanations"]
    assert (await running.explain()).json()["id"] == fresh["id"]


async def test_v1_and_nice(running: Running) -> None:
    body = {"model": "tiny-lm", "prompt": PROMPT, "target": TARGET}
    first = await running.client.post("/explain?nice=true", json=body)
    second = await running.client.post("/v1/explain", json=body)
    assert first.status_code == 200 and first.content == second.content


async def test_unusual_characters(running: Running) -> None:
    """Code points, not UTF-16 units; NUL and right-to-left text are text like any other."""
    prompt = "👩‍👩‍👧 e\u0301 \x00 שלום \u2028 \ufeff end"
    response = await running.explain(prompt=prompt, prompt_granularity={"type": "word"}, target="\x00👧")
    assert response.status_code == 200
    pieces = [prompt[score["start"] : score["start"] + score["length"]] for score in scores(response.json())]
    assert pieces[0] == "👩‍👩‍👧" and pieces[-1] == "end"
    stored = (await running.client.get(f"/explanations/{response.json()['id']}")).json()
    assert stored["request"]["prompt"][0]["data"] == prompt
    assert stored["attribution"]["targets"][0]["text"] == "\x00👧"


async def test_tokenizer_routes(running: Running) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str((await running.client.get("/v1/models/tiny-lm/tokenizer")).text)
    asked = {"model": "tiny-lm", "prompt": PROMPT, "tokens": True, "token_ids": True}
    encoding = tokenizer.encode(PROMPT)
    found = (await running.client.post("/tokenize", json=asked)).json()
    assert found == {"tokens": encoding.tokens, "token_ids": encoding.ids}
    only = (await running.client.post("/v1/tokenize", json={**asked, "tokens": False})).json()
    assert only == {"token_ids": encoding.ids}
    back = await running.client.post("/detokenize", json={"model": "tiny-lm", "token_ids": encoding.ids})
    assert back.json() == {"result": tokenizer.decode(encoding.ids)}
    bad = await running.client.post("/detokenize", json={"model": "tiny-lm", "token_ids": [10**6]})
    assert (bad.status_code, bad.json()["errors"][0]["pointer"]) == (400, "/token_ids")
    assert (await running.client.get("/models/nothing/tokenizer")).json()["code"] == "UNKNOWN_MODEL"


async def test_models_available_and_version(running: Running) -> None:
    (entry,) = (await running.client.get("/models_available")).json()
    assert entry == {
        "name": "tiny-lm", "description": "a tiny model", "max_context_size": 256, "hostings": [],
        "image_support": False, "qa_support": False, "summarization_support": False, "embedding_types": [],
        "maximum_completion_tokens": 256, "aligned": False,
    }  # fmt: skip
    version = await running.client.get("/v1/version", headers={"Authorization": ""})
    assert version.text == "1.19.0" and version.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize("path", ["/embed", "/embeddings", "/v1/semantic_embed", "/translate", "/v1/rerank"])
async def test_what_is_not_served_yet_says_so(running: Running, path: str) -> None:
    response = await running.client.post(path, json={"model": "tiny-lm"})
    assert (response.status_code, response.json()["code"]) == (400, "MISSING_CAPABILITY")


async def test_refused_model_says_why_without_its_path(start: Start, models_dir: Path) -> None:
    """Its reason is remembered until its files change; then it is tried again."""
    from tests import tiny_models

    async with start() as running:
        await ready(running)
        others = (await running.client.get("/readyz")).json()["model_counts"]["refused"]
        folder = tiny_models.save(models_dir / "broken")
        await running.add(folder, "broken")
        weights = folder / "model.safetensors"
        good = weights.read_bytes()
        weights.write_bytes(b"no weights")
        running.server.explainer.runtime.forget("default", "broken")
        refused = await running.explain(model="broken")
        assert (refused.status_code, refused.json()["code"]) == (400, "MISSING_CAPABILITY")
        assert str(models_dir) not in refused.text
        assert (await running.explain(model="broken")).json() == refused.json()
        async with asyncio.timeout(60):  # what it tells is up to half a second old
            told = (await running.client.get("/readyz")).json()
            while told["model_counts"]["refused"] != others + 1:
                await asyncio.sleep(0.1)
                told = (await running.client.get("/readyz")).json()
        assert told["ready"]
        assert (await running.client.get("/models/broken")).json()["state"] == "refused"
        weights.write_bytes(good)
        assert (await running.explain(model="broken")).status_code == 200
        assert (await running.client.delete("/models/broken")).status_code == 204
