"""Chats as models were taught to read them: the template that came with a model, run in a process of its own.

A template is a program in Jinja's language, written by whoever made the model: `chat_child` runs it, with the limits
given here. Its process begins with the first rendering, ends with the template, and is started again after it was
ended.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NoReturn

from explainers.chat_child import ENCODING, LONGEST, PLACE
from explainers.confined.child_process import ChildProcess, Limits
from explainers.errors import InvalidRequest, MissingCapability, OutOfTime, PredictorFailed, ProcessCrashed
from explainers.types import Prompt, Span, Text, Turn

CHILD = "explainers.chat_child"
LIMITS = Limits(memory_bytes=512 * 2**20, load_seconds=10.0, call_seconds=5.0, answer_bytes=64 * 2**20)
FLAWS = {
    "unsafe": "does what is not allowed",
    "unreadable": "cannot be read",
    "memory": f"needs more memory than the {LIMITS.memory_bytes // 2**20} MiB it is given",
}
"""What a template can be refused for, whatever the messages are, by the child's word for it."""
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


@dataclass(frozen=True)
class ChatTemplate:
    """`tokens` are the special tokens that the template may name: `bos_token`, `eos_token`, ...

    Any thread may render; calls take turns. Errors name the template and what became of it, never the messages.
    """

    source: str
    tokens: Mapping[str, str]

    @property
    def marks_answers(self) -> bool:
        """Whether the template itself says which parts of a chat the assistant says."""
        return MARK.search(self.source) is not None

    def render(self, messages: Sequence[Message], *, reply: bool = True) -> str:
        """The chat as one text; with `reply` it ends where the assistant's answer begins.

        Raises InvalidRequest for messages that the template refuses or fails on, MissingCapability for a template that
        cannot be read, is not allowed what it does, or takes more time or memory than it is given; PredictorFailed
        when others have ended its process.
        """
        return self._written(messages, reply).text

    def render_marked(self, messages: Sequence[Message]) -> tuple[str, tuple[Span, ...]]:
        """The chat as one text, and the parts of it that the template marks as said by the assistant, in order."""
        writing = self._written(messages, reply=False)
        if writing.misplaced:
            raise MissingCapability("the model's chat template marks answers where they cannot be found", "/messages")
        return writing.text, writing.marked

    def _written(self, messages: Sequence[Message], reply: bool) -> Written:
        if sum(len(message.role) + len(message.content) for message in messages) > LONGEST:
            raise InvalidRequest("the chat is too long", "/messages")
        turns = [{"role": message.role, "content": message.content} for message in messages]
        given = {"messages": turns, "tools": None, "documents": None, "add_generation_prompt": reply, **self.tokens}
        payload = json.dumps(given, ensure_ascii=False).encode(*ENCODING)
        answer, found = self.process.call(payload)
        if answer.get("outcome") != "written":
            _refuse(answer, messages)
        return written_from(answer, found)

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
    def process(self) -> TemplateProcess:
        return TemplateProcess(self.source)


class TemplateProcess:
    """Where a template runs, from the first call on."""

    def __init__(self, source: str) -> None:
        content = source.encode(*ENCODING)
        self._child = ChildProcess(CHILD, content, LIMITS, "the model's chat template")
        self._lock = threading.Lock()
        self._slow = False

    @property
    def pid(self) -> int | None:
        """Of the running process, if there is one."""
        return self._child.pid

    def close(self) -> None:
        self._child.close()

    def call(self, payload: bytes) -> tuple[dict[str, Any], bytes]:
        try:
            with self._turn():
                answered = self._child.call({"ask": "render"}, payload)
                self._slow = False
                return answered
        except OutOfTime:
            raise _too_slow() from None
        except ProcessCrashed as error:
            reason = f"the model's chat template brings down the process it runs in ({error.cause})"
            raise MissingCapability(reason, "/messages") from None

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One call at a time; nobody waits behind one that is, or has lately been, too slow.

        Else everybody who asks for such a template keeps a thread of the server waiting, and others have none.
        """
        waits = not self._lock.acquire(blocking=False)
        if waits and (self._slow or not self._lock.acquire(timeout=LIMITS.load_seconds + LIMITS.call_seconds)):
            raise _too_slow()
        try:
            if waits and self._slow:
                raise _too_slow()
            yield
        except OutOfTime:
            self._slow = True
            raise
        finally:
            self._lock.release()


@dataclass(frozen=True, slots=True)
class Written:
    """A chat, and the parts of it that are marked; `misplaced` when they are not where the marks say."""

    text: str
    marked: tuple[Span, ...]
    misplaced: bool


def written_from(answer: Mapping[str, Any], found: bytes) -> Written:
    """Raises PredictorFailed for what no template's process answers."""
    size = answer.get("bytes")
    if not isinstance(size, int) or not 0 <= size <= len(found) or (len(found) - size) % PLACE.size:
        raise PredictorFailed("the chat template's process answered another size than it said")
    try:
        text = found[:size].decode(*ENCODING)
    except UnicodeDecodeError:
        raise PredictorFailed("the chat template's process answered with no text") from None
    spans = tuple(Span(start, stop) for start, stop in PLACE.iter_unpack(found[size:]))
    misplaced = answer.get("misplaced") is not False
    if len(text) > LONGEST or not (misplaced or all(span.start <= span.stop <= len(text) for span in spans)):
        raise PredictorFailed("the chat template's process answered with other places than its text has")
    return Written(text, spans, misplaced)


def _refuse(answer: Mapping[str, Any], messages: Sequence[Message]) -> NoReturn:
    """What an outcome other than a text means to whoever asked."""
    match answer.get("outcome"):
        case "refused":
            told = str(answer.get("told"))[:200]
            said = "" if any(message.content and message.content in told for message in messages) else f": {told}"
            raise InvalidRequest(f"the model's chat template refuses these messages{said}", "/messages")
        case "failed":
            reason = f"the model's chat template cannot render these messages ({_name(answer.get('name'))})"
            raise InvalidRequest(reason, "/messages")
        case "long":
            raise InvalidRequest("the chat is too long", "/messages")
        case outcome if isinstance(outcome, str) and outcome in FLAWS:
            raise MissingCapability(f"the model's chat template {FLAWS[outcome]}", "/messages")
        case _:
            raise PredictorFailed("the chat template's process answered something else")


def _name(error: object) -> str:
    return error if isinstance(error, str) and error.isidentifier() and len(error) < 60 else "unknown"


def _too_slow() -> MissingCapability:
    reason = f"the model's chat template takes more than {LIMITS.call_seconds:g} seconds and was stopped"
    return MissingCapability(reason, "/messages")
