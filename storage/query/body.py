"""Reading a request: every value with its place, so that every mistake can be named by a JSON pointer (RFC 6901).

Nothing is converted silently; what is too long, too many or too deep is refused before it is looked at.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from storage.errors import InvalidQuery
from storage.values import UNSTORABLE

LONGEST_NAME = 255
LONGEST_TEXT = 65_536
MOST_ENTRIES = 200
MOST_VALUES = 10_000
MOST_BINS = 1000
LARGEST = 2**53
SHOWN = 60
"""Characters of a wrong name that an error repeats."""


@dataclass(frozen=True, slots=True)
class Place:
    """A value of the request and where it stands."""

    value: Any
    pointer: str = ""

    def entry(self, key: str | int) -> Place:
        value = self.value[key]
        return Place(value, f"{self.pointer}/{str(key).replace('~', '~0').replace('/', '~1')}")

    def members(self, allowed: Collection[str], what: str) -> dict[str, Place]:
        """The members of an object. Raises InvalidQuery for others than the allowed ones."""
        if not isinstance(self.value, Mapping):
            raise InvalidQuery(f"{what} must be a JSON object", self.pointer)
        if len(self.value) > MOST_ENTRIES:
            raise InvalidQuery(f"{what} has more than {MOST_ENTRIES} members", self.pointer)
        for key in self.value:
            if key not in allowed:
                raise InvalidQuery(
                    f"unknown member {shown(key)} of {what}", self.entry(key).pointer, nearest(key, allowed)
                )
        return {key: self.entry(key) for key in self.value}

    def entries(self, most: int = MOST_ENTRIES) -> Iterator[Place]:
        if not isinstance(self.value, list | tuple):
            raise InvalidQuery("must be a list", self.pointer)
        if len(self.value) > most:
            raise InvalidQuery(f"must have at most {most} entries", self.pointer)
        return (self.entry(index) for index in range(len(self.value)))

    def name(self) -> str:
        """A name: some text without NUL characters and halves of surrogate pairs."""
        if not isinstance(self.value, str) or not self.value:
            raise InvalidQuery("must be a name", self.pointer)
        if len(self.value) > LONGEST_NAME:
            raise InvalidQuery(f"must have at most {LONGEST_NAME} characters", self.pointer)
        return self.text()

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise InvalidQuery("must be a string", self.pointer)
        if len(self.value) > LONGEST_TEXT:
            raise InvalidQuery(f"must have at most {LONGEST_TEXT} characters", self.pointer)
        if UNSTORABLE.search(self.value):
            raise InvalidQuery("has a NUL character or half a surrogate pair", self.pointer)
        return str(self.value)

    def choice(self, allowed: Collection[str], what: str) -> str:
        """One of some names; without regard to anything but spelling."""
        name = self.name()
        if name not in allowed:
            raise InvalidQuery(f"unknown {what} {shown(name)}", self.pointer, nearest(name, allowed))
        return name

    def number(self) -> float | int:
        """A finite number. A truth value is none."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidQuery("must be a number", self.pointer)
        if not _fits(value):
            raise InvalidQuery("must be a number that a double can hold", self.pointer)
        return value

    def integer(self, least: int = -LARGEST, most: int = LARGEST) -> int:
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            raise InvalidQuery("must be a whole number", self.pointer)
        if not least <= self.value <= most:
            raise InvalidQuery(f"must be a whole number from {least} to {most}", self.pointer)
        return int(self.value)

    def scalar(self) -> str | float | int | bool | None:
        """A string, number, truth value or null."""
        if self.value is None or isinstance(self.value, bool):
            return self.value
        return self.text() if isinstance(self.value, str) else self.number()

    def level(self) -> float:
        """A share from 0 to 1."""
        number = self.number()
        if not 0 <= number <= 1:
            raise InvalidQuery("must lie in 0..1", self.pointer)
        return float(number)

    def thresholds(self) -> tuple[float, ...]:
        """One to some numbers, each greater than the one before."""
        numbers = tuple(float(each.number()) for each in self.entries(MOST_BINS))
        if not numbers or any(b <= a for a, b in pairwise(numbers)):
            raise InvalidQuery("must be a list of ascending numbers", self.pointer)
        return numbers

    def bins(self) -> int:
        return self.integer(1, MOST_BINS)


def _fits(value: float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def shown(name: object) -> str:
    """A name of the request, in quotes, short enough for a message."""
    text = str(name) if isinstance(name, str) else type(name).__name__
    return f"'{text if len(text) <= SHOWN else text[:SHOWN] + '…'}'"


def nearest(name: object, valid: Iterable[str]) -> str | None:
    """The valid name most like this one, if any is; letter case counts for little."""
    if not isinstance(name, str) or len(name) > LONGEST_NAME:
        return None
    by_case = {each.casefold(): each for each in valid}
    found = difflib.get_close_matches(name.casefold(), by_case, 1, 0.6)
    return by_case[found[0]] if found else None
