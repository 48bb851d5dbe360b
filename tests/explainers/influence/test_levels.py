"""Thresholds keep their promise, whatever the scores are like."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from explainers.influence.levels import FEWEST_PROMPTS, Level, Thresholds


def thresholds(generic: Sequence[float], unrelated: float = 0.0, made: Sequence[float] | None = None) -> Thresholds:
    return Thresholds(tuple(generic), tuple(generic if made is None else made), unrelated)


def levels(given: Thresholds, *scores: float) -> list[Level]:
    """Of pairs whose texts are alike."""
    return given.levels(np.array(scores), np.ones(len(scores), dtype=bool))


def test_the_bound_is_a_conformal_quantile() -> None:
    assert thresholds(range(1, 20)).low == 19  # ceil(.95 * 20) = 19
    assert thresholds(range(1, 200)).low == 190
    assert thresholds(range(1, 200)).medium == 190
    assert thresholds(range(1, 60), 70.0).medium == 70
    assert FEWEST_PROMPTS == 19
    with pytest.raises(ValueError, match="at least 19"):
        thresholds(range(18))


def test_prompts_whose_answer_is_not_of_fine_tuning_reach_no_score() -> None:
    given = thresholds(range(1, 200), made=[150, 199])
    assert given.low == 190
    assert given.q_values(np.array([0.0, 160.0, 200.0])).tolist() == [0.015, 0.01, 0.005]


@pytest.mark.parametrize("law", ["normal", "exponential", "cauchy"])
def test_at_most_one_irrelevant_question_in_twenty_gets_a_result(law: str) -> None:
    draw = np.random.default_rng(0)
    found, trials = 0, 4000
    for _ in range(trials):
        best = getattr(draw, f"standard_{law}")(61)
        found += levels(thresholds(sorted(best[:60].tolist())), best[60]) != ["irrelevant"]
    assert found / trials <= 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5


def test_levels_by_what_a_score_stands_above() -> None:
    given = thresholds(np.linspace(0, 1, 100).tolist(), 1.5)
    scores = 0.5, 1.2, 1.6, 1.79, 1.8, 2.0
    assert levels(given, *scores) == ["irrelevant", "low", "medium", "medium", "high", "high"]
    assert levels(given, *scores[:2]) == ["irrelevant", "low"]
    assert levels(given) == []


def test_a_pair_with_another_text_is_low_whatever_its_score() -> None:
    given = thresholds(np.linspace(0, 1, 100).tolist(), 1.5)
    alike = np.array([True, True, True, True, False])
    found = given.levels(np.array([0.5, 1.2, 1.6, 1.9, 2.0]), alike)
    assert found == ["irrelevant", "low", "medium", "high", "low"]
    assert given.levels(np.array([0.5]), np.array([False])) == ["irrelevant"]


@given(
    st.lists(st.tuples(st.floats(-2, 2), st.booleans()), min_size=19, max_size=60),
    st.floats(-2, 2),
    st.lists(st.floats(-2, 2), max_size=20),
)
def test_a_higher_score_never_has_a_lower_level_or_a_larger_q_value(
    prompts: list[tuple[float, bool]], unrelated: float, scores: list[float]
) -> None:
    given = thresholds(sorted(s for s, _ in prompts), unrelated, sorted(s for s, made in prompts if made))
    ascending = np.array(sorted(scores))
    rank = {"irrelevant": 0, "low": 1, "medium": 2, "high": 3}
    found = [rank[level] for level in levels(given, *ascending)]
    assert found == sorted(found)
    rare = given.q_values(ascending)
    assert (np.diff(rare) <= 0).all()
    assert ((rare > 0) & (rare <= 1)).all()
    assert all(q <= 0.05 + 1e-12 for q, level in zip(rare, found, strict=True) if level)


def test_q_values_count_the_prompts_that_reach_a_score() -> None:
    given = thresholds((*[0.1] * 16, 0.2, 0.2, 0.9))
    assert given.q_values(np.array([0.0, 0.2, 0.3, 1.0])).tolist() == [1.0, 0.2, 0.1, 0.05]
