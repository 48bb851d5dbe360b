"""What /explain offers beyond the vendor: other methods, tests of the scores, forecasts, own words, chats."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.forecasts import Rates
from app.questions import Question, question_from
from explainers import chat_template
from explainers.decoding import CompletionConfig
from explainers.registry import METHODS
from explainers.sampling import Sampling
from explainers.types import AtmanConfig, ScreenedConfig, Text, Turn
from tests import tiny_models
from tests.app.conftest import PROMPT, TARGET, Running, Start

pytestmark = pytest.mark.anyio

WORDS = {"prompt_granularity": {"type": "word"}}
IDS = [{"type": "text", "data": PROMPT}, {"type": "token_ids", "data": [70, 71, 72]}]
TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}]\n{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
MESSAGES = [
    {"role": "system", "content": "Anna lives in Oslo."},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "Ben lives in Rome. ", "name": "notes, page 2"},
            {"type": "text", "text": "Where is Anna?"},
        ],
    },
]


@pytest.fixture(scope="module")
async def chatting(start: Start, models_dir: Path) -> AsyncIterator[Running]:
    """An application whose model `chat-lm` has a chat template."""
    folder = tiny_models.save(models_dir / "chat-lm")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    async with start() as running:
        await running.add(folder, "chat-lm")
        yield running


async def explained(running: Running, **changes: Any) -> dict[str, Any]:
    response = await running.explain(**changes)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def items(body: dict[str, Any], explanation: int = 0) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = body["explanations"][explanation]["items"]
    return found


async def stored(running: Running, body: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = (await running.client.get(f"/explanations/{body['id']}")).json()
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target_granularity", ["complete", "token"])
async def test_methods_answer_in_one_form(running: Running, method: str, target_granularity: str) -> None:
    asked = {**WORDS, "prompt": IDS, "target_granularity": target_granularity}
    exact, found = await explained(running, **asked), await explained(running, **asked, method=method)
    assert found["method"] == method
    assert found.get("approximate") == (True if METHODS[method].approximate else None)
    assert [explanation["target"] for explanation in found["explanations"]] == [
        explanation["target"] for explanation in exact["explanations"]
    ]
    for one, other in zip(items(found), items(exact), strict=True):
        assert (one["type"], len(one["scores"])) == (other["type"], len(other["scores"]))
    assert (await explained(running, **asked, method=method))["id"] == found["id"]


async def test_screened_says_which_scores_are_exact(running: Running) -> None:
    exact = await explained(running, **WORDS, prompt=IDS)
    found = await explained(running, **WORDS, prompt=IDS, method="screened", exact_scores=3)
    text, ids, _ = items(found)
    flags = [score["exact"] for score in text["scores"]] + ids["exact"]
    assert flags.count(True) == 3 and len(ids["exact"]) == 3
    assert all(isinstance(score, float) for score in ids["scores"])
    for mine, other in zip(text["scores"], items(exact)[0]["scores"], strict=True):
        assert not mine["exact"] or mine["score"] == pytest.approx(other["score"], abs=1e-4)
    more = await explained(running, **WORDS, prompt=IDS, method="screened", exact_scores=4)
    assert more["id"] != found["id"]


async def test_ablation_takes_as_many_samples_as_it_is_told(running: Running) -> None:
    few, many = [await explained(running, **WORDS, method="ablation", samples=n) for n in (8, 64)]
    assert few["id"] != many["id"]
    told = await explained(running, **WORDS, method="ablation", samples=64, dry_run=True)
    assert 0.5 * told["forwards"] <= many["forwards"] <= told["forwards"]
    response = await running.explain(method="ablation", samples=1)
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (400, "/samples")
    factors = [await explained(running, **WORDS, method="ablation", control_factor=factor) for factor in (0.1, 0.5)]
    assert factors[0] == factors[1]


async def test_multiplicative_form_has_a_gradient_too(running: Running) -> None:
    found = await explained(running, **WORDS, method="gradient", control_log_additive=False)
    assert any(score["score"] != 0 for score in items(found)[0]["scores"])


@pytest.mark.parametrize("method", METHODS)
async def test_uncertainty_stands_beside_each_score(running: Running, method: str) -> None:
    plain = await explained(running, **WORDS, prompt=IDS, method=method)
    found = await explained(running, **WORDS, prompt=IDS, method=method, uncertainty=True)
    assert found["id"] != plain["id"]
    sampled = method == "ablation"  # has its standard errors anyway
    assert (found["forwards"] == plain["forwards"]) == sampled
    text, ids, _ = items(found)
    for score in text["scores"]:
        assert score["uncertainty"] >= 0
        assert score.get("below_noise", False) == (abs(score["score"]) <= score["uncertainty"])
    assert len(ids["uncertainty"]) == len(ids["scores"]) == 3
    assert all(("uncertainty" in score) == sampled for score in items(plain)[0]["scores"])
    kept = await stored(running, found)
    assert kept["request"]["uncertainty"] is True
    assert kept["attribution"]["uncertainty"][0][0] == text["scores"][0]["uncertainty"]
    assert (await explained(running, **WORDS, prompt=IDS, method=method, uncertainty=True)) == found


async def test_faithfulness_is_computed_when_asked_for(running: Running) -> None:
    plain = await explained(running, **WORDS)
    found = await explained(running, **WORDS, evaluate=True)
    assert "faithfulness" not in plain and found["id"] != plain["id"]
    assert items(found) == items(plain)
    judged = found["faithfulness"]
    assert judged["removed"][0] == 1 and len(judged["drops"]) == len(judged["random_drops"]) == len(judged["removed"])
    assert judged["score"] is None or judged["score"] <= 1
    assert found["forwards"] == plain["forwards"] + judged["forwards"]
    fresh = await explained(running, **WORDS, evaluate=True, fresh=True)
    assert fresh["faithfulness"] == judged and fresh["id"] != found["id"]
    assert (await stored(running, found))["attribution"]["facts"]["faithfulness"] == judged


async def test_dry_run_runs_nothing(running: Running) -> None:
    count = len((await running.client.get("/explanations")).json()["explanations"])
    asked: dict[str, Any] = {**WORDS, "target": " Oslo and Rome and Oslo", "fresh": True}
    told = await explained(running, **asked, dry_run=True)
    assert told["dry_run"] is True and told["bytes"] > 0
    assert len((await running.client.get("/explanations")).json()["explanations"]) == count
    running.server.explainer.rates._taken.clear()  # what is told next is by this answer alone
    done = await explained(running, **asked)
    assert told["forwards"] == done["forwards"]
    assert told["chunks"] == len(items(done)[0]["scores"])
    facts = (await stored(running, done))["attribution"]["facts"]
    assert (told["prompt_tokens"], told["target_tokens"]) == (facts["prompt_tokens"], facts["target_tokens"])
    seconds = (await explained(running, **asked, dry_run=True))["seconds"]
    assert 0.1 * done["seconds"] < seconds < 10 * done["seconds"]
    gradient = await explained(running, **asked, dry_run=True, method="gradient", target_granularity="token")
    assert (gradient["forwards"], gradient["backwards"]) == (1, told["target_tokens"])
    assert (await running.explain(dry_run=True, model="nothing")).status_code == 404
    assert (await running.explain(dry_run=True, prompt="Oslo " * 300)).json()["code"] == "CONTEXT_LENGTH_EXCEEDED"


def test_speed_is_that_of_the_nearest_sizes() -> None:
    rates = Rates()
    assert rates.seconds("m", 1e9) is None
    for number in range(5):
        rates.note("m", 1e6 + number, 0.01)
        rates.note("m", 1e12 + number, 100.0)
    assert rates.seconds("m", 2e6) == pytest.approx(0.02, rel=0.01)
    assert rates.seconds("m", 2e12) == pytest.approx(200.0, rel=0.01)
    assert rates.seconds("other", 1e9) is None


async def test_own_words_are_explained(running: Running) -> None:
    asked: dict[str, Any] = {**WORDS, "target": None, "generate": {"maximum_tokens": 4}}
    found = await explained(running, **asked)
    completion = found["completion"]
    assert completion and found["explanations"][0]["target"] == completion
    given = await explained(running, **WORDS, target=completion)
    assert items(given) == items(found) and "completion" not in given
    assert (await explained(running, **asked))["id"] == found["id"]
    assert (await explained(running, **{**asked, "target": ""}))["id"] == found["id"]
    assert (await explained(running, **{**asked, "fresh": True}))["completion"] == completion
    body = {"model": "tiny-lm", "prompt": PROMPT, "maximum_tokens": 4}
    said = (await running.client.post("/complete", json=body)).json()["completions"][0]["completion"]
    assert said == completion
    page = await running.client.get(f"/explanations/{found['id']}", headers={"Accept": "text/html"})
    assert page.status_code == 200
    # A target wins over `generate`, which then has no effect.
    assert (await explained(running, **{**asked, "target": TARGET}))["id"] == (await explained(running, **WORDS))["id"]


async def test_own_words_may_be_drawn(running: Running) -> None:
    asked: dict[str, Any] = {"target": None, "generate": {"maximum_tokens": 8, "temperature": 2.0}}
    first = await explained(running, **asked)
    assert (await explained(running, **asked, fresh=True))["completion"] == first["completion"]
    asked["generate"]["seed"] = 7
    assert (await explained(running, **asked))["completion"] != first["completion"]
    token = await explained(running, **asked, target_granularity="token")
    assert "".join(part["target"] for part in token["explanations"]) == token["completion"]


async def test_own_words_follow_every_member_of_complete(running: Running) -> None:
    first = await explained(running, target=None, generate={"maximum_tokens": 1})
    ids = (
        await running.client.post("/tokenize", json={"model": "tiny-lm", "prompt": "Rome", "token_ids": True})
    ).json()
    bias = {str(ids["token_ids"][-1]): 100.0}
    biased = await explained(running, target=None, generate={"maximum_tokens": 1, "logit_bias": bias})
    assert biased["completion"] != first["completion"]
    neutral = {"maximum_tokens": 1, "n": 1, "stream": False, "log_probs": None, "tokens": False}
    assert (await explained(running, target=None, generate=neutral))["id"] == first["id"]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"n": 2}, "MISSING_CAPABILITY"),
        ({"best_of": 2}, "MISSING_CAPABILITY"),
        ({"log_probs": 0}, "MISSING_CAPABILITY"),
        ({"echo": True}, "MISSING_CAPABILITY"),
        ({"stream": True}, "MISSING_CAPABILITY"),
        ({"sequence_penalty": 1.0}, "MISSING_CAPABILITY"),
        ({"presence_penalty": 1e300}, "INVALID_REQUEST"),
        ({"logit_bias": {"x": 1}}, "INVALID_REQUEST"),
        ({"maximum_tokens": 0}, "INVALID_REQUEST"),
    ],
)
async def test_what_own_words_cannot_be_is_said(running: Running, changes: dict[str, Any], code: str) -> None:
    response = await running.explain(target=None, generate={"maximum_tokens": 2} | changes)
    assert (response.status_code, response.json()["code"]) == (400, code)
    assert response.json()["errors"][0]["pointer"].startswith("/generate")


async def test_messages_are_items_of_the_answer(chatting: Running) -> None:
    asked: dict[str, Any] = {**WORDS, "model": "chat-lm", "prompt": None, "messages": MESSAGES}
    found = await explained(chatting, **asked)
    system, notes, question, target = items(found)
    assert (system["message"], system["role"]) == (0, "system") and "name" not in system
    assert (notes["message"], notes["role"], notes["name"]) == (1, "user", "notes, page 2")
    assert (question["message"], question["role"]) == (1, "user")
    assert target == {"type": "target", "scores": []}
    texts = ["Anna lives in Oslo.", "Ben lives in Rome. ", "Where is Anna?"]
    for item, text in zip((system, notes, question), texts, strict=True):
        spans = [text[score["start"] : score["start"] + score["length"]] for score in item["scores"]]
        assert spans == text.split()
    kept = await stored(chatting, found)
    assert [part["data"] for part in kept["request"]["prompt"]] == texts
    assert kept["request"]["prompt"][1]["turn"] == {"message": 1, "role": "user", "name": "notes, page 2"}
    plain = await explained(
        chatting, **{**asked, "messages": None, "prompt": [{"type": "text", "data": t} for t in texts]}
    )
    assert plain["id"] != found["id"] and items(plain)[0]["scores"] != system["scores"]
    whole = [MESSAGES[0], {"role": "user", "content": texts[1] + texts[2]}]
    assert (await explained(chatting, **{**asked, "messages": whole}))["id"] != found["id"]
    spoken = await explained(chatting, **asked, target=None, generate={"maximum_tokens": 3})
    assert spoken["completion"]
    assert (await explained(chatting, **asked, dry_run=True))["chunks"] == 11


async def test_messages_that_a_template_cannot_keep_apart(chatting: Running, models_dir: Path) -> None:
    folder = tiny_models.save(models_dir / "trim-lm")
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("message['content']", "message['content'] | trim"))
    await chatting.add(folder, "trim-lm")
    asked: dict[str, Any] = {"model": "trim-lm", "prompt": None}
    tidy = [{"role": "user", "content": "Where is Anna?"}]
    assert (await chatting.explain(**asked, messages=tidy)).status_code == 200
    response = await chatting.explain(**asked, messages=[{"role": "user", "content": " Where is Anna? "}])
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (400, "/messages")
    assert "Anna" not in response.text


async def test_a_template_without_an_end_costs_nobody_else_his_answer(
    chatting: Running, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More requests than the server has threads, of three kinds, and one of another model among them."""
    monkeypatch.setattr(chat_template, "LIMITS", replace(chat_template.LIMITS, call_seconds=3.0))
    folder, loop = tiny_models.save(models_dir / "hanging-lm"), "{% for a in range(99999) %}"
    (folder / "chat_template.jinja").write_text(loop * 4 + "{% endfor %}" * 4)
    await chatting.add(folder, "hanging-lm")
    hung: dict[str, Any] = {"model": "hanging-lm", "messages": MESSAGES[:1]}
    asking = [chatting.explain(**hung, prompt=None, dry_run=dry) for dry in (True, False) for _ in range(6)]
    asking += [chatting.client.post("/chat/completions", json=hung) for _ in range(6)]
    other = chatting.explain(model="chat-lm", prompt=None, messages=MESSAGES)
    *refused, answer = await asyncio.gather(*asking, other)
    assert answer.status_code == 200
    for response in refused:
        assert (response.status_code, response.json()["code"]) == (400, "MISSING_CAPABILITY")
        assert "takes more than" in response.json()["message"] and "Anna" not in response.text


