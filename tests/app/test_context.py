"""POST /v1/explainability/context-attributor over the wire: Seekr's contract, section 6."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from app import context as use_case
from app.deployments import deployment_id
from explainers.context import ContextQuestion, attribute
from explainers.loaders import load_causal_lm
from tests.app.conftest import Running, Start, until
from tests.app.test_heatmap import plain
from tests.app.test_jobs import ended
from tests.app.test_limits import hold

pytestmark = pytest.mark.anyio

PATH = "/v1/explainability/context-attributor"
CONTEXT = (
    "Anna lives in Oslo.  Ben lives in Rome!\nThe key is in the red box. Öslo is in 𝄞 Norway.\n\nIt is cold. Is it?"
)
RESPONSE = " Änna lives in Oslo. It is 𝄞 cold.\nIs it?"
SDK = {"context": CONTEXT, "query": "Where?", "response": RESPONSE, "highlight": None, "granularity": "sentence"}
SDK |= {"top_k": 5, "num_ablations": None}
"""What the vendor's client sends."""


async def asked(running: Running, **changes: Any) -> httpx.Response:
    return await running.client.post(PATH, json={**SDK, **changes})


async def answered(running: Running, **changes: Any) -> dict[str, Any]:
    response = await asked(running, **changes)
    assert response.status_code == 200, response.text
    assert b"\n" not in response.content
    found: dict[str, Any] = response.json()
    return found


async def test_answer(running: Running) -> None:
    body = await answered(running)
    assert list(body) == ["response_text", "segments", "highlight", "sources", "id"]
    assert body["response_text"] == RESPONSE and body["highlight"] is body["sources"] is None
    texts = ["Änna lives in Oslo.", "It is 𝄞 cold.", "Is it?"]
    assert [segment["segment_text"] for segment in body["segments"]] == texts
    for index, segment in enumerate(body["segments"]):
        assert list(segment) == ["segment_index", "segment_text", "char_offset", "sources"]
        start, text, sources = segment["char_offset"], segment["segment_text"], segment["sources"]
        assert segment["segment_index"] == index and RESPONSE[start : start + len(text)] == text
        assert len(sources) == 5
        order = [(-source["attribution"], source["id"]) for source in sources]
        assert order == sorted(order) and len({source["id"] for source in sources}) == 5
        for source in sources:
            assert list(source) == ["source_type", "id", "text", "attribution", "offset"]
            assert source["source_type"] == "raw" and -1 < source["attribution"] < 1
            assert CONTEXT[source["offset"] : source["offset"] + len(source["text"])] == source["text"]


async def test_it_is_what_the_engine_finds(running: Running, tiny_lm: Path) -> None:
    model = load_causal_lm(tiny_lm)  # its chat template is at work here
    found = attribute(model, ContextQuestion(CONTEXT, "Where?", RESPONSE, "Oslo", "paragraph", 64))
    body = await answered(running, highlight="Oslo", granularity="paragraph", num_ablations=64)
    assert body["highlight"] == "Oslo" and body["segments"] == []
    values = found.values[0].tolist()
    assert {source["id"]: source["attribution"] for source in body["sources"]} == pytest.approx(
        dict(enumerate(values)), abs=1e-4
    )
    assert len(body["sources"]) == 2 and body["sources"][0]["text"].startswith("Anna") == (values[0] >= values[1])


async def test_top_k_is_the_head_of_the_list(running: Running) -> None:
    whole = (await answered(running, num_ablations=64, top_k=100))["segments"]
    head = (await answered(running, num_ablations=64, top_k=2))["segments"]
    assert [len(segment["sources"]) for segment in whole] == [6, 6, 6]
    assert [segment["sources"] for segment in head] == [segment["sources"][:2] for segment in whole]


