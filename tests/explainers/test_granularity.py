"""Spans of words, sentences, paragraphs and custom pieces, and the automatic choice between them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from explainers.granularity import CUTS, automatic, paragraphs, sentences, split_at, words
from explainers.types import Granularity, Span
from tests.explainers.odd_texts import TEXTS, odd_text


def pieces(text: str, spans: list[Span]) -> list[str]:
    return [text[span.start : span.stop] for span in spans]


def assert_well_formed(text: str, spans: list[Span]) -> None:
    """Inside the text, not empty, sorted and disjoint."""
    edges = [0, *(edge for span in spans for edge in (span.start, span.stop)), len(text)]
    assert edges == sorted(edges)
    assert all(span.length > 0 for span in spans)


@pytest.mark.parametrize("cut", CUTS.values())
@given(text=odd_text)
def test_any_text_is_cut_into_sorted_disjoint_spans(cut: object, text: str) -> None:
    assert callable(cut)
    assert_well_formed(text, cut(text))


@pytest.mark.parametrize("text", TEXTS)
def test_words_are_what_str_split_finds(text: str) -> None:
    assert pieces(text, words(text)) == text.split()


@given(odd_text)
def test_words_of_any_text(text: str) -> None:
    assert pieces(text, words(text)) == text.split()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Oslo is in Norway. Rome is in Italy.", ["Oslo is in Norway.", "Rome is in Italy."]),
        ('Really?! Yes... "No." End', ["Really?!", "Yes...", '"No."', "End"]),
        ("It costs 3.50 dollars. Fine", ["It costs 3.50 dollars.", "Fine"]),
        ("one\ntwo\r\nthree\u2028four\u2029five\x85six", ["one", "two", "three", "four", "five", "six"]),
        ("  Padded.  \t Next.\n\n\n Last ", ["Padded.", "Next.", "Last"]),
        ("日本語です。東京は大きい。", ["日本語です。", "東京は大きい。"]),
        ("क्या? हाँ।", ["क्या?", "हाँ।"]),
        ("👩‍👩‍👧 here. 🇳🇴 There.", ["👩‍👩‍👧 here.", "🇳🇴 There."]),
        ("lower case. 🇳🇴 goes on", ["lower case. 🇳🇴 goes on"]),
        ("Cafe\u0301. Next", ["Cafe\u0301.", "Next"]),
        ("Nul\x00. Next", ["Nul\x00.", "Next"]),
        ("no terminator", ["no terminator"]),
        (" \t\r\n\u00a0", []),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert pieces(text, sentences(text)) == expected


@given(odd_text)
def test_sentences_leave_out_nothing_but_white_space(text: str) -> None:
    found = sentences(text)
    assert "".join("".join(pieces(text, found)).split()) == "".join(text.split())
    assert all(piece == piece.strip() != "" for piece in pieces(text, found))


@given(odd_text)
def test_no_sentence_holds_a_line_break(text: str) -> None:
    assert not any(set(piece) & set("\n\r\u2028\u2029\x85") for piece in pieces(text, sentences(text)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\n\ntwo", ["one", "two"]),
        ("one\r\n\r\ntwo", ["one", "two"]),
        ("one\r\n\ntwo\n\r\nthree", ["one", "two", "three"]),
        ("one\n \t\ntwo", ["one", "two"]),
        ("one\n\u00a0\n\n \n\ntwo", ["one", "two"]),
        ("one\nstill one\r\nand still", ["one\nstill one\r\nand still"]),
        ("\n\none\n\n", ["one"]),
        ("one\n\n  indented", ["one", "  indented"]),
        ("one \n\ntwo", ["one ", "two"]),
        ("one\n", ["one\n"]),
        ("\n\n", []),
        ("", []),
        ("日本。\n\n👩‍👩‍👧", ["日本。", "👩‍👩‍👧"]),
        ("a\x00\n\nb", ["a\x00", "b"]),
    ],
)
def test_paragraphs(text: str, expected: list[str]) -> None:
    assert pieces(text, paragraphs(text)) == expected


@pytest.mark.parametrize(
    ("text", "delimiter", "expected"),
    [
        ("a, b,c", ",", ["a", " b", "c"]),
        ("a, b", "|", ["a, b"]),
        (",a,,b,", ",", ["a", "b"]),
        ("a.*b.*c.b", ".*", ["a", "b", "c.b"]),
        ("a||b|c", "||", ["a", "b|c"]),
        ("aaaaa", "aa", ["a"]),
        (r"a\db\d1", r"\d", ["a", "b", "1"]),
        ("a[b](c)^$", "](", ["a[b", "c)^$"]),
        ("one\n\ntwo", "\n\n", ["one", "two"]),
        ("日。本。", "。", ["日", "本"]),
        ("👩‍👩‍👧", "\u200d", ["👩", "👩", "👧"]),
        ("a\x00b", "\x00", ["a", "b"]),
        ("  ", " ", []),
        ("  x ", ",", ["  x "]),
        ("", ",", []),
    ],
)
def test_custom_delimiters_are_literal(text: str, delimiter: str, expected: list[str]) -> None:
    assert pieces(text, split_at(text, delimiter)) == expected


@given(odd_text, st.text(min_size=1, max_size=3))
def test_custom_pieces_are_what_str_split_finds(text: str, delimiter: str) -> None:
    spans = split_at(text, delimiter)
    assert pieces(text, spans) == [piece for piece in text.split(delimiter) if piece]
    assert_well_formed(text, spans)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((31, 28, 30, 1), "sentence"),
        ((31, 29, 1, 1), "token"),
        ((40, 31, 29, 1), "word"),
        ((60, 0, 0, 0), "token"),
        ((61, 0, 0, 0), "word"),
        ((900, 500, 45, 15), "sentence"),
        ((900, 500, 46, 15), "paragraph"),
        ((0, 0, 0, 0), "token"),
    ],
)
def test_the_automatic_granularity_is_nearest_to_thirty_and_the_finer_of_equals(
    counts: tuple[int, ...], expected: str
) -> None:
    names: tuple[Granularity, ...] = ("token", "word", "sentence", "paragraph")
    assert automatic(list(zip(names, counts, strict=True))) == expected


def test_custom_is_never_among_the_automatic_ones() -> None:
    assert list(CUTS) == ["word", "sentence", "paragraph"]
