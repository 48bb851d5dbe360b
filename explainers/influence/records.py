"""Training files as records: one for each line of a JSONL file, or for each row of a Parquet file of token ids.

A line has one of these forms, of which the first that fits counts; whatever else it has is ignored.

    {"messages": [{"role", "content"}, ...]}                a chat; `system` first where there is one, `assistant` last
    {"messages": [...], "chosen": ..., "rejected": ...}     the chat with the answer that was preferred
    {"question", "answer"} or {"prompt", "completion"}      a chat of two turns
    {"text"}                                                plain text

A file is taken whole or not at all: `BadLines` names every bad line and says what is wrong, never what is in it.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

from explainers.chat_template import Message
from explainers.errors import InvalidRequest
from explainers.predictors.parquet_file import Facts, rows_of

LARGEST_FILE = 2**30
LARGEST_LINE = 4 * 2**20
"""Bytes of a line, far beyond any context."""
MOST_LINES = 2_000_000
MOST_TOKENS = 50_000_000
"""Of all rows of a file of token ids: packed as they may be, they are spelt out here."""
MOST_NAMED = 100
"""Bad lines that an error names."""
BLOCK = 1_000
"""Rows that are read from Parquet at once."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
PARQUET = b"PAR1"
NO_LOSS = -100
"""The label of a token whose loss did not count."""
ROLES = ("system", "user", "assistant")
PAIRS = (("question", "answer"), ("prompt", "completion"))
HALF_PAIR = re.compile("[\ud800-\udfff]")

Row: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Tokens:
    """A row of token ids, its padding taken away. `scored`: positions whose tokens' losses counted, ascending, not 0:
    nothing comes before the first token to predict it.
    """

    ids: tuple[int, ...]  # S
    scored: tuple[int, ...]  # T positions in 1..S-1


@dataclass(frozen=True, slots=True)
class Record:
    """One training example as it stands in its file, at that line (from 1): a chat, a text, or token ids."""

    line: int
    turns: tuple[Message, ...] = ()
    text: str | None = None
    tokens: Tokens | None = None

    @property
    def question(self) -> str:
        """The last user turn; empty for what is no chat."""
        return next((turn.content for turn in reversed(self.turns) if turn.role == "user"), "")

    @property
    def answer(self) -> str:
        """The last assistant turn, or the text; empty for token ids."""
        return self.turns[-1].content if self.turns else self.text or ""


@dataclass(frozen=True, slots=True)
class BadLine:
    """What is wrong with a line, in words that follow its number: `is not JSON`."""

    line: int
    reason: str


class BadLines(InvalidRequest):
    """Lines that are no training examples: `lines` are the first of them, `more` the number of the others."""

    def __init__(self, lines: Sequence[BadLine], more: int = 0) -> None:
        self.lines = tuple(lines[:MOST_NAMED])
        self.more = more + len(lines) - len(self.lines)
        told = "; ".join(f"line {bad.line} {bad.reason}" for bad in self.lines)
        super().__init__(told + (f"; and {self.more} more lines" if self.more else ""))


class _Unfit(Exception):
    """What is wrong with the line at hand."""


def file_type(content: bytes) -> str:
    """`jsonl` or `parquet`, as the content says itself."""
    return "parquet" if content.startswith(PARQUET) else "jsonl"


def records_of(content: bytes, filename: str = "") -> tuple[Record, ...]:
    """The records of a file, in order. Raises BadLines, and InvalidRequest for a file that cannot be one at all.

    The name only helps to say what is wrong: what the file is, it says itself.
    """
    if len(content) > LARGEST_FILE:
        raise InvalidRequest(f"a training file may have {LARGEST_FILE} bytes")
    if file_type(content) == "parquet":
        return _collected(_token_rows(content), _tokens_record)
    if filename.lower().endswith(".parquet"):
        raise InvalidRequest("the file is called .parquet and is none")
    records = _collected(_lines(content), _line_record)
    if not records:
        raise InvalidRequest("the file has no lines")
    return records


def _collected(rows: Iterable[Any], read: Callable[[int, Any], Record]) -> tuple[Record, ...]:
    """What `read` makes of each row; raises BadLines for all that it refuses."""
    records: list[Record] = []
    bad: list[BadLine] = []
    refused = 0
    for line, row in enumerate(rows, start=1):
        if line > MOST_LINES:
            raise InvalidRequest(f"a training file may have {MOST_LINES} lines")
        try:
            records.append(read(line, row))
        except _Unfit as unfit:
            refused += 1
            if len(bad) < MOST_NAMED:
                bad.append(BadLine(line, str(unfit)))
    if bad:
        raise BadLines(bad, refused - len(bad))
    return tuple(records)


def _lines(content: bytes) -> Iterator[bytes]:
    """The lines without their ends; blank ones at the end of the file are none."""
    start = len(BYTE_ORDER_MARK) if content.startswith(BYTE_ORDER_MARK) else 0
    file = io.BytesIO(content)
    file.seek(start)
    blank = 0
    for line in file:
        if line.strip():
            yield from [b""] * min(blank, MOST_LINES)
            yield line
        blank = 0 if line.strip() else blank + 1


