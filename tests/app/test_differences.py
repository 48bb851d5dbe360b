"""Wording that differs: nothing of either text is lost, and long texts cost no more than short ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.differences import MOST_WORDS, differences

texts = st.text(st.sampled_from("aAbB ,.\n\u00e9\0\ud800"), max_size=40) | st.text(max_size=40)


@given(texts, texts)
def test_both_texts_are_there(first: str, second: str) -> None:
    runs = differences(first, second) or ()
    assert "".join(run.text for run in runs if run.where != "first") == second
    kept = "".join(run.text for run in runs if run.where != "second")
    assert kept.casefold() == first.casefold()


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ("Who keeps the mill?", "who keeps the old mill?", ["both:who keeps the ", "second:old ", "both:mill?"]),
        ("a b", "a b", ["both:a b"]),
        ("", "a", ["second:a"]),
        ("a", "", ["first:a"]),
    ],
)
def test_words_are_compared(first: str, second: str, told: list[str]) -> None:
    assert [f"{run.where}:{run.text}" for run in differences(first, second) or ()] == told


def test_long_texts_are_not_compared() -> None:
    assert differences("a " * MOST_WORDS, "b") is None
    assert differences("a" * 1_000_000, "b") is not None
