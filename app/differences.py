"""How the wording of two texts differs, word by word."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

WORD = re.compile(r"\s+|\w+|[^\w\s]")
MOST_WORDS = 300
"""Of each text: comparing takes time with the product of both."""


@dataclass(frozen=True, slots=True)
class Run:
    """Some characters that stand in both texts, or only in the first or the second."""

    where: Literal["both", "first", "second"]
    text: str


def differences(first: str, second: str) -> tuple[Run, ...] | None:
    """The runs of both texts in order; None where they are too long to be compared."""
    words = [WORD.findall(text) for text in (first, second)]
    if max(map(len, words)) > MOST_WORDS:
        return None
    return tuple(runs(*words))


def runs(first: list[str], second: list[str]) -> Iterator[Run]:
    matcher = SequenceMatcher(None, [word.casefold() for word in first], [word.casefold() for word in second], False)
    for kind, start, stop, other_start, other_stop in matcher.get_opcodes():
        if kind == "equal":
            yield Run("both", "".join(second[other_start:other_stop]))
            continue
        if stop > start:
            yield Run("first", "".join(first[start:stop]))
        if other_stop > other_start:
            yield Run("second", "".join(second[other_start:other_stop]))
