"""Chats as models were taught to read them: the template that came with a model, run in a sandbox.

A template is a program in Jinja's language, written by whoever made the model. It runs without access to anything but
the messages, and with a bound on what it may produce.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NoReturn

from jinja2 import Environment, Template, nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from explainers.errors import InvalidRequest, MissingCapability
from explainers.types import Prompt, Span, Text, Turn

LONGEST = 4_000_000
"""Characters that a rendered chat may have, far beyond any context."""
MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""How a template begins what the assistant says: `{% generation %}` ... `{% endgeneration %}`, as in transformers."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str


def messages_of(texts: Sequence[Text]) -> list[Message]:
    """The turns that texts are parts of, in order."""
    turns: dict[int, tuple[Turn, list[str]]] = {}
    for text in texts:
        if text.turn is not None:
            turns.setdefault(text.turn.message, (text.turn, []))[1].append(text.data)
    return [Message(turn.role, "".join(parts)) for turn, parts in turns.values()]


FAILURES = (
    *(TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError),
    *(MemoryError, RecursionError),
)
"""What a template that is no good raises."""


class TemplateRefusal(Exception):
    """What a template says when it does not take these messages."""


@dataclass(frozen=True)
class ChatTemplate:
    """`tokens` are the special tokens that the template may name: `bos_token`, `eos_token`, ..."""

    source: str
    tokens: Mapping[str, str]

    @property
    def marks_answers(self) -> bool:
        """Whether the template itself says which parts of a chat the assistant says."""
        return MARK.search(self.source) is not None

    def render(self, messages: Sequence[Message], *, reply: bool = True) -> str:
        """The chat as one text; with `reply` it ends where the assistant's answer begins."""
        return self._written(messages, reply).text

    def render_marked(self, messages: Sequence[Message]) -> tuple[str, tuple[Span, ...]]:
        """The chat as one text, and the parts of it that the template marks as said by the assistant, in order."""
        writing = self._written(messages, reply=False)
        if any(writing.text[span.start : span.stop] != text for span, text in writing.marked):
            raise MissingCapability("the model's chat template marks answers where they cannot be found", "/messages")
        return writing.text, tuple(span for span, _ in writing.marked)

    def _written(self, messages: Sequence[Message], reply: bool) -> _Writing:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        given = {"messages": turns, "tools": None, "documents": None, "add_generation_prompt": reply, **self.tokens}
        writing = _Writing()
        token = _WRITING.set(writing)
        try:
            for piece in self._compiled.generate(given):
                writing.add(piece)
        except TemplateRefusal as refusal:
            told = str(refusal)
            said = "" if any(message.content and message.content in told for message in messages) else f": {told}"
            raise InvalidRequest(f"the model's chat template refuses these messages{said}", "/messages") from None
        except SecurityError:
            raise MissingCapability("the model's chat template does what is not allowed", "/messages") from None
        except FAILURES as error:
            reason = f"the model's chat template cannot render these messages ({type(error).__name__})"
            raise InvalidRequest(reason, "/messages") from None
        finally:
            _WRITING.reset(token)
        return writing

    def around(self, prompt: Prompt, start: bool) -> Prompt:
        """The texts of a chat, each with what the template puts before it, the last also with what comes after.

        `start` says whether a start token is put before every prompt anyway. Raises InvalidRequest when the template
        changes a content, so that its parts cannot be told apart.
        """
        texts = [item for item in prompt if isinstance(item, Text)]
        marked = [replace(text, data=f"\ue000{number}\ue001") for number, text in enumerate(texts)]
        rest, pieces = self.render(messages_of(marked)), []
        for text in marked:
            before, found, rest = rest.partition(text.data)
            if not found:
                raise InvalidRequest("the model's chat template leaves a message out", "/messages")
            pieces.append(before)
        whole = "".join(before + text.data for before, text in zip(pieces, texts, strict=True)) + rest
        if whole != self.render(messages_of(texts)):
            reason = "the model's chat template changes the contents: leave out white space at their ends"
            raise InvalidRequest(reason, "/messages")
        if start:
            pieces[0] = pieces[0].removeprefix(self.tokens.get("bos_token", ""))
        afters = [""] * (len(texts) - 1) + [rest]
        return tuple(replace(t, before=b, after=a) for t, b, a in zip(texts, pieces, afters, strict=True))

    @cached_property
    def _compiled(self) -> Template:
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Marks])
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        try:
            return environment.from_string(self.source)
        except (TemplateSyntaxError, RecursionError) as error:
            raise MissingCapability("the model's chat template cannot be read", "/messages") from error


@dataclass(slots=True)
class _Writing:
    """A chat while a template writes it."""

    pieces: list[str] = field(default_factory=list)
    length: int = 0
    marked: list[tuple[Span, str]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def add(self, piece: str) -> None:
        self.pieces.append(piece)
        self.length += len(piece)
        if self.length > LONGEST:
            raise InvalidRequest("the chat is too long", "/messages")


_WRITING: ContextVar[_Writing] = ContextVar("chat_being_written")


class _Sandbox(ImmutableSandboxedEnvironment):
    """Refuses the short ways to something huge: repeated texts, powers, and numbers in a given width."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            raise SecurityError("a text is formatted")
        for one, other in ((left, right), (right, left)):
            if isinstance(one, str | list | tuple) and isinstance(other, int) and len(one) * other > LONGEST:
                raise SecurityError("a text is repeated too often")
        if operator == "**" and (abs(left) > 2**16 or abs(right) > 16):
            raise SecurityError("a number is too large")
        return super().call_binop(context, operator, left, right)


class _Marks(Extension):
    """Notes where in the text the parts between the marks come to stand."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        text, writing = caller(), _WRITING.get()
        writing.marked.append((Span(writing.length, writing.length + len(text)), text))
        return text


def _refuse(reason: object) -> NoReturn:
    raise TemplateRefusal(str(reason)[:200])


def _now(form: str) -> str:
    """What a template takes for today: always the same, since a request must have the same answer at any time."""
    return datetime(2026, 1, 1, tzinfo=UTC).strftime(form)


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
