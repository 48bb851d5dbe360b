"""The real `arthurai`, unmodified, on its user's ordinary journey up to the store."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.clients.conftest import SECRET
from tests.clients.server import Server


def test_the_journey_of_a_user(server: Server, clients: Path) -> None:
    python = clients / ".venv-arthur" / "bin" / "python"
    if not python.exists():
        pytest.skip("arthurai runs on Python 3.11 alone")
    script = Path(__file__).with_name("drive_arthur.py")
    done = subprocess.run(
        [python, script, server.url, SECRET], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout[done.stdout.index('{"sent"') :])  # the client prints its progress before
    assert found["sent"] == found["truths"] == {"success": 20, "failure": 0, "total": 20}
    assert found["again"] == {"success": 0, "failure": 1, "total": 1}
    assert found["file"] == found["truth file"] == {"success": 30, "failure": 0, "total": 30}
    assert found["query"] == [{"count": 40, "accuracy": 1.0}]
    assert found["found"] == [True, "Income"]
    links = found["attributes"]
    assert (links["gt_churn_yes"], links["churn_yes"]) == ("churn_yes", "gt_churn_yes")
    assert len(links) == 8
    assert set(server.statuses("/api/v3/models/{model_id}/inferences/file")) == {207}