async def test_diagnostics_on_request(running: Running) -> None:
    diagnostics = (await answered(running, return_diagnostics=True))["diagnostics"]
    assert list(diagnostics) == [
        *("num_sources", "num_ablations", "lasso_alpha", "mask_probability"),
        *("y_vector_stats", "raw_coef_stats", "scaler_stats"),
    ]
    assert (diagnostics["num_sources"], diagnostics["num_ablations"]) == (6, 58)
    assert (diagnostics["lasso_alpha"], diagnostics["mask_probability"]) == (0.01, 0.5)
    assert all(list(diagnostics[name]) == ["mean", "std", "min", "max"] for name in list(diagnostics)[4:])


async def test_empty_and_null_count_as_absent(running: Running) -> None:
    plain = await answered(running)
    assert await answered(running, highlight="", model="", return_diagnostics=None, unknown=1) == plain
    body = {name: SDK[name] for name in ("context", "query", "response")}
    assert (await running.client.post(PATH, json=body)).json() == plain
    assert (await answered(running, query=""))["segments"] != plain["segments"]


async def test_answers_are_stored_and_drawn(running: Running) -> None:
    first, again = await answered(running, num_ablations=33), await answered(running, num_ablations=33, top_k=1)
    assert first["id"] == again["id"]
    stored = (await running.client.get(f"/explanations/{first['id']}")).json()
    assert stored["kind"] == "context-attribution" and stored["attribution"]["method"] == "context-attribution"
    for segment, values in zip(first["segments"], stored["attribution"]["values"], strict=True):
        assert {source["id"]: source["attribution"] for source in segment["sources"]}.items() <= dict(
            enumerate(values)
        ).items()
    assert stored["request"]["target"] == RESPONSE and stored["forwards"] > 1 and stored["seconds"] > 0
    listed = (await running.client.get("/explanations", params={"kind": "context-attribution"})).json()
    assert first["id"] in [entry["id"] for entry in listed["explanations"]]
    for accept in ("text/html", "image/svg+xml"):
        drawn = await running.client.get(f"/explanations/{first['id']}", headers={"Accept": accept})
        assert drawn.status_code == 200 and "Norway." in drawn.text and "cold." in drawn.text
        if accept == "text/html":
            assert RESPONSE in plain(drawn.text)  # with what stands between the sentences


async def test_equal_requests_are_computed_once(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[object] = []
    attributing = use_case.attributing

    def counted(*arguments: Any) -> Any:
        begun.append(arguments)
        return attributing(*arguments)

    monkeypatch.setattr(use_case, "attributing", counted)
    bodies = await asyncio.gather(*(answered(running, query="Where then?") for _ in range(5)))
    assert len(begun) == 1 and all(body == bodies[0] for body in bodies)


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"context": " \n"}, "INVALID_REQUEST", "/context must not be blank"),
        ({"response": ""}, "INVALID_REQUEST", "/response must not be blank"),
        ({"context": None}, "INVALID_REQUEST", "/context must be a string"),
        ({"query": 7}, "INVALID_REQUEST", "/query must be a string"),
        ({"highlight": "Rome"}, "INVALID_REQUEST", "/highlight must occur"),
        ({"granularity": "chunk"}, "INVALID_REQUEST", "/granularity must be"),
        ({"granularity": "word"}, "INVALID_REQUEST", "/granularity must be"),
        ({"top_k": 0}, "INVALID_REQUEST", "/top_k must be >= 1"),
        ({"top_k": True}, "INVALID_REQUEST", "/top_k"),
        ({"num_ablations": 31}, "INVALID_REQUEST", "/num_ablations must be >= 32"),
        ({"num_ablations": 257}, "INVALID_REQUEST", "/num_ablations must be <= 256"),
        ({"num_ablations": True}, "INVALID_REQUEST", "/num_ablations"),
        ({"num_ablations": 64.5}, "INVALID_REQUEST", "/num_ablations"),
        ({"num_ablations": "64"}, "INVALID_REQUEST", "/num_ablations"),
        ({"return_diagnostics": 1}, "INVALID_REQUEST", "/return_diagnostics"),
        ({"context": CONTEXT * 20}, "CONTEXT_LENGTH_EXCEEDED", "256"),
        ({"query": CONTEXT * 20}, "CONTEXT_LENGTH_EXCEEDED", "256"),
        ({"response": RESPONSE * 40}, "CONTEXT_LENGTH_EXCEEDED", "256"),
    ],
    ids=range(18),
)
async def test_what_cannot_be_asked(running: Running, changes: dict[str, Any], code: str, words: str) -> None:
    response = await asked(running, **changes)
    assert response.status_code == 400, response.text
    body = response.json()
    assert body["code"] == code and words in body["message"]
    assert "Oslo" not in response.text and "Rome" not in response.text


