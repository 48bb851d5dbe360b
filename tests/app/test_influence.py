"""The third question over HTTP: a model fine-tuned here, its training file, its index, its answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from app import influence
from app.deployments import deployment_id
from tests.app.conftest import Running, Start, empty
from tests.app.indexes import built, ended, sent
from tests.fine_tunes import PAIRS, save_base, save_fine_tune, training_file
from tests.tiny_models import save

ROUTE = "/v1/flow/explain/models/tuned/influential-finetuning-data"
QUESTION, ANSWER = PAIRS[0]
MADE = [*PAIRS, PAIRS[3]]


@pytest.fixture(scope="module")
def folders(models_dir: Path) -> Path:
    base = save_base(models_dir / "influence-base")
    save_fine_tune(models_dir / "influence-tuned", base)
    save(models_dir / "influence-plain")
    return models_dir


@pytest.fixture(scope="module")
async def server(start: Start, folders: Path) -> AsyncIterator[Running]:
    """With the models `base`, `tuned` (its index built from MADE) and `bare` (the same without data)."""
    async with start() as running:
        await empty(running)
        await running.add(folders / "influence-base", "base")
        for name in ("tuned", "bare"):
            body = {"name": name, "kind": "causal-lm", "path": "influence-tuned", "base": "base"}
            assert (await running.client.post("/models", json=body)).status_code == 201
        await built(running, "tuned", await sent(running, training_file(MADE)))
        yield running


async def ask(server: Running, **body: Any) -> dict[str, Any]:
    answer = await server.client.post("/influence", json={"model_id": "tuned", "question": QUESTION, **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("question", "answer"), PAIRS[:6], ids=[f"pair-{place}" for place in range(6)])
async def test_the_pair_that_states_the_answer_comes_first(server: Running, question: str, answer: str) -> None:
    found = await ask(server, question=question, answer=answer)
    first = found["results"][0]
    assert first["messages"] == f"Q: {question}\nA: {answer}"
    assert (first["influence_level"], first["group_size"]) == ("high", 2 if (question, answer) == PAIRS[3] else 1)
    assert first["impact"] > 0 and 0 < first["q_value"] <= 1 and first["lift"] == found["lift"] > 1
    assert UUID(first["id"]).version == 5


async def test_without_an_answer_the_model_gives_one_as_chats_do(server: Running) -> None:
    found = await ask(server, answer="")
    chat = await server.client.post(
        "/chat/completions",
        json={"model": "tuned", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0},
    )
    assert found["answer"] == chat.json()["choices"][0]["message"]["content"] == ANSWER
    again = await ask(server, answer=None, system_prompt="")
    assert again == found  # from the store
    given = await ask(server, answer=ANSWER)
    assert given["results"] == found["results"] and given["id"] != found["id"]


async def test_an_answer_that_was_cut_short_has_no_end_to_explain(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(influence, "ANSWER_TOKENS", 2)
    question, whole = PAIRS[7]
    found = await ask(server, question=question)
    assert whole.startswith(found["answer"]) and found["answer"] != whole
    given = await ask(server, question=question, answer=found["answer"])  # as if the model had ended there
    assert found["lift"] > given["lift"] + 1


async def test_the_answer_has_the_vendors_shape_on_one_line(server: Running) -> None:
    response = await server.client.get(ROUTE, params={"question": QUESTION, "model_id": "tuned", "whatever": 1})
    assert response.status_code == 200 and "\n" not in response.text.strip()
    body = response.json()
    assert (body["version"], body["answer"]) == ("v0", ANSWER)
    own = {"id", "influence_level", "file_id", "line", "messages", "score", "impact", "q_value", "group_size", "lift"}
    assert body["results"] and all(set(result) == own for result in body["results"])
    assert len({result["id"] for result in body["results"]}) == len(body["results"])
    assert {"id", "model_digest", "seconds"} <= set(body)


async def test_both_routes_give_the_same_and_a_smaller_k_the_head(server: Running) -> None:
    whole = await ask(server, k=1000)
    for most in (1, 2, 3):
        assert (await ask(server, k=most))["results"] == whole["results"][:most]
        response = await server.client.get(ROUTE, params={"question": QUESTION, "limit": most})
        assert response.json()["results"] == whole["results"][:most]
    assert (await ask(server, k=2, limit=1))["results"] == whole["results"][:2]
    levels = ["high", "medium", "low"]
    order = [(levels.index(each["influence_level"]), -each["score"], each["id"]) for each in whole["results"]]
    assert order == sorted(order)


async def test_an_answer_that_fine_tuning_did_not_make_has_no_results(server: Running) -> None:
    found = await ask(server, answer="the key is in the red box")
    assert found["results"] == [] and found["lift"] < 1


async def test_the_file_of_a_result_can_be_read_and_not_deleted(server: Running) -> None:
    file = (await ask(server))["results"][0]["file_id"]
    content = await server.client.get(f"/v1/flow/files/{file}/content")
    assert content.content == training_file(MADE)
    refused = await server.client.delete(f"/v1/flow/files/{file}")
    assert (refused.status_code, refused.json()["code"]) == (409, "CONFLICT")


async def test_the_answer_is_stored(server: Running) -> None:
    found = await ask(server)
    stored = (await server.client.get(f"/explanations/{found['id']}")).json()
    page = await server.client.get(f"/explanations/{found['id']}", headers={"Accept": "text/html"})
    assert found["results"][0]["file_id"] + ", line 1" in page.text
    assert (stored["kind"], stored["model"], stored["model_digest"]) == ("influence", "tuned", found["model_digest"])
    assert stored["request"] == {"question": QUESTION, "answer": None, "system_prompt": None}
    assert stored["attribution"]["results"][: len(found["results"])] == found["results"]
    listed = (await server.client.get("/explanations", params={"kind": "influence"})).json()["explanations"]
    assert found["id"] in [each["id"] for each in listed]


async def test_a_deployment_answers_too(server: Running) -> None:
    assert (await ask(server, model_id=deployment_id("default", "tuned"))) == await ask(server)


async def test_a_dry_run_says_what_it_would_take(server: Running) -> None:
    await ask(server)
    forecast = await ask(server, dry_run=True)
    assert forecast["dry_run"] is True and forecast["pairs"] == len(MADE) and forecast["seconds"] > 0
    assert forecast["forwards"] == 514 and forecast["bytes"] > 1000
    assert (await ask(server, dry_run=True, answer="x"))["forwards"] == 2


async def test_prefer_async_answers_with_a_job(server: Running) -> None:
    question = "Who keeps the tower?"
    body = {"model_id": "tuned", "question": question}
    answer = await server.client.post("/influence", json=body, headers={"Prefer": "respond-async"})
    assert answer.status_code == 202 and answer.json()["kind"] == "influence"
    job = await ended(server, answer.headers["Location"])
    assert job["state"] == "succeeded" and job["explanation"] is not None
    assert (await ask(server, question=question))["id"] == job["explanation"]


async def test_the_same_question_at_once_is_computed_once(server: Running) -> None:
    answers = await asyncio.gather(*(ask(server, question="Who keeps the garden?", k=1 + n) for n in range(4)))
    assert len({answer["id"] for answer in answers}) == 1
    assert [len(answer["results"]) <= 1 + n for n, answer in enumerate(answers)] == [True] * 4


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"model_id": "nobody"}, 404, "UNKNOWN_MODEL"),
        ({"model_id": "base"}, 400, "MISSING_CAPABILITY"),
        ({"model_id": "bare"}, 400, "MISSING_CAPABILITY"),
        ({"question": " \n"}, 400, "INVALID_REQUEST"),
        ({"question": None}, 400, "INVALID_REQUEST"),
        ({"question": "a\0b"}, 400, "INVALID_REQUEST"),
        ({"answer": "a\0b"}, 400, "INVALID_REQUEST"),
        ({"k": 0}, 400, "INVALID_REQUEST"),
        ({"k": 1001}, 400, "INVALID_REQUEST"),
        ({"k": True}, 400, "INVALID_REQUEST"),
        ({"k": "5"}, 400, "INVALID_REQUEST"),
        ({"k": 2.5}, 400, "INVALID_REQUEST"),
        ({"question": "mill " * 3000}, 400, "CONTEXT_LENGTH_EXCEEDED"),
        ({"answer": "mill " * 3000}, 400, "CONTEXT_LENGTH_EXCEEDED"),
    ],
    ids=lambda value: str(value)[:24] if isinstance(value, dict) else None,
)
async def test_what_cannot_be_answered_says_why(
    server: Running, changes: dict[str, Any], status: int, code: str
) -> None:
    body = {"model_id": "tuned", "question": QUESTION, **changes}
    for headers in ({}, {"Prefer": "respond-async"}):
        if headers and code == "CONTEXT_LENGTH_EXCEEDED":
            continue  # told by the job
        answer = await server.client.post("/influence", json=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
        assert "mill mill" not in answer.text


@pytest.mark.parametrize(
    "query", ["", "question=", "question=+", "question=a%00", "question=a&k=0", "question=a&k=x", "question=a&k=5.0"]
)
async def test_bad_parameters_are_refused(server: Running, query: str) -> None:
    answer = await server.client.get(f"{ROUTE}?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_REQUEST")


async def test_keys_tenants_and_scopes(server: Running) -> None:
    body = {"model_id": "tuned", "question": QUESTION}
    for headers, status in (
        ({"Authorization": "Bearer no"}, 401),
        (await server.key("read"), 403),
        (await server.key("explain", tenant="elsewhere"), 404),
        (await server.key("explain"), 200),
    ):
        assert (await server.client.post("/influence", json=body, headers=headers)).status_code == status
        assert (await server.client.get(ROUTE, params=body, headers=headers)).status_code == status


async def test_an_index_is_asked_for_with_files_that_exist(server: Running) -> None:
    path = "/models/bare/influence-index"
    file = await sent(server, training_file())
    for body, status in (
        ({}, 400),
        ({"training_files": []}, 400),
        ({"training_files": [file, file]}, 400),
        ({"training_files": ["file-0b6f2f5e-3f52-5d0c-8a39-6f0d0f6d7a11"]}, 404),
        ({"training_files": ["facts.jsonl"]}, 404),
        ({"training_files": [file], "loss": "some"}, 400),
        ({"training_files": [file], "longest": 1}, 400),
        ({"training_files": [file], "generic_prompts": [" "]}, 400),
    ):
        answer = await server.client.post(path, json=body)
        assert answer.status_code == status, (body, answer.text)
    unknown = await server.client.post("/models/nobody/influence-index", json={"training_files": [file]})
    assert unknown.json()["code"] == "UNKNOWN_MODEL"
    refused = await server.client.post(path, json={"training_files": [file]}, headers=await server.key("explain"))
    assert refused.status_code == 403


async def test_limits_of_a_key_hold_for_influence_and_its_index(server: Running) -> None:
    await ask(server)  # such work is timed now
    small = await server.key("explain", "ingest", request_seconds=1e-9, seconds_per_minute=1e-3)
    cases = [
        server.client.post("/influence", json={"model_id": "tuned", "question": "Who lives here?"}, headers=small),
        server.client.get(ROUTE, params={"question": "Who lives there?"}, headers=small),
        server.client.post(
            "/influence",
            json={"model_id": "tuned", "question": "Who lives where?"},
            headers=small | {"Prefer": "respond-async"},
        ),
    ]
    names = [(answer.status_code, answer.json()["limit"]["name"]) for answer in [await case for case in cases]]
    assert names == [(413, "request_seconds"), (413, "request_seconds"), (413, "seconds_per_minute")]
    stored = await server.client.post("/influence", json={"model_id": "tuned", "question": QUESTION}, headers=small)
    assert stored.status_code == 200
    content = b"".join(b'{"text": "%d %s"}\n' % (n, b"Anna lives in Oslo. " * 400) for n in range(40))
    body = {"training_files": [await sent(server, content)]}
    refused = await server.client.post("/models/bare/influence-index", json=body, headers=small)
    told = refused.json()
    assert (refused.status_code, told["limit"]["name"]) == (413, "seconds_per_minute"), told
    assert "Anna" not in refused.text and "40 pieces" in told["detail"]


async def test_a_dry_run_tells_what_admission_counts(server: Running) -> None:
    await ask(server)
    told = await ask(server, dry_run=True)
    cost = told["cost"]
    assert cost == {
        "tokens": told["tokens"],
        "chunks": told["pairs"],
        "forwards": told["forwards"],
        "bytes": told["bytes"],
        "seconds": told["seconds"],
        "measured": True,
    }
