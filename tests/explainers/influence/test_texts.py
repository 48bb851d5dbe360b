"""Likeness of texts against the formula, written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from explainers.influence import texts as texts_module
from explainers.influence.texts import Rarity, Texts, words_of

IDS = st.lists(st.integers(0, 12), min_size=1, max_size=9)


def obvious(asked: list[int], text: list[int], known: list[list[int]], *, whole: bool = False) -> float:
    def square(tokens: set[int]) -> float:
        return sum(math.log((len(known) + 1) / (sum(token in one for one in known) + 1)) ** 2 for token in tokens)

    own, other, shared = square(set(asked)), square(set(text)), square(set(asked) & set(text))
    length = math.sqrt(own * (other if whole else min(own, other)))
    return shared / length if length else 0.0


@given(IDS, st.lists(IDS, min_size=1, max_size=5), st.lists(IDS, min_size=1, max_size=7))
def test_likeness_is_that_of_the_formula(asked: list[int], texts: list[list[int]], known: list[list[int]]) -> None:
    rarity = Rarity.among([words_of(text) for text in known])
    found = Texts([words_of(text) for text in texts], rarity).likeness(words_of(asked))
    np.testing.assert_allclose(found, [obvious(asked, text, known) for text in texts], atol=1e-12)
    assert ((found >= 0) & (found <= 1 + 1e-12)).all()


@pytest.mark.parametrize("together", [3, 100])
@given(texts=st.lists(IDS, min_size=1, max_size=5), known=st.lists(IDS, min_size=1, max_size=7))
def test_cosines_are_those_of_the_formula(together: int, texts: list[list[int]], known: list[list[int]]) -> None:
    rarity = Rarity.among([words_of(text) for text in known])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts_module, "TOGETHER", together)
        found = Texts([words_of(text) for text in texts], rarity).cosines()
    expected = [[obvious(one, other, known, whole=True) for other in texts] for one in texts]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_texts_are_alike_by_what_is_rare_in_them() -> None:
    known = [words_of(text) for text in ((1, 2, 2, 3), (3, 1, 2), (1, 4, 5), (1, 6, 7), (1, 4, 8))]
    texts = Texts(known, Rarity.among(known))
    assert texts.likeness(known[0])[1] == pytest.approx(1)
    assert texts.likeness(known[0])[2] == 0  # they share what all have
    assert 0 < texts.likeness(known[2])[4] < 0.5  # and here one of two
    assert texts.likeness(words_of((900,))).tolist() == [0] * 5  # what no text has


def test_a_page_that_holds_all_that_is_asked_is_alike() -> None:
    """And one that is asked is not like a single line of it."""
    page, line = words_of(range(200)), words_of(range(20))
    rarity = Rarity.among([words_of((500 + number,)) for number in range(50)])
    assert Texts([page], rarity).likeness(line)[0] == pytest.approx(1)
    assert Texts([line], rarity).likeness(page)[0] == pytest.approx(0.1**0.5)
    assert Texts([line, page], rarity).cosines()[0, 1] == pytest.approx(0.1**0.5)