async def test_models_and_keys(running: Running) -> None:
    assert (await answered(running, model="tiny-lm"))["id"] == (await answered(running))["id"]
    deployed = await answered(running, model=deployment_id("default", "tiny-lm"))
    assert deployed["id"] == (await answered(running))["id"]
    for name in ("nowhere", deployment_id("default", "nowhere")):
        unknown = await asked(running, model=name)
        assert (unknown.status_code, unknown.json()["code"]) == (404, "UNKNOWN_MODEL")
    reader = await running.key("read")
    assert (await running.client.post(PATH, json=SDK, headers=reader)).status_code == 403
    assert (await running.client.post(PATH, json=SDK, headers={"Authorization": ""})).status_code == 401
    stranger = await running.key("explain", tenant="strangers")
    missing = await running.client.post(PATH, json=SDK, headers=stranger)
    assert missing.status_code == 400 and "/model must name a model: 0 language models" in missing.json()["message"]


async def test_the_setting_names_the_model(start: Start, running: Running, tiny_lm: Path) -> None:
    await running.add(tiny_lm, "second-lm")
    try:
        several = await asked(running)
        assert several.status_code == 400 and "WHENCE_CONTEXT_MODEL is not set" in several.json()["message"]
        async with start(context_model="second-lm") as other:
            body = await answered(other)
            stored = (await other.client.get(f"/explanations/{body['id']}")).json()
            assert stored["model"] == "second-lm"
    finally:
        assert (await running.client.delete("/models/second-lm")).is_success


async def test_a_run_is_not_known(running: Running) -> None:
    response = await running.client.post(f"{PATH}-from-run", json={"run_id": "run-1", "response_segments": []})
    assert (response.status_code, response.json()["code"]) == (400, "MISSING_CAPABILITY")


async def test_past_the_deadline_it_goes_on_as_a_job(start: Start, running: Running) -> None:
    async with start(deadline_seconds=0.2) as hurried:
        await answered(hurried)  # from the store; the model is loaded
        release = await hold(hurried)
        late = await asked(hurried, query="And then?")
        assert (late.status_code, late.json()["code"]) == (409, "STILL_RUNNING")
        job = (await hurried.client.get(f"/jobs/{late.json()['job']}")).json()
        assert (job["kind"], job["state"], job["model"]) == ("context-attribution", "running", "tiny-lm")
        release.set()
        job = await ended(hurried, job["id"])
        assert job["state"] == "succeeded" and job["explanation"] == job["id"]
        assert (await answered(hurried, query="And then?"))["id"] == job["id"]


async def test_a_full_queue_is_429(start: Start, running: Running) -> None:
    async with start(queue_limit=1) as narrow:
        await answered(narrow)
        device = narrow.server.explainer.runtime.device
        release = await hold(narrow)
        waiting = asyncio.create_task(asked(narrow, query="One"))
        await until(lambda: device.waiting == 1)
        full = await asked(narrow, query="Two")
        assert (full.status_code, full.json()["code"]) == (429, "QUEUE_FULL") and full.headers["retry-after"]
        release.set()
        assert (await waiting).status_code == 200