async def test_messages_need_a_template(chatting: Running, models_dir: Path) -> None:
    await chatting.add(tiny_models.save(models_dir / "speechless-lm"), "speechless-lm")
    response = await chatting.explain(model="speechless-lm", prompt=None, messages=MESSAGES)
    assert (response.status_code, response.json()["code"]) == (400, "MISSING_CAPABILITY")


@pytest.mark.parametrize(
    "question",
    [
        Question("m", (Text("a"),), "b", AtmanConfig()),
        Question("m", (Text("a", turn=Turn(0, "user", "x")),), "b", ScreenedConfig(exact=3), "screened", True, True),
        Question(
            "m", (), "", AtmanConfig(), generate=CompletionConfig(3, sampling=Sampling(1.0, logit_bias=((3, 1.5),)))
        ),
    ],
)
def test_questions_survive_their_records(question: Question) -> None:
    import json

    found = question_from("m", json.loads(json.dumps(question.record)))
    assert found == question and found.key == question.key


def test_what_is_not_asked_for_names_nothing() -> None:
    assert set(Question("m", (), "b", AtmanConfig()).record) == {"method", "prompt", "target", "config"}


async def test_jobs_keep_what_was_asked(running: Running) -> None:
    """A job knows its question by its record alone."""
    changes: dict[str, Any] = {"evaluate": True, "target": None, "generate": {"maximum_tokens": 2}, "fresh": True}
    body = {"model": "tiny-lm", "prompt": PROMPT, "method": "screened", "exact_scores": 2, **changes}
    asked = {"Prefer": "respond-async"}
    response = await running.client.post("/explain", json=body, headers=asked)
    assert response.status_code == 202
    refused = await running.client.post("/explain", json={**body, "method": "sorcery"}, headers=asked)
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (400, "/method")
    job = response.json()["id"]
    async with asyncio.timeout(60), running.client.stream("GET", f"/jobs/{job}/events") as events:
        last = [line async for line in events.aiter_lines() if line.startswith("data:")][-1]
    assert '"state":"succeeded"' in last
    facts = (await running.client.get(f"/explanations/{job}")).json()["attribution"]["facts"]
    assert facts["completion"] and facts["faithfulness"]["removed"] and sum(facts["exact"]) <= 2
