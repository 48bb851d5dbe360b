"""Cutting text into the pieces that get a score each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from icu4py.breakers import SentenceBreaker

from explainers.types import Granularity, Span

AUTOMATIC_PIECES = 30
"""The number of pieces that the automatic granularity comes as near to as it can."""

_WORD = re.compile(r"\S+")
_PARAGRAPH_BREAK = re.compile(r"\r?\n(?:[^\S\r\n]*\r?\n)+")


def words(text: str) -> list[Span]:
    """Maximal runs of characters that are not white space."""
    return [Span(*match.span()) for match in _WORD.finditer(text)]


def sentences(text: str) -> list[Span]:
    """Sentences by Unicode Standard Annex 29 (a line break ends one too), without surrounding white space."""
    pieces, start = [], 0
    for sentence in SentenceBreaker(text, "root"):
        pieces.append(trimmed(text, start, start + len(sentence)))
        start += len(sentence)
    return [piece for piece in pieces if piece.length]


def paragraphs(text: str) -> list[Span]:
    """Pieces between two or more line breaks; blanks between these are allowed, the breaks are in no piece."""
    return _between(text, (match.span() for match in _PARAGRAPH_BREAK.finditer(text)))


def split_at(text: str, delimiter: str) -> list[Span]:
    """Pieces between the literal occurrences of `delimiter`, white space kept, empty pieces dropped."""
    return _between(text, _occurrences(text, delimiter))


CUTS: Mapping[Granularity, Callable[[str], list[Span]]] = {
    "word": words,
    "sentence": sentences,
    "paragraph": paragraphs,
}
"""From fine to coarse. Tokens are the tokenizer's business; custom cuts need a delimiter."""


def automatic(counts: Sequence[tuple[Granularity, int]]) -> Granularity:
    """The granularity with the number of pieces nearest to thirty; of equals the finer (the earlier in `counts`)."""
    return min(counts, key=lambda entry: abs(entry[1] - AUTOMATIC_PIECES))[0]


def _occurrences(text: str, delimiter: str) -> Iterator[tuple[int, int]]:
    start = text.find(delimiter)
    while start >= 0:
        yield start, start + len(delimiter)
        start = text.find(delimiter, start + len(delimiter))


def trimmed(text: str, start: int, stop: int) -> Span:
    piece = text[start:stop]
    left = len(piece) - len(piece.lstrip())
    return Span(start + left, max(start + left, start + len(piece.rstrip())))


def _between(text: str, separators: Iterator[tuple[int, int]]) -> list[Span]:
    pieces, start = [], 0
    for left, right in separators:
        pieces.append(Span(start, left))
        start = right
    pieces.append(Span(start, len(text)))
    return [piece for piece in pieces if piece.length]
