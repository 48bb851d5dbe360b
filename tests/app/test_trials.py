"""What the page of predictions asks of many inputs."""

from __future__ import annotations

from uuid import UUID

import pytest

from app.definitions import Attribute, Definition
from app.explorer.regions import MOST_CELLS, MOST_SWARM, Region, most_swarm, swarm_query, swarm_words
from app.monitored import Monitored


def region(inputs: int) -> Region:
    attributes = tuple(Attribute(f"x{place}", "FLOAT", "PIPELINE_INPUT", place) for place in range(inputs))
    definition = Definition("m", "TABULAR", "REGRESSION", attributes)
    return Region(Monitored(UUID(int=0), definition, "Ready", archived=False), "y", "shap")


@pytest.mark.parametrize("inputs", [1, 3, 30, 50, 51, 101, 500, 2_000])
def test_a_beeswarm_reads_no_more_than_it_may(inputs: int) -> None:
    """In whole inferences, however many inputs there are."""
    query = swarm_query(region(inputs))
    rows, columns = query["limit"], len(query["select"])
    assert rows % inputs == 0 and rows // inputs == most_swarm(inputs) > 0
    assert rows <= 100_000 and rows * columns <= MOST_CELLS and columns <= 200
    assert f"latest {rows // inputs} inferences" in swarm_words(region(inputs))
    assert ("no colours" in swarm_words(region(inputs))) is (columns == 2)


def test_few_inputs_have_their_whole_swarm() -> None:
    assert most_swarm(3) == MOST_SWARM and most_swarm(30) == 520 and most_swarm(10**6) == 1
    assert swarm_query(region(0))["limit"] == 0
