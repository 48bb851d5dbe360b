"""Questions to `POST /explain` made at random: right ones have a finite score for every part, wrong ones are refused.

WHENCE_FUZZ_EXAMPLES makes more of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.settings import Settings
from tests.contract.served import KEY, served
from tests.postgres import Server
from tests.tiny_models import save

EXAMPLES = int(os.environ.get("WHENCE_FUZZ_EXAMPLES", "60"))
FUZZ = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
VOCABULARY = 298
TEXTS = st.lists(
    st.sampled_from(["Anna ", "lives in ", "Oslo. ", "\n\n", "é", "👩‍👩‍👧", "a,b,c", "\u202e", "　", "İ", "\t"]),
    max_size=6,
).map("".join)
FACTORS = st.sampled_from([0, 0.1, 0.5, 1, 2.5, 1e-9])
OVERLAPS = st.sampled_from([None, "partial", "complete"])


@st.composite
def text_items(draw: st.DrawFn) -> dict[str, Any]:
    data = draw(TEXTS)
    controls = []
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, len(data) - start))
        controls.append(
            {"start": start, "length": length, "factor": draw(FACTORS), "token_overlap": draw(OVERLAPS)}
        )  # fmt: skip
    return {"type": "text", "data": data} | draw(st.sampled_from([{}, {"controls": controls}]))


@st.composite
def id_items(draw: st.DrawFn) -> dict[str, Any]:
    data = draw(st.lists(st.integers(10, VOCABULARY - 1), max_size=4))
    controls = [{"index": place, "factor": draw(FACTORS)} for place in range(len(data)) if draw(st.booleans())]
    return {"type": "token_ids", "data": data} | draw(st.sampled_from([{}, {"controls": controls}]))


GRANULARITIES = st.sampled_from(["token", "word", "sentence", "paragraph"]).map(lambda name: {"type": name})
CUSTOM = st.sampled_from([",", " ", "\n", "Oslo"]).map(lambda text: {"type": "custom", "delimiter": text})
QUESTIONS = st.fixed_dictionaries(
    {
        "prompt": TEXTS.filter(str.strip) | st.lists(text_items() | id_items(), max_size=3),
        "target": st.sampled_from([" Oslo", " Oslo and Rome", "é", "👩‍👩‍👧 x", " ", "."]),
    },
    optional={
        "prompt_granularity": st.none() | GRANULARITIES | CUSTOM,
        "target_granularity": st.sampled_from(["complete", "token"]),
        "control_factor": FACTORS,
        "control_log_additive": st.booleans(),
        "contextual_control_threshold": st.none() | st.sampled_from([-1, 0.3, 1]),
        "control_token_overlap": st.sampled_from(["partial", "complete"]),
        "postprocessing": st.sampled_from(["none", "absolute", "square"]),
        "normalize": st.booleans(),
        "method": st.sampled_from(["atman", "gradient", "screened", "ablation"]),
        "samples": st.sampled_from([8, 8.0, 16]),
        "exact_scores": st.integers(1, 3),
        "dry_run": st.booleans(),
    },
)
WRONG: dict[str, tuple[Any, ...]] = {
    "prompt": (
        1,
        {},
        [1],
        [{"type": "text"}],
        [{"type": "sound", "data": ""}],
        [{"type": "token_ids", "data": [10**9]}],
    ),
    "target": ("", None, 1, []),
    "prompt_granularity": ({}, {"type": "page"}, {"type": "custom"}, {"type": "custom", "delimiter": ""}, 1),
    "target_granularity": ("word", 1),
    "control_factor": (-0.1, "0.1", True, 1e400),
    "contextual_control_threshold": (1.1, -2),
    "postprocessing": ("cube", 0),
    "normalize": ("true", 1),
    "method": ("shap", 1),
    "samples": (7, 8.5, 5000, "8"),
    "model": (None, 1),
}


@pytest.fixture(scope="module")
def client(postgres: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder: Path = tmp_path_factory.mktemp("explained")
    save(folder / "my-lm")
    chosen = {"data_dir": postgres.data_dir, "api_key": KEY, "models_dir": folder, "device": "cpu", "threads": 1}
    with served(Settings.model_validate(chosen | {"worker": False, "log_level": "warning"})) as url:
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=url, headers=headers, timeout=120) as client:
            body = {"name": "fuzzed", "kind": "causal-lm", "path": "my-lm"}
            assert client.post("/models", json=body).status_code == 201
            yield client
            assert client.delete("/models/fuzzed").status_code == 204


@FUZZ
@given(asked=QUESTIONS)
def test_a_right_question_has_a_finite_score_for_every_part(client: httpx.Client, asked: dict[str, Any]) -> None:
    response = client.post("/explain", json={"model": "fuzzed"} | asked)
    assert response.status_code == 200, (asked, response.text)
    told = json.loads(response.text, parse_constant=pytest.fail)
    if asked.get("dry_run"):
        assert told["dry_run"] is True and told["forwards"] > 0
        return
    prompt = asked["prompt"] if isinstance(asked["prompt"], list) else [{"type": "text", "data": asked["prompt"]}]
    if asked.get("target_granularity") == "token":
        assert "".join(each["target"] for each in told["explanations"]) == asked["target"]
    else:
        assert [each["target"] for each in told["explanations"]] == [asked["target"]]
    for explanation in told["explanations"]:
        *items, last = explanation["items"]
        assert last["type"] == "target" and len(items) == len(prompt)
        for item, sent in zip(items, prompt, strict=True):
            check(item, sent)


def check(item: dict[str, Any], sent: dict[str, Any]) -> None:
    """Text in pieces within it, in order; a number for each token id."""
    assert item["type"] == sent["type"]
    if item["type"] == "token_ids":
        assert len(item["scores"]) == len(sent["data"])
        return
    starts = [score["start"] for score in item["scores"]]
    assert starts == sorted(starts)  # tokens of one character may share it
    assert all(score["start"] + score["length"] <= len(sent["data"]) for score in item["scores"])


@FUZZ
@given(asked=QUESTIONS, name=st.sampled_from(sorted(WRONG)), data=st.data())
def test_a_wrong_question_is_refused(
    client: httpx.Client, asked: dict[str, Any], name: str, data: st.DataObject
) -> None:
    body = {"model": "fuzzed"} | asked | {name: data.draw(st.sampled_from(WRONG[name]))}
    content = json.dumps(body).replace("Infinity", "1e400")
    response = client.post("/explain", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 400, (body, response.text)
    told = response.json()
    assert told["code"] in ("INVALID_REQUEST", "MISSING_CAPABILITY", "CONTEXT_LENGTH_EXCEEDED"), told
    assert all(text not in told["detail"] for text in ("Traceback", ".py", "Anna", "torch")), told
