"""One training example as the model reads it, and which of its tokens' losses were trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

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
