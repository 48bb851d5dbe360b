"""From generated token ids to text that can be shown while more is to come.

A token can hold half a character, and a stop sequence can begin in one token and end in another: text is only released
once no later token can change it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

UNREADABLE = "\N{REPLACEMENT CHARACTER}"
CONTEXT_TOKENS = 8
"""Prompt tokens that are decoded along: some decoders drop the blank of a text's very first token."""

INCOMPLETE = 3
"""Most characters in which the beginning of an incomplete one can show."""


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A generated (or echoed) token; `alternatives` are texts and log-probabilities, the most probable first."""

    id: int
    text: str
    log_prob: float | None
    alternatives: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Released:
    """Text that no later token can change, and the tokens that begin in it."""

    text: str
    tokens: tuple[ScoredToken, ...]


class TokenTexts:
    """The text of each single token, its leading blank included; its name in the vocabulary where it is no text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._before: list[int] = tokenizer.encode("a", add_special_tokens=False).ids
        self._skipped = len(tokenizer.decode(self._before, skip_special_tokens=False))
        self._known: dict[int, str] = {}

    def __getitem__(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = self._read(token)
        return self._known[token]

    def _read(self, token: int) -> str:
        text: str = self._tokenizer.decode([*self._before, token], skip_special_tokens=False)[self._skipped :]
        return text if text and UNREADABLE not in text else self._tokenizer.id_to_token(token) or ""


class Detokenizer:
    """Decodes one id at a time, and only as much again as its text can depend on."""

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int], *, special_tokens: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = not special_tokens
        self._ids = list(context[-CONTEXT_TOKENS:])
        self._base = 0  # ids before it are settled
        self._boundary = len(self._ids)  # where the text last ended with a whole character
        self._sent = settled(self._text())  # characters of the ids from `_base` on

    def add(self, token: int) -> str:
        """The text that has become certain with this token; often all of it, sometimes none."""
        self._ids.append(token)
        text = self._text()
        certain = max(self._sent, settled(text))
        piece, self._sent = text[self._sent : certain], certain
        if certain == len(text):
            self._base, self._boundary = self._boundary, len(self._ids)
            self._sent = len(self._text())
        return piece

    def rest(self) -> str:
        """What is left when no token follows: an incomplete character, as the replacement character."""
        text = self._text()
        piece, self._sent = text[self._sent :], max(self._sent, len(text))
        return piece

    def _text(self) -> str:
        text: str = self._tokenizer.decode(self._ids[self._base :], skip_special_tokens=self._skip_special_tokens)
        return text


def settled(text: str) -> int:
    """How many characters cannot change any more: all but an incomplete one at the end."""
    unreadable = len(text) - len(text.rstrip(UNREADABLE))
    return len(text) - min(unreadable, INCOMPLETE)


class Draft:
    """The text of one candidate while it grows. It ends before the first stop sequence that appears in it."""

    def __init__(self, detokenizer: Detokenizer, stop_sequences: Sequence[str]) -> None:
        self.stopped = False
        self._detokenizer = detokenizer
        self._stops = stop_sequences
        self._longest = max(map(len, stop_sequences), default=1)
        self._text = ""
        self._released = 0
        self._waiting: deque[tuple[int, ScoredToken]] = deque()  # with the character at which they begin

    def add(self, token: ScoredToken) -> None:
        self._waiting.append((len(self._text), token))
        self._append(self._detokenizer.add(token.id))

    def release(self) -> Released:
        """What is certain by now."""
        return self._release(len(self._text) - self._held())

    def finish(self) -> Released:
        """Everything that is left."""
        if not self.stopped:
            self._append(self._detokenizer.rest())
        return self._release(len(self._text), all_tokens=not self.stopped)

    def _append(self, piece: str) -> None:
        searched = max(0, len(self._text) - self._longest + 1)
        self._text += piece
        found = [place for stop in self._stops if (place := self._text.find(stop, searched)) >= 0]
        if found:
            self._text, self.stopped = self._text[: min(found)], True

    def _held(self) -> int:
        """Length of the longest end of the text that may be the beginning of a stop sequence."""
        if self.stopped:
            return 0
        lengths = range(min(self._longest - 1, len(self._text)), 0, -1)
        return next((n for n in lengths if any(stop.startswith(self._text[-n:]) for stop in self._stops)), 0)

    def _release(self, until: int, *, all_tokens: bool = False) -> Released:
        text, self._released = self._text[self._released : until], max(self._released, until)
        tokens = []
        while self._waiting and (all_tokens or self._waiting[0][0] < self._released):
            tokens.append(self._waiting.popleft()[1])
        return Released(text, tuple(tokens))
