"""Wording that differs: nothing of either text is lost, and long texts cost no more than short ones."""

from __future__ import annotations

from itertools import chain, combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.differences import MOST_WORDS, differences, steps

texts = st.text(st.sampled_from("aAbB ,.\n\u00e9\0\ud800"), max_size=40) | st.text(max_size=40)


@given(texts, texts)
def test_both_texts_are_there(first: str, second: str) -> None:
    runs = differences(first, second) or ()
    assert "".join(run.text for run in runs if run.where != "first") == second
    kept = "".join(run.text for run in runs if run.where != "second")
    assert kept == first


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (
            "Who keeps the mill?",
            "who keeps the old mill?",
            ["first:Who", "second:who", "both: keeps the", "second: old", "both: mill?"],
        ),
        ("a b", "a b", ["both:a b"]),
        ("", "a", ["second:a"]),
        ("a", "", ["first:a"]),
        ("He is in oslo.", "He is in Oslo.", ["both:He is in ", "first:oslo", "second:Oslo", "both:."]),
        ("a.b.c", "x.b.y", ["first:a", "second:x", "both:.b.", "first:c", "second:y"]),
    ],
)
def test_words_are_compared(first: str, second: str, told: list[str]) -> None:
    assert [f"{run.where}:{run.text}" for run in differences(first, second) or ()] == told


@given(st.lists(st.sampled_from("abc"), max_size=9), st.lists(st.sampled_from("abc"), max_size=9))
def test_as_much_as_possible_is_common(first: list[str], second: list[str]) -> None:
    parts = [set(chain.from_iterable(combinations(words, n) for n in range(10))) for words in (first, second)]
    runs = differences(",".join(first), ",".join(second)) or ()
    common = [letter for run in runs if run.where == "both" for letter in run.text if letter != ","]
    most = max(map(len, parts[0] & parts[1]))
    assert tuple(common) in parts[0] & parts[1] and len(common) <= most
    assert sum(len(step[1]) for step in steps(first, second) if step[0] == "both") == most


def test_pages_of_text_are_compared() -> None:
    page = " ".join(f"The mill has {n} wheels." for n in range(MOST_WORDS // 20))
    told = differences(f"Now: {page} End", f"Then: {page} So".replace("mill has 7 ", "mill had 7 ")) or ()
    changed = [f"{run.where}:{run.text}" for run in told if run.where != "both"]
    assert changed == ["first:Now", "second:Then", "first:has", "second:had", "first:End", "second:So"]


def test_long_texts_are_not_compared() -> None:
    assert differences("a " * MOST_WORDS, "b") is None
    assert differences("a" * 1_000_000, "b") is not None
    assert differences("a " * MOST_WORDS, "a " * MOST_WORDS + "b") is not None  # they begin alike
