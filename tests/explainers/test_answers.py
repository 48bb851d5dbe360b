"""The laws that answers obey, and seeds."""

from __future__ import annotations

import numpy as np
import pytest

from explainers.answers import are_opposite, check_additive, check_outputs, check_unchanged, numbers, unchanged
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
    stored = np.array([[0.3, np.nan], [100.0, 1.123456789]])
    check_unchanged(np.array([[0.3 + 1e-7, 7.0], [100.0005, 1.123456789]]), stored)
    with pytest.raises(InconsistentAnswer, match=r"0\.001 apart"):
        check_unchanged(np.array([[0.3, 7.0], [100.0, 1.124456789]]), stored)


@pytest.mark.parametrize("decimals", range(7))
def test_a_rounded_prediction_is_the_same_prediction(decimals: int) -> None:
    outputs = np.random.default_rng(decimals).random((500, 3)) * [1, 1, 40]
    stored = outputs.round(decimals)
    assert unchanged(outputs, stored).all() and unchanged(outputs, stored.astype(np.float32).astype(float)).all()
    assert unchanged(1 - outputs, 1 - stored).all()
    moved = outputs + np.array([0, 0, 1.1 * 10.0**-decimals + 1e-3])
    assert unchanged(moved, stored).mean() < 0.01  # of a thousand rows, one has a zero at the end of all its numbers
    with pytest.raises(InconsistentAnswer, match="stored"):
        check_unchanged(moved, stored)


def test_unrounded_predictions_are_held_to_all_their_digits() -> None:
    stored = np.array([[0.123456789], [0.1234], [0.5], [np.nan]])
    for gap, agrees in ((5e-6, [1, 1, 1, 1]), (3e-5, [0, 1, 1, 1]), (8e-5, [0, 0, 1, 1]), (0.049, [0, 0, 1, 1])):
        assert unchanged(stored + gap, stored).tolist() == agrees
    stored, found = np.array([[0.5, 0.257], [0.5, np.nan]]), np.array([[0.502, 0.257], [0.502, 9.0]])
    assert unchanged(found, stored).tolist() == [False, True]  # the first is written with three decimals
    assert unchanged(np.array([[np.nan, 1.0], [np.nan, 1.0]]), np.array([[0.5, 1.0], [np.nan, 1.0]])).tolist() == [0, 1]
    assert unchanged(np.zeros((0, 2)), np.zeros((0, 2))).tolist() == []


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
