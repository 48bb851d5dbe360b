"""Thresholds keep their promise, whatever the scores are like."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from explainers.influence.levels import FEWEST_PROMPTS, Thresholds, likeness


def test_the_bound_is_a_conformal_quantile() -> None:
    assert Thresholds(tuple(range(1, 20)), 0.0).bound("low") == 19  # ceil(.95 * 20) = 19
    assert Thresholds(tuple(range(1, 200)), 0.0).bound("low") == 190
    assert Thresholds(tuple(range(1, 200)), 0.0).bound("medium") == 198
    assert Thresholds(tuple(range(1, 60)), 0.0).bound("medium") == 59
    assert Thresholds(tuple(range(1, 60)), 70.0).bound("medium") == 70
    assert FEWEST_PROMPTS == 19
    with pytest.raises(ValueError, match="at least 19"):
        Thresholds(tuple(range(18)), 0.0)


@pytest.mark.parametrize("law", ["normal", "exponential", "cauchy"])
def test_at_most_one_irrelevant_question_in_twenty_gets_a_result(law: str) -> None:
    draw = np.random.default_rng(0)
    found, trials = 0, 4000
    for _ in range(trials):
        best = getattr(draw, f"standard_{law}")(61)
        found += Thresholds(tuple(sorted(best[:60].tolist())), 0.0).levels(best[60:]) != ["irrelevant"]
    assert found / trials <= 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5


def test_levels_by_what_a_score_stands_above() -> None:
    thresholds = Thresholds(tuple(np.linspace(0, 1, 100).tolist()), 1.5)
    scores = np.array([0.5, 1.2, 1.6, 1.79, 1.8, 2.0])
    assert thresholds.levels(scores) == ["irrelevant", "low", "medium", "medium", "high", "high"]
    assert thresholds.levels(scores[:2]) == ["irrelevant", "low"]
    above = Thresholds((*thresholds.generic[:-2], 1.7, 1.7), 1.5)  # two calibration prompts reached more
    assert above.levels(scores) == ["irrelevant", "low", "low", "medium", "high", "high"]
    assert thresholds.levels(np.array([])) == []


@given(st.lists(st.floats(-2, 2), min_size=19, max_size=60), st.floats(-2, 2), st.lists(st.floats(-2, 2), max_size=20))
def test_a_higher_score_never_has_a_lower_level_or_a_larger_q_value(
    generic: list[float], unrelated: float, scores: list[float]
) -> None:
    thresholds = Thresholds(tuple(sorted(generic)), unrelated)
    ascending = np.array(sorted(scores))
    rank = {"irrelevant": 0, "low": 1, "medium": 2, "high": 3}
    levels = [rank[level] for level in thresholds.levels(ascending)]
    assert levels == sorted(levels)
    rare = thresholds.q_values(ascending)
    assert (np.diff(rare) <= 0).all()
    assert ((rare > 0) & (rare <= 1)).all()


def test_texts_are_alike_by_what_is_rare_in_them() -> None:
    found = likeness([(1, 2, 2, 3), (3, 1, 2), (1, 4, 5), (1, 6, 7), (1, 4, 8)])
    assert found[0, 1] == pytest.approx(1)
    assert found[0, 2] == pytest.approx(0)  # they share what all have
    rare, shared = np.log(5) ** 2, np.log(5 / 2) ** 2
    assert found[2, 4] == pytest.approx(shared / (shared + rare))


def test_q_values_count_the_prompts_that_reach_a_score() -> None:
    thresholds = Thresholds((*[0.1] * 16, 0.2, 0.2, 0.9), 0.0)
    assert thresholds.q_values(np.array([0.0, 0.2, 0.3, 1.0])).tolist() == [1.0, 0.2, 0.1, 0.05]
