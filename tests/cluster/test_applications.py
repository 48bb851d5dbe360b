"""Applications of Ray Serve, as far as no cluster is needed for them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from app.runtime import Weights
from app.scaling import Scaling

COUNT = 400


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Serve's own, when it is imported
def test_many_are_made_at_the_same_time(ray: None) -> None:
    """What Serve does in one thread for a configuration fails while it does the same in another."""
    from app.cluster.applications import Applications

    applications, scaling = Applications("home", queue_limit=8, log_level="info"), Scaling(gpus=0)
    weights = Weights("causal-lm", "/models/m", digest="sha256:0", device="cpu")

    def made(number: int) -> str:
        return str(applications.target(f"whence-{number}", weights, scaling).name)

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(made, range(COUNT))) == [f"whence-{number}" for number in range(COUNT)]