def _line_record(line: int, content: bytes) -> Record:
    if not content:
        raise _Unfit("is empty")
    if len(content) > LARGEST_LINE:
        raise _Unfit(f"has more than {LARGEST_LINE} bytes")
    try:
        row = DECODER.decode(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise _Unfit("is not UTF-8") from None
    except (ValueError, RecursionError):
        raise _Unfit("is not JSON") from None
    if not isinstance(row, dict):
        raise _Unfit("must be a JSON object")
    return _record(line, row)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _record(line: int, row: Row) -> Record:
    if "messages" in row:
        return Record(line, _answered(row))
    for asked, answered in PAIRS:
        if asked in row and answered in row:
            question = Message("user", _text(row[asked], asked))
            return Record(line, (question, Message("assistant", _filled(row[answered], answered))))
    if "text" in row:
        return Record(line, text=_filled(row["text"], "text"))
    raise _Unfit("must have messages, question and answer, prompt and completion, or text")


def _answered(row: Row) -> tuple[Message, ...]:
    """The turns of a chat, which ends with an answer; of a pair of answers, with the chosen one."""
    turns = _turns(row["messages"], "messages")
    if "chosen" in row or "rejected" in row:
        for name in ("chosen", "rejected"):
            _ending(turns + _reply(row.get(name), name), name)
        turns += _reply(row["chosen"], "chosen")
    _ending(turns, "messages")
    return turns


def _ending(turns: Sequence[Message], name: str) -> None:
    if turns[-1].role != "assistant":
        raise _Unfit(f"must end with a turn of the assistant: {name}")
    if not turns[-1].content.strip():
        raise _Unfit(f"has an empty answer: {name}")
    if all(turn.role != "user" for turn in turns):
        raise _Unfit(f"has no turn of the user: {name}")


def _reply(value: Any, name: str) -> tuple[Message, ...]:
    """An answer: its text, its turn, or several turns."""
    if isinstance(value, str):
        return (Message("assistant", _text(value, name)),)
    return _turns([value] if isinstance(value, dict) else value, name)


def _turns(value: Any, name: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise _Unfit(f"must have an array of turns: {name}")
    return tuple(_turn(turn, name, index) for index, turn in enumerate(value))


def _turn(value: Any, name: str, index: int) -> Message:
    if not isinstance(value, dict):
        raise _Unfit(f"must have a JSON object: {name}/{index}")
    if value.get("role") not in ROLES:
        raise _Unfit(f"must have a role of {', '.join(ROLES)}: {name}/{index}")
    return Message(value["role"], _text(value.get("content"), name, index))


def _filled(value: Any, name: str) -> str:
    text = _text(value, name)
    if not text.strip():
        raise _Unfit(f"must not be empty: {name}")
    return text


def _text(value: Any, name: str, turn: int | None = None) -> str:
    place = name if turn is None else f"{name}/{turn}/content"
    if not isinstance(value, str):
        raise _Unfit(f"must have a string: {place}")
    if not value.isascii() and HALF_PAIR.search(value):
        raise _Unfit(f"has half a surrogate pair: {place}")
    return value


def _token_rows(content: bytes) -> Iterator[Row]:
    """The rows of a Parquet file with the columns input_ids, labels and, where there is one, attention_mask."""
    return rows_of(content, BLOCK, _token_columns)


def _token_columns(file: Facts) -> list[str]:
    """Raises InvalidRequest for a file without rows, without such columns, or with more than is read."""
    for needed in ("input_ids", "labels"):
        if needed not in file.names:
            raise InvalidRequest(f"a Parquet file needs the columns input_ids and labels: it lacks {needed}")
    if not file.rows:
        raise InvalidRequest("the file has no rows")
    if file.values > 3 * MOST_TOKENS:
        raise InvalidRequest(f"a Parquet file may have {MOST_TOKENS} tokens")
    return [name for name in ("input_ids", "labels", "attention_mask") if name in file.names]


def _tokens_record(line: int, row: Row) -> Record:
    ids, labels = _numbers(row, "input_ids"), _numbers(row, "labels")
    mask = _numbers(row, "attention_mask") if "attention_mask" in row else [1] * len(ids)
    if not len(ids) == len(labels) == len(mask):
        raise _Unfit("has columns of different lengths")
    if not set(mask) <= {0, 1} or "0" in "".join(map(str, mask)).strip("0"):
        raise _Unfit("must have ones side by side and zeros around them: attention_mask")
    if any(label not in (NO_LOSS, id if read else NO_LOSS) for id, label, read in zip(ids, labels, mask, strict=True)):
        raise _Unfit(f"must have the id of its token or {NO_LOSS} at each place, {NO_LOSS} at padding: labels")
    kept = [(id, label) for id, label, read in zip(ids, labels, mask, strict=True) if read]
    if min((id for id, _ in kept), default=0) < 0:
        raise _Unfit("must have ids of 0 or more: input_ids")
    scored = tuple(place for place, (_, label) in enumerate(kept) if place and label != NO_LOSS)
    if not scored:
        raise _Unfit("has no token with a loss: labels")
    return Record(line, tokens=Tokens(tuple(id for id, _ in kept), scored))


def _numbers(row: Row, name: str) -> list[int]:
    value = row[name]
    if not isinstance(value, list) or not all(type(number) is int for number in value):
        raise _Unfit(f"must have an array of whole numbers: {name}")
    return value
