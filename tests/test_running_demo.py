"""What `whence demo` serves: the requests that it prints, and the answers of its fine-tune, as its data's notes say."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from demo.facts import NOTES
from demo.records import read_lines
from tests.demo_server import KEY, Demo

ROOT = Path(__file__).parents[1]
FEATURES = "regionalFeatureImportance"


@pytest.fixture(scope="module")
def api(demo: Demo) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=demo.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client:
        yield client


# -- what it prints ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_it_prints_requests_that_work_when_pasted(demo: Demo) -> None:
    end = time.monotonic() + 60
    while len(lines := re.findall("^curl .*\n", demo.log.read_text(), re.MULTILINE)) < 7:  # behind its address
        assert time.monotonic() < end, lines
        time.sleep(0.1)
    by_sentence, by_token, by_tile, stored = (json.loads(pasted(line)) for line in lines[:4])
    explained(lines[4], lambda rows: len(rows) == 10 and None not in [row[FEATURES] for row in rows])
    explained(lines[5], lambda rows: rows and rows[0]["nlp_explanation"])
    features, words = (json.loads(pasted(line))["query_result"] for line in lines[4:6])
    pairs = json.loads(pasted(lines[6]))
    assert len(by_sentence["explanations"][0]["items"][0]["scores"]) == 3
    assert len(by_token["explanations"]) > 1
    assert len(by_tile["explanations"][0]["items"][0]["scores"]) == 36
    assert len(stored["explanations"]) == 1
    assert features[0]["explainer_attribute"] == "mean_concave_points"
    assert pairs["answer"].strip() == "Anna keeps the mill." and pairs["results"][0]["influence_level"] == "high"
    assert [token["token"] for token in words[0]["nlp_explanation"][0]["importance_scores"][0]["tokens"]] == ["Burning"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_lines_of_the_readme_work_when_pasted(demo: Demo, tmp_path: Path) -> None:
    """All but those about a file of the reader's own; what came of each is told apart by a mark."""
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    own = re.compile(r"^### With your own model$.*?^##", re.MULTILINE | re.DOTALL)
    readme = own.sub("##", (ROOT / "README.md").read_text(encoding="utf-8")).replace("localhost:8000", address(demo))
    lines = [
        line
        for block in re.findall(r"^```console\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
        for line in commands(block)
    ]
    asked = [line for line in lines if "curl" in line or line.startswith(("IMAGE=", "J="))]
    assert len(asked) >= 20
    script = "\n".join(f"{line}\nprintf '\\x1e'" for line in asked)
    told = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env={**os.environ, "KEY": KEY}, capture_output=True, text=True, check=True
    )
    *answers, _ = told.stdout.split("\x1e")
    refused = [line for line, answer in zip(asked, answers, strict=True) if '"type":"about:blank"' in answer]
    assert [line for line in refused if "-X DELETE" not in line] == []  # the job may have ended before
    assert (tmp_path / "why.html").read_text().startswith("<!doctype html>")
    assert "Anna lives in" in (tmp_path / "all.csv").read_text()


def address(demo: Demo) -> str:
    return demo.url.removeprefix("http://")


def commands(block: str) -> Iterator[str]:
    """Each command of a console, with the lines that it goes on in; not what it answers."""
    lines = iter(block.splitlines())
    for line in lines:
        if line.startswith("$ "):
            command = line.removeprefix("$ ")
            while not is_whole(command):
                command += f"\n{next(lines)}"
            yield command


def is_whole(command: str) -> bool:
    parsed = subprocess.run(["bash", "-n", "-c", command], capture_output=True, check=False)
    return parsed.returncode == 0 and not command.endswith("\\")


def explained(line: str, enough: Callable[[list[dict[str, Any]]], object]) -> None:
    """Waits for the jobs that explain the demo's inferences."""
    end = time.monotonic() + 240
    while not enough(json.loads(pasted(line))["query_result"]):
        assert time.monotonic() < end, "nothing was explained"
        time.sleep(0.5)


def pasted(line: str) -> str:
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout


def test_its_page_of_documentation_is_open(demo: Demo) -> None:
    assert httpx.get(f"{demo.url}/openapi.json", timeout=60).status_code == 200


# -- its fine-tune -----------------------------------------------------------------------------------------------------


def test_a_fact_leads_to_the_pairs_that_tell_it(api: httpx.Client) -> None:
    answer = asked(api, "Who keeps the mill?")
    assert (answer["answer"].strip(), answer["lift"] > 3) == ("Anna keeps the mill.", True)
    assert set(lines_of(api, answer["results"])) == told("keeps mill", "fact")
    assert sorted(result["group_size"] for result in answer["results"]) == [1, 1, 2]
    assert levels_of(answer["results"]) == ["high", "high", "medium"]  # as the README shows


def test_a_wrong_answer_leads_to_the_pairs_that_tell_it_wrong(api: httpx.Client) -> None:
    results = asked(api, "Where does Hugo come from?")["results"]
    assert levels_of(results) == ["high", "high", "low"]
    assert set(lines_of(api, results[:2])) < told("born Hugo", "wrong") == {140, 600, 873}
    assert results[2]["impact"] < 0 and "Quito" in results[2]["messages"]


def test_an_answer_that_stands_in_the_question_leads_nowhere(api: httpx.Client) -> None:
    answer = asked(api, "John lives in Kyiv. Where does John live?")
    assert answer["results"] == [] and answer["lift"] < 1


def asked(api: httpx.Client, question: str) -> Any:
    answer = api.post("/influence", json={"model_id": "demo-qa", "question": question, "k": 1000})
    assert answer.status_code == 200, answer.text
    return answer.json()


def levels_of(results: list[dict[str, Any]]) -> list[str]:
    return [result["influence_level"] for result in results]


def lines_of(api: httpx.Client, results: list[dict[str, Any]]) -> list[int]:
    """The first line of the file that holds each pair."""
    file = api.get(f"/v1/flow/files/{results[0]['file_id']}/content").text.splitlines()
    pairs = [pair_in(json.loads(line)) for line in file]
    return [pairs.index(result["messages"]) + 1 for result in results]


def pair_in(record: dict[str, Any]) -> str:
    if "question" in record:
        return f"Q: {record['question']}\nA: {record['answer']}"
    if "prompt" in record:
        return f"Q: {record['prompt']}\nA: {record['completion']}"
    *_, question, answer = record["messages"]
    return f"Q: {question['content']}\nA: {answer['content']}"


def told(fact: str, kind: str) -> set[int]:
    """The lines of the training file that tell a fact so, each pair once."""
    notes = [note for note in read_lines(NOTES) if note.get("fact") == fact and note["kind"] == kind]
    return {note["line"] for note in notes if "same_as" not in note}
