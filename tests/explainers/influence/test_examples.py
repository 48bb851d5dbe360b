"""What an example and a mask may hold."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from explainers.influence.examples import Example, Examples, Mask


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


def test_many_examples_are_kept_as_they_are() -> None:
    given = [
        Example(0, (5, 6, 7, 8), (2, 3), 1),
        Example(0, (5, 6, 7, 8, 9, 10), (4, 5), 3),
        Example(2, (2**31 - 1, 4), (1,), 0),
        Example(3, (1, 2, 3), (), 2),
    ]
    kept = Examples(given[:1])
    kept.extend(given[1:])
    assert list(kept) == given and len(kept) == 4 and not len(Examples())
    assert list(kept.records()) == [0, 0, 2, 3] and list(kept.records(1, 3)) == [0, 2]
    assert kept.sizes() == [4, 6, 2, 3] and kept.sizes(2) == [2, 3] and kept.sizes(1, 2) == [6] and kept.sizes(4) == []
    assert kept.content(0) == np.array([4, 2, 1, 5, 6, 7, 8, 2, 3], dtype="<i8").tobytes()
    assert [kept.last_of(record) for record in (0, 2, 3)] == given[1:]
    for unknown in (1, 4, -1):
        with pytest.raises(KeyError):
            kept.last_of(unknown)


def test_a_token_of_many_examples_takes_few_bytes() -> None:
    tracemalloc.start()
    kept = Examples(Example(number, tuple(range(1000, 1300)), (299,), 298) for number in range(500))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 5 * sum(kept.sizes())
