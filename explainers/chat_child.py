"""A chat template in a process of its own: a program in Jinja's language, written by whoever made the model.

Runs inside `confined.sandbox`; asked by `chat_template`. It has no access to anything but the messages, and a bound on
what it may produce; what the language's own sandbox lets through, such as a loop without an end, ends with the process.

Asked to `load`, it is given the source. Asked to `render`, it is given a JSON object, `given`, the names that the
template may use. UTF-8 with surrogates carries both. Answers name an `outcome`: `written` (the payload is the text,
`bytes` long, and behind it start and stop of each marked part, 8 bytes each, little-endian; `misplaced` when these are
not where the marks say), `refused` with what the template has `told`, `failed` with the `name` of an error, `unsafe`,
`long`, `memory` or `unreadable`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NoReturn

from jinja2 import Environment, Template, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

LONGEST = 4_000_000
"""Characters that a rendered chat may have, far beyond any context."""
MOST_MARKS = 20_000
PLACE = struct.Struct("<QQ")
"""Start and stop of a marked part, in characters."""
ENCODING = ("utf-8", "surrogatepass")


class Served:
    """The template, once loaded."""

    def __init__(self) -> None:
        self.template: Template | None = None
        self.flaw = "unreadable"

    def answer(self, header: Mapping[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        if header["ask"] == "load":
            self._load(payload.decode(*ENCODING))
            return {}, b""
        if self.template is None:
            return {"outcome": self.flaw}, b""
        try:
            writing = written(self.template, json.loads(payload.decode(*ENCODING)))
            return writing.facts, writing.payload
        except Exception as error:  # noqa: BLE001 - whatever a template raises is an answer
            return outcome_of(error), b""

    def _load(self, source: str) -> None:
        environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Marks])
        environment.filters["tojson"] = to_json
        environment.globals |= {"raise_exception": refuse, "strftime_now": now}
        try:
            self.template = environment.from_string(source)
        except MemoryError:
            self.flaw = "memory"
        except Exception:  # noqa: BLE001 - the parser's errors, and those of the compiler behind it
            self.flaw = "unreadable"


class Refused(Exception):
    """What a template says when it does not take these messages."""


class TooLong(Exception):
    """The text has more characters, or marks, than it may."""


def outcome_of(error: Exception) -> dict[str, Any]:
    match error:
        case Refused():
            return {"outcome": "refused", "told": str(error)}
        case SecurityError():
            return {"outcome": "unsafe"}
        case TooLong():
            return {"outcome": "long"}
        case MemoryError():
            return {"outcome": "memory"}
    return {"outcome": "failed", "name": type(error).__name__}


@dataclass(slots=True)
class Writing:
    """A chat while a template writes it."""

    pieces: list[str] = field(default_factory=list)
    length: int = 0
    marked: list[tuple[int, str]] = field(default_factory=list)
    text: str = ""

    def add(self, piece: str) -> None:
        self.pieces.append(piece)
        self.length += len(piece)
        if self.length > LONGEST:
            raise TooLong

    def mark(self, text: str) -> None:
        """What is written next."""
        self.marked.append((self.length, text))
        if len(self.marked) > MOST_MARKS:
            raise TooLong

    @property
    def facts(self) -> dict[str, Any]:
        misplaced = any(not self.text.startswith(text, start) for start, text in self.marked)
        return {"outcome": "written", "bytes": len(self.text.encode(*ENCODING)), "misplaced": misplaced}

    @property
    def payload(self) -> bytes:
        marks = b"".join(PLACE.pack(start, start + len(text)) for start, text in self.marked)
        return self.text.encode(*ENCODING) + marks


def written(template: Template, given: Mapping[str, Any]) -> Writing:
    """What a template makes of what it is given."""
    writing = Writing()
    template.environment.writing = writing  # type: ignore[attr-defined]
    for piece in template.generate(given):
        writing.add(piece)
    writing.text = "".join(writing.pieces)
    return writing


class Sandbox(ImmutableSandboxedEnvironment):
    """Refuses the short ways to something huge: repeated texts, powers, and numbers in a given width."""

    intercepted_binops = frozenset({"*", "**", "%"})
    writing: Writing

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            raise SecurityError("a text is formatted")
        for one, other in ((left, right), (right, left)):
            if isinstance(one, str | list | tuple) and isinstance(other, int) and len(one) * other > LONGEST:
                raise SecurityError("a text is repeated too often")
        if operator == "**" and (abs(left) > 2**16 or abs(right) > 16):
            raise SecurityError("a number is too large")
        return super().call_binop(context, operator, left, right)


class Marks(Extension):
    """Notes where in the text the parts between the marks come to stand."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        text = caller()
        self.environment.writing.mark(text)  # type: ignore[attr-defined]
        return text


def refuse(reason: object) -> NoReturn:
    raise Refused(str(reason)[:200])


def now(form: str) -> str:
    """What a template takes for today: always the same, since a request must have the same answer at any time."""
    return datetime(2026, 1, 1, tzinfo=UTC).strftime(form)


def to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
