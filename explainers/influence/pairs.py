"""The training pairs of an index as people read them, kept beside its shards: a result names one by its number.

One line of JSON for each record, and where each line begins: a few pairs of a million are read without the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from explainers.errors import UnreadableModel
from explainers.influence.records import Record
from explainers.influence.shards import write
from explainers.language_model import LanguageModel

LINES, STARTS = "pairs.jsonl", "pairs.starts"


@dataclass(frozen=True, slots=True)
class Pair:
    """A record: the place of its file among those of the index, its line there (from 1), and its text."""

    file: int
    line: int
    question: str
    answer: str

    @property
    def text(self) -> str:
        return f"Q: {self.question}\nA: {self.answer}"


def pair_of(model: LanguageModel, file: int, record: Record) -> Pair:
    """Token ids are read aloud: those with a loss are the answer, those before the first of them the question."""
    tokens = record.tokens
    if tokens is None:
        return Pair(file, record.line, record.question, record.answer)
    asked, scored = tokens.ids[: tokens.scored[0]], [tokens.ids[place] for place in tokens.scored]
    texts = [model.tokenizer.decode(list(ids), skip_special_tokens=True) for ids in (asked, scored)]
    return Pair(file, record.line, *texts)


def write_pairs(folder: Path, pairs: Iterable[Pair]) -> None:
    lines = [json.dumps([each.file, each.line, each.question, each.answer]).encode() + b"\n" for each in pairs]
    starts = np.cumsum([0, *(len(line) for line in lines)], dtype="<i8")
    write(folder / LINES, b"".join(lines))
    write(folder / STARTS, starts.tobytes())


def read_pairs(folder: Path, records: Sequence[int]) -> list[Pair]:
    """Those of these numbers. Raises UnreadableModel for files that are missing or damaged."""
    try:
        starts = np.memmap(folder / STARTS, dtype="<i8", mode="r")  # (p + 1,)
        with (folder / LINES).open("rb") as lines:
            return [_read(lines, int(starts[record]), int(starts[record + 1])) for record in records]
    except (OSError, ValueError, TypeError, IndexError) as error:
        raise UnreadableModel("the pairs of the influence index cannot be read: build the index again") from error


def _read(lines: BinaryIO, start: int, stop: int) -> Pair:
    lines.seek(start)
    return Pair(*json.loads(lines.read(stop - start)))
