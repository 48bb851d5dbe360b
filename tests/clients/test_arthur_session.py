"""The real `arthurai`, unmodified: logins, batches, changes of a model, and what it is told of missing things."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.clients.conftest import SECRET
from tests.clients.server import Server

NAME = "WHENCE_API_KEY"
CLOSED = {"dataset_close_result": {"message": "success"}}


@pytest.fixture(scope="module")
def found(server: Server, arthur: Callable[..., Any]) -> dict[str, Any]:
    result: dict[str, Any] = arthur("drive_arthur_session.py", server.url, NAME, SECRET)
    return result


def test_logging_in(found: dict[str, Any]) -> None:
    assert found["organization"] == [{"id": "default"}] * 2 and found["known organization"] == {"id": "default"}
    assert found["info"] == [NAME, ["default"], ["admin"]]
    headers, wait = found["refreshed"]
    assert headers == ["Authorization"] and wait > 3600 and found["token is not the key"]
    assert ["Unauthorized" in words for words in found["wrong"]] == [True] * 3
    assert "404" in found["other organization"] and "NOT_FOUND" in found["other organization"]


def test_changes_of_a_model(found: dict[str, Any]) -> None:
    before, after = found["positions"]
    assert after == {name: 1 - position for name, position in before.items()}
    assert found["updated"] == ["Risk", ["a", "b"], "Income", True]
    assert found["reference"] == [{"count": 24}]
    archived, words = found["archived"]
    assert archived and "UNKNOWN_MODEL" in words


def test_batches(server: Server, found: dict[str, Any]) -> None:
    sent = found["sent"]
    for part, count in (("frame", 24), ("folder", 48)):
        result, closed = sent[part]
        assert (result["counts"], closed) == ({"success": count, "failure": 0, "total": count}, CLOSED)
    assert sent["records"] == sent["truths"] == {"success": 24, "failure": 0, "total": 24}
    assert sent["closed again"] == [CLOSED] * 3
    counts = {row["batch_id"]: row["count"] for row in found["asked"]["batches"]}
    assert counts == {"2026/03/01 a": 24, "b/2": 48, "b3": 24}
    assert set(server.statuses("/api/v3/models/{model_id}/batches/{batch_id:path}")) == {200}


def test_bias(found: dict[str, Any]) -> None:
    """Of 24 rows with predictions of 0/8 to 7/8 those above 0.6 are true; a prediction of 0.5 is positive and wrong."""
    rows = [("north" if n % 3 else "south", (n % 8) / 8) for n in range(24)]
    asked = found["asked"]
    assert asked["confusion"] == asked["confusion of a batch"]
    for region in ("north", "south"):
        here = [value for name, value in rows if name == region]
        false = [value for value in here if value < 0.6]
        wrong = sum(value >= 0.5 for value in false)
        confusion = {metric: values[region] for metric, values in asked["confusion"].items()}
        assert confusion["true_positive_rate"] == 1
        assert confusion["false_positive_rate"] == pytest.approx(wrong / len(false))
        assert confusion["accuracy_rate"] == pytest.approx(1 - wrong / len(here))
        assert asked["positivity"][region] == pytest.approx(sum(value >= 0.5 for value in here) / len(here))


def test_drift(found: dict[str, Any]) -> None:
    """Every inference repeats a row of the reference set, each of them equally often."""
    assert found["asked"]["drift"] == [{"income": pytest.approx(0.0, abs=1e-9)}]


def test_missing_things(found: dict[str, Any]) -> None:
    assert len(found["missing"]) == 8
    for words in found["missing"].values():
        assert words.startswith("ResponseClientError: 400 Bad Request") and "MISSING_CAPABILITY" in words
