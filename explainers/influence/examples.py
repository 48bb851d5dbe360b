"""Training examples as the model reads them, and which of their tokens' losses were trained on."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias

import numpy as np

Loss: TypeAlias = Literal["assistant", "last_assistant", "all"]


@dataclass(frozen=True, slots=True)
class Mask:
    """Whose tokens count in the loss.

    `assistant`: those of every assistant turn; `last_assistant`: of the last one only; `all`: every token but the
    first. `end`: whether the token that ends a turn counts too. `longest`: the tokens after which the trainer cut an
    example off, at its right side; None: it did not.
    """

    loss: Loss = "assistant"
    end: bool = True
    longest: int | None = None

    def __post_init__(self) -> None:
        if self.longest is not None and self.longest < 2:
            raise ValueError("an example of less than two tokens has no loss")


@dataclass(frozen=True, slots=True)
class Example:
    """Ids of S positions, T of which have a loss: that of predicting the token there from those before it.

    `record` is the index of the record it was made from. `asked` is the position of the last token before the (last)
    answer: the hidden state there stands for the question. Only a question that waits for its answer has T = 0.
    Raises ValueError for positions that cannot be.
    """

    record: int
    ids: tuple[int, ...]  # S, start tokens included
    answer: tuple[int, ...]  # T positions in 1..S-1, ascending
    asked: int  # in 0..S-1, before the last position of the answer

    def __post_init__(self) -> None:
        if self.answer != tuple(sorted(set(self.answer))):
            raise ValueError("the positions of an answer are in ascending order")
        if self.answer and (self.answer[0] < 1 or self.answer[-1] >= len(self.ids)):
            raise ValueError("an answer lies behind the first token and inside the ids")
        if not 0 <= self.asked < (self.answer[-1] if self.answer else len(self.ids)):
            raise ValueError("a question ends before its answer does")

    @property
    def targets(self) -> tuple[int, ...]:
        """The T ids at the positions of the answer."""
        return tuple(self.ids[position] for position in self.answer)


class Examples:
    """The examples of all training data, by ascending record, each made when it is asked for.

    Kept as 32-bit numbers one behind the other: as Python's own integers, tokens take about nine times the memory.
    """

    def __init__(self, examples: Iterable[Example] = ()) -> None:
        self._ids, self._answers = array("i"), array("i")
        self._records, self._asked = array("i"), array("i")
        self._stops, self._answer_stops = array("q", [0]), array("q", [0])
        self.extend(examples)

    def extend(self, examples: Iterable[Example]) -> None:
        for example in examples:
            self._ids.extend(example.ids)
            self._answers.extend(example.answer)
            self._records.append(example.record)
            self._asked.append(example.asked)
            self._stops.append(len(self._ids))
            self._answer_stops.append(len(self._answers))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, place: int) -> Example:
        ids, answer = self._numbers(place)
        return Example(self._records[place], tuple(ids), tuple(answer), self._asked[place])

    def __iter__(self) -> Iterator[Example]:
        return map(self.__getitem__, range(len(self)))

    def content(self, place: int) -> bytes:
        """Ids, positions and place of the question, with their numbers first: no two examples share the bytes."""
        ids, answer = self._numbers(place)
        return np.concatenate([[len(ids), len(answer), self._asked[place]], ids, answer]).astype("<i8").tobytes()

    def _numbers(self, place: int) -> tuple[array[int], array[int]]:
        """Ids and answer of one example."""
        answer = self._answers[self._answer_stops[place] : self._answer_stops[place + 1]]
        return self._ids[self._stops[place] : self._stops[place + 1]], answer

    def records(self, start: int = 0, stop: int | None = None) -> Sequence[int]:
        """Of each example, or of some."""
        return self._records[start:stop]

    def sizes(self, start: int = 0, stop: int | None = None) -> list[int]:
        """Tokens of each example, or of some."""
        return [end - begin for begin, end in pairwise(self._stops[start : None if stop is None else stop + 1])]

    def last_of(self, record: int) -> Example:
        """Of a chat, the whole of it. Raises KeyError for a record without an example."""
        place = bisect_right(self._records, record) - 1
        if place < 0 or self._records[place] != record:
            raise KeyError(record)
        return self[place]
