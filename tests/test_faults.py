"""Two rounds of the fault harness; CONTRIBUTING.md says how to run a hundred."""

from __future__ import annotations

import pytest

from tests.faults.rounds import run


@pytest.mark.timeout(600)
def test_nothing_acknowledged_is_lost_or_doubled() -> None:
    """The server is killed under load, and the disk is full where a small one can be mounted."""
    report = run(2, 6, only=["kill_server", "fill_disk"])
    assert report["violations"] == []
    assert report["lost"] == report["doubled"] == 0
    assert all(report["acknowledged"][kind] > 0 for kind in ("explanations", "jobs", "inferences", "files"))
