"""What an example and a mask may hold."""

from __future__ import annotations

import pytest

from explainers.influence.examples import Example, Mask


def test_the_targets_are_the_ids_at_the_answers_positions() -> None:
    assert Example(0, (5, 6, 7, 8), (2, 3), 1).targets == (7, 8)
    assert Example(0, (5, 6, 7, 8), (), 3).targets == ()


@pytest.mark.parametrize(
    ("answer", "asked"),
    [((), 4), ((0, 1), 0), ((2, 4), 1), ((3, 2), 1), ((2, 2), 1), ((2,), -1), ((2, 3), 3)],
)
def test_positions_that_cannot_be_are_refused(answer: tuple[int, ...], asked: int) -> None:
    with pytest.raises(ValueError, match=r"answer|question"):
        Example(0, (5, 6, 7, 8), answer, asked)


def test_a_cut_that_leaves_no_loss_is_refused() -> None:
    assert Mask(longest=2).longest == 2
    with pytest.raises(ValueError, match="less than two"):
        Mask(longest=1)
