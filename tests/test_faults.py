"""One round of the fault harness; CONTRIBUTING.md says how to run a hundred."""

from __future__ import annotations

import os

import pytest

from tests.faults.rounds import run


@pytest.mark.long
@pytest.mark.timeout(600)
def test_nothing_acknowledged_is_lost_or_doubled() -> None:
    """Kills have tests of their own: the disk is full where one may be mounted, else the server is killed."""
    report = run(1, 6, only=["fill_disk" if os.geteuid() == 0 else "kill_server"])
    assert report["violations"] == []
    assert report["lost"] == report["doubled"] == 0
    assert all(report["acknowledged"][kind] > 0 for kind in ("explanations", "jobs", "inferences", "files"))
