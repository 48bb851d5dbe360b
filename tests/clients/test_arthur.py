"""The real `arthurai`, unmodified, on its user's ordinary journey up to the store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.clients.conftest import SECRET
from tests.clients.server import Server


def test_the_journey_of_a_user(server: Server, arthur: Callable[..., Any]) -> None:
    found = arthur("drive_arthur.py", server.url, SECRET)
    assert found["sent"] == found["truths"] == {"success": 20, "failure": 0, "total": 20}
    assert found["again"] == {"success": 0, "failure": 1, "total": 1}
    assert found["file"] == found["truth file"] == {"success": 30, "failure": 0, "total": 30}
    assert found["query"] == [{"count": 40, "accuracy": 1.0}]
    assert found["found"] == [True, "Income"]
    links = found["attributes"]
    assert (links["gt_churn_yes"], links["churn_yes"]) == ("churn_yes", "gt_churn_yes")
    assert len(links) == 8
    assert set(server.statuses("/api/v3/models/{model_id}/inferences/file")) == {207}
