"""The laws that answers obey, and seeds."""

from __future__ import annotations

import numpy as np
import pytest

from explainers.answers import are_opposite, check_additive, check_outputs, check_unchanged, numbers
from explainers.errors import InconsistentAnswer
from explainers.seeds import bucket, derived, generator


def test_sums_are_checked() -> None:
    values, base = np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([0.5, 0.0])
    check_additive(values, base, np.array([3.5, 0.0]))
    check_additive(values, base, np.array([3.5 + 1e-9, 0.0]))
    for output in ([3.5 + 1e-7, 0.0], [3.5, 1e-12], [np.nan, 0.0]):
        with pytest.raises(InconsistentAnswer, match="miss the output"):
            check_additive(values, base, np.array(output))


def test_outputs_are_checked() -> None:
    check_outputs(np.zeros((2, 1)), 2, ["y"])
    for outputs in (np.zeros((2, 2)), np.zeros(2), np.array([[0.0], [np.inf]])):
        with pytest.raises(InconsistentAnswer):
            check_outputs(outputs, 2, ["y"])


def test_a_changed_model_is_noticed() -> None:
    stored = np.array([[0.3, np.nan], [100.0, 1.0]])
    check_unchanged(np.array([[0.3 + 1e-7, 7.0], [100.0005, 1.0]]), stored)
    with pytest.raises(InconsistentAnswer, match="stored"):
        check_unchanged(np.array([[0.3, 7.0], [100.0, 1.001]]), stored)


def test_opposites() -> None:
    assert are_opposite(np.array([[0.3, 0.7], [1.0, 0.0]]))
    assert not are_opposite(np.array([[0.3, 0.7], [1.0, 0.1]])) and not are_opposite(np.ones((3, 1)))
    assert numbers(np.array([1.0, np.nan])) == [1.0, None]


def test_seeds_are_what_they_always_were() -> None:
    """Stored answers were computed with these."""
    seed = derived("sha256:m", "lime", 2000, {"seed": 0, "buckets": 8}, "sha256:b", 3)
    assert seed == derived("sha256:m", "lime", 2000, {"buckets": 8, "seed": 0}, "sha256:b", 3) == SEED
    assert seed != derived("sha256:m", "lime", 2000, {"seed": 0, "buckets": 8}, "sha256:b", "3")
    assert [bucket(id, 8) for id in ("u-1", "u-2", "é", "\ud800")] == BUCKETS
    np.testing.assert_allclose(generator(seed).standard_normal(2), DRAWN, rtol=1e-12)


SEED, BUCKETS = 1237043425077462376, [1, 5, 3, 4]
DRAWN = [-0.9060263027388318, -1.8961976571814372]
