"""A few rounds of the fault harness; CONTRIBUTING.md says how to run a hundred."""

from __future__ import annotations

import pytest

from tests.faults.rounds import run


@pytest.mark.timeout(600)
def test_nothing_acknowledged_is_lost_or_doubled() -> None:
    """The database is killed under load, then everything at once, then the disk is full (where one can be mounted)."""
    report = run(3, 6, only=["kill_postmaster", "kill_all", "fill_disk"])
    assert report["violations"] == []
    assert report["lost"] == report["doubled"] == 0
    assert all(report["acknowledged"][kind] > 0 for kind in ("explanations", "jobs", "inferences", "files"))
