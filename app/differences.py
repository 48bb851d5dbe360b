"""How the wording of two texts differs, word by word.

The longest common subsequence of words, by bits: a row of the usual table is one integer, in which a 0 says that the
common part grows with that word of the second text (H. Hyyrö, "Bit-parallel LCS-length computation revisited", 2004).
The time is that of `n` additions of `m`-bit numbers, whatever the words are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile
from typing import Literal, TypeAlias

WORD = re.compile(r"\s+|\w+|[^\w\s]")
MOST_WORDS = 3000
"""Of each text, blanks included, between their common beginning and end: some twenty milliseconds."""

Where: TypeAlias = Literal["both", "first", "second"]
Step: TypeAlias = tuple[Where, str]


@dataclass(frozen=True, slots=True)
class Run:
    """Some characters that stand in both texts, or only in the first or the second."""

    where: Where
    text: str


def differences(first: str, second: str) -> tuple[Run, ...] | None:
    """The runs of both texts in order; None where they are too long to be compared."""
    one, other = WORD.findall(first), WORD.findall(second)
    begin = alike(one, other)
    head, one, other = one[:begin], one[begin:], other[begin:]
    end = alike(one[::-1], other[::-1])
    tail, one, other = one[len(one) - end :], one[: len(one) - end], other[: len(other) - end]
    if max(len(one), len(other)) > MOST_WORDS:
        return None
    return tuple(runs([*both(head), *steps(one, other), *both(tail)]))


def alike(one: Sequence[str], other: Sequence[str]) -> int:
    """With how many equal words both begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def both(words: Iterable[str]) -> list[Step]:
    return [("both", word) for word in words]


def steps(first: Sequence[str], second: Sequence[str]) -> list[Step]:
    """Each word of either once, with as many as possible in both."""
    rows, found = table(first, second), list[Step]()
    row, column = len(first), len(second)
    while row and column:
        if rows[row - 1] >> (column - 1) & 1:  # the common part needs this word of the second no more
            column -= 1
            found.append(("second", second[column]))
            continue
        row -= 1
        if row and not rows[row - 1] >> (column - 1) & 1:  # it is as long without this word of the first
            found.append(("first", first[row]))
            continue
        column -= 1
        found.append(("both", second[column]))
    found += [("first", word) for word in reversed(first[:row])]
    found += [("second", word) for word in reversed(second[:column])]
    return found[::-1]


def table(first: Sequence[str], second: Sequence[str]) -> list[int]:
    """A row of bits for each beginning of the first text."""
    places: dict[str, int] = {}
    for column, word in enumerate(second):
        places[word] = places.get(word, 0) | 1 << column
    whole = (1 << len(second)) - 1
    row, rows = whole, []
    for word in first:
        met = row & places.get(word, 0)
        row = (row + met | row - met) & whole
        rows.append(row)
    return rows


def runs(walked: Iterable[Step]) -> Iterator[Run]:
    """What is only in the first comes before what is only in the second, wherever both changed together."""
    for _, stretch in groupby(walked, lambda step: step[0] == "both"):
        words = list(stretch)
        for where in WHERE:
            text = "".join(word for side, word in words if side == where)
            if text:
                yield Run(where, text)


WHERE: tuple[Where, ...] = ("both", "first", "second")
