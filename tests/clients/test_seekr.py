"""The real `seekrai`, unmodified, waiting and with await."""

from __future__ import annotations

import re

import pytest

from tests.clients.conftest import Drive
from tests.clients.server import Server

SCRIPT = "drive_seekr.py"
modes = pytest.mark.parametrize("mode", ["sync", "async"])


@modes
def test_files(drive_seekr: Drive, server: Server, mode: str) -> None:
    found = drive_seekr(SCRIPT, f"{mode}-files")
    file = found["file"]
    assert re.fullmatch(r"file-[0-9a-f-]{36}", file["id"])
    assert (file["object"], file["type"], file["purpose"], file["filename"]) == (
        "file",
        "jsonl",
        "fine-tune",
        "facts.jsonl",
    )
    assert found["size"] == [file["bytes"]] * 2 and found["same"] and found["listed"] and found["content"]
    assert (found["several"], found["by size"]) == (["facts.jsonl", "b.jsonl"], "b.jsonl")
    assert (found["renamed"], found["deleted"]) == ("c.jsonl", [True] * 3)
    assert found["gone"] == ["InvalidRequestError", 404, "NOT_FOUND", "no such file"]
    told = "line 2 is not JSON; line 3 must not be empty: text"
    assert found["bad"] == ["InvalidRequestError", 400, "INVALID_REQUEST", told]
    assert set(server.statuses("/v1/flow/files/{id}/content")) == {200}


@modes
def test_models(drive_seekr: Drive, mode: str) -> None:
    listed = {model["id"]: model for model in drive_seekr(SCRIPT, f"{mode}-models")}
    assert {"tiny-lm", "tiny-vision"} <= set(listed)
    own = listed["tiny-lm"]
    assert (own["name"], own["model_type"]) == ("tiny-lm", "chat") and own["bytes"] > 1000


@modes
def test_chat(drive_seekr: Drive, mode: str) -> None:
    found = drive_seekr(SCRIPT, f"{mode}-chat")
    whole = found["whole"]
    (choice,) = whole["choices"]
    assert (whole["object"], whole["model"], choice["message"]["role"]) == ("chat.completion", "tiny-lm", "assistant")
    assert found["streamed"] == choice["message"]["content"]
    assert found["ends"] == [None] * (len(found["ends"]) - 1) + [choice["finish_reason"]]
    assert (found["chunk"]["object"], found["chunk"]["created"] > 1.7e9) == ("chat.completion.chunk", True)
    usage = whole["usage"]
    assert usage["completion_tokens"] <= 12 < usage["total_tokens"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"]
    first, second = found["asked"]["choices"]
    assert first["message"] == second["message"] and len(first["logprobs"]["tokens"]) == 3
    assert "Anna lives in Oslo." in found["asked"]["prompt"][0]["text"]
    assert found["default"] > 12  # 512 tokens, or the end of the context


@modes
def test_deployments(drive_seekr: Drive, mode: str) -> None:
    found = drive_seekr(SCRIPT, f"{mode}-deployments")
    assert (found["own"]["status"], found["own"]["model_type"]) == ("Active", "Base Model")
    assert found["named"] == "mill facts" or found["named"] == found["again"]  # by the other client
    assert found["again"] == ["ConflictError", 409, "CONFLICT", "the model is deployed already"]
    assert (found["demoted"], found["promoted"]) == ("Inactive", "Active")
    assert found["off"][:3] == ["ConflictError", 409, "CONFLICT"]
    assert found["chat"] and found["counted"]


@modes
def test_sources(drive_seekr: Drive, mode: str) -> None:
    found = drive_seekr(SCRIPT, f"{mode}-sources")
    asked, segments = found["asked"], found["whole"]["segments"]
    assert found["same"] and found["whole"]["response_text"] == asked["response"]
    assert [segment["segment_text"] for segment in segments] == ["Anna is in Oslo.", "𝄞 It is", "cold."]
    for segment in segments:
        start, text, sources = segment["char_offset"], segment["segment_text"], segment["sources"]
        assert asked["response"][start : start + len(text)] == text
        assert sorted(source["id"] for source in sources) == [0, 1, 2]
        for source in sources:
            start, text = source["offset"], source["text"]
            assert asked["context"][start : start + len(text)] == text and -1 < source["attribution"] < 1
    marked = found["marked"]
    assert (marked["highlight"], marked["segments"], len(marked["sources"])) == ("Oslo", [], 1)
    bad = ["InvalidRequestError", 400]
    assert found["unmarked"][:3] == found["blank"][:3] == [*bad, "INVALID_REQUEST"]
    assert found["long"][:3] == [*bad, "CONTEXT_LENGTH_EXCEEDED"]
    assert found["run"] == [*bad, "MISSING_CAPABILITY", "this server has no stored runs of agents"]


@modes
def test_errors(drive_seekr: Drive, mode: str) -> None:
    found = {name: told[:3] for name, told in drive_seekr(SCRIPT, f"{mode}-errors").items()}
    bad = "InvalidRequestError"
    assert found == {
        "key": ["AuthenticationError", 401, "UNAUTHORIZED"],
        "model": [bad, 404, "UNKNOWN_MODEL"],
        "deployment": [bad, 404, "UNKNOWN_MODEL"],
        "file": [bad, 404, "NOT_FOUND"],
        "long": [bad, 400, "CONTEXT_LENGTH_EXCEEDED"],
        "tools": [bad, 400, "MISSING_CAPABILITY"],
        "json": [bad, 400, "MISSING_CAPABILITY"],
        "tuning": [bad, 400, "MISSING_CAPABILITY"],
        "documents": [bad, 400, "MISSING_CAPABILITY"],
    }
