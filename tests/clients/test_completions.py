"""Completing, evaluating and chatting with the vendor's own client, unmodified."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.clients.conftest import Drive
from tests.clients.server import Server

SCRIPT = "drive_completions.py"
TEXT = "Anna lives in Oslo. Ben lives in Rome. Anna lives in"


@pytest.fixture(scope="module")
def answers(drive: Drive) -> Any:
    return drive(SCRIPT, "complete")


def text(answers: Any, name: str, index: int = 0) -> str:
    found: str = answers[name]["completions"][index]["completion"]
    return found


def test_scores_are_differences_of_perplexities(drive: Drive) -> None:
    found = drive(SCRIPT, "evaluate")
    base = found["plain"]["result"]["log_perplexity"]
    differences = [answer["result"]["log_perplexity"] - base for answer in found["controlled"]]
    assert differences == pytest.approx([score["score"] for score in found["scores"]], abs=1e-4)
    assert drive(SCRIPT, "evaluate, async") == found["plain"]


def test_every_completion_says_why_it_ends(answers: Any) -> None:
    reasons = {"maximum_tokens", "end_of_text", "stop_sequence_reached"}
    for answer in answers.values():
        assert answer["model_version"].startswith("sha256:")
        assert {completion["finish_reason"] for completion in answer["completions"]} <= reasons
    assert answers["nothing"]["num_tokens_generated"] == 0 and answers["nothing"]["num_tokens_prompt_total"] == 1


def test_controls_act_on_completions(answers: Any) -> None:
    assert text(answers, "suppressed") != text(answers, "greedy")


def test_details_are_as_many_as_tokens(answers: Any) -> None:
    (details,) = answers["details"]["completions"]
    assert details["completion"] == text(answers, "greedy")
    assert len(details["log_probs"]) == len(details["completion_tokens"]) <= 8
    (echo,) = answers["echo"]["completions"]
    assert echo["completion"].startswith(TEXT) and echo["log_probs"][0] == {}
    assert len(echo["log_probs"]) == len(echo["completion_tokens"])


def test_several_are_different_and_counted(answers: Any) -> None:
    assert len({text(answers, "several", index) for index in range(3)}) > 1
    assert len(answers["best"]["completions"]) == 2
    counted = answers["best"]["num_tokens_prompt_total"]
    assert counted == 4 * answers["greedy"]["num_tokens_prompt_total"]


def test_the_async_client_gets_the_same(drive: Drive, answers: Any) -> None:
    assert drive(SCRIPT, "complete, async") == answers


def test_streams_are_the_same_in_pieces(drive: Drive, answers: Any) -> None:
    for name, items in drive(SCRIPT, "complete with streaming").items():
        assert items[-1]["kind"] == "CompletionSummary"
        for total in ("num_tokens_prompt_total", "num_tokens_generated"):
            assert items[-1][total] == answers[name][total]
        for index, completion in enumerate(answers[name]["completions"]):
            *chunks, summary = [item for item in items[:-1] if item["index"] == index]
            assert {chunk["kind"] for chunk in chunks} == {"StreamChunk"} and summary["kind"] == "StreamSummary"
            assert "".join(chunk["completion"] for chunk in chunks) == completion["completion"]
            assert summary["finish_reason"] == completion["finish_reason"]
            for member in ("log_probs", "completion_tokens"):
                joined = [entry for chunk in chunks for entry in chunk[member] or []]
                assert joined == (completion[member] or [])


def test_leaving_a_stream_frees_the_device(drive: Drive, server: Server) -> None:
    before = len(server.statuses("/complete"))
    assert drive(SCRIPT, "leave") == {"kind": "StreamChunk"}
    started = time.monotonic()
    while server.statuses("/complete")[before:] != [499]:
        assert time.monotonic() - started < 60
        time.sleep(0.1)
    assert drive(SCRIPT, "mistake in a stream") == "CONTEXT_LENGTH_EXCEEDED"
    assert server.statuses("/complete")[before:] == [499, 400]


def test_chat(drive: Drive) -> None:
    answer = drive(SCRIPT, "chat")
    assert drive(SCRIPT, "chat, async") == answer
    assert answer["message"]["role"] == "assistant" and answer["message"]["content"]
    first, *pieces, end, usage = drive(SCRIPT, "chat with streaming")
    assert (first["role"], first["content"]) == ("assistant", "")
    assert "".join(piece["content"] for piece in pieces) == answer["message"]["content"]
    assert end == {"finish_reason": answer["finish_reason"]}
    assert usage["usage"]["total_tokens"] > usage["usage"]["completion_tokens"] > 0


def test_mistakes_are_value_errors(drive: Drive) -> None:
    assert drive(SCRIPT, "mistakes") == {
        "too many tokens": "CONTEXT_LENGTH_EXCEEDED",
        "best of too few": "INVALID_REQUEST",
        "steering": "MISSING_CAPABILITY",
    }
