"""The process of a chat template: what Jinja's own sandbox lets through ends there and not here."""

from __future__ import annotations

import gc
import os
import resource
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from explainers import chat_template
from explainers.chat_child import PLACE
from explainers.chat_template import ChatTemplate, Message, written_from
from explainers.errors import InvalidRequest, MissingCapability, PredictorFailed

SECRET = "Anna lives in Oslo."
ASKED = [Message("user", SECRET)]
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}" + "{% endfor %}" * 3
GROWING = "{% set all = namespace(x=START) %}{% for turn in range(99) %}{% set all.x = GROWN %}{% endfor %}done"
MOODY = "{% if messages[0].content == 'hang' %}" + ENDLESS + "{% endif %}{{ messages[0].content }}"
SOON = replace(chat_template.LIMITS, call_seconds=1.0)


def growing(start: str, grown: str) -> str:
    return GROWING.replace("START", start).replace("GROWN", grown)


def pid_of(template: ChatTemplate) -> int:
    pid = template.process.pid
    assert pid is not None
    return pid


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def plain() -> ChatTemplate:
    return ChatTemplate("{% for m in messages %}{{ m.content }}|{% endfor %}", {})


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "LIMITS", SOON)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is not what runs out, however busy the machine is."""
    monkeypatch.setattr(chat_template, "LIMITS", replace(chat_template.LIMITS, call_seconds=60.0))


@pytest.fixture
def moody(soon: None) -> Iterator[ChatTemplate]:
    template = ChatTemplate(MOODY, {})
    yield template
    template.process.close()


HUNGRY = {
    "texts that double": growing("'xy'", "all.x ~ all.x"),
    "lists that double": growing("[1]", "all.x + all.x"),
    "a huge join": "{{ range(99999) | join('x' * 4000000) }}",
    "a huge centre": "{{ 'x' | center(99999999999) }}",
    "a huge list": "{% set all = namespace(x=[]) %}{% for a in range(9999) %}"
    "{% set all.x = all.x + [range(99999) | list] %}{% endfor %}",
    "a huge replacement": "{{ ('x' * 3000000) | replace('x', 'y' * 3000000) }}",
    "a huge day": "{{ strftime_now('%9999999999d') }}{{ 'x' | center(99999999999) }}",
}


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("source", HUNGRY.values(), ids=HUNGRY)
def test_templates_that_want_all_memory_get_none(source: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MissingCapability, match="more memory than the 512 MiB it is given") as refused:
        ChatTemplate(source, {}).render(ASKED)
    assert SECRET not in str(refused.value) and refused.value.pointer == "/messages"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # KiB


SLOW = {
    "loops that print nothing": ENDLESS,
    "a long sort": "{% for a in range(99999) %}{% set x = range(99999) | map('string') | sort %}{% endfor %}",
    "numbers that double": growing("3 ** 16", "all.x * all.x"),
}


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("source", SLOW.values(), ids=SLOW)
def test_templates_without_an_end_are_ended(source: str) -> None:
    template, started = ChatTemplate(source, {}), time.monotonic()
    with pytest.raises(MissingCapability, match="takes more than 1 seconds and was stopped") as refused:
        template.render(ASKED)
    assert time.monotonic() - started < 30
    assert SECRET not in str(refused.value) and refused.value.pointer == "/messages"
    assert template.process.pid is None


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}", "cannot render"),
        (
            "{% set all = namespace(x=[]) %}{% for a in range(9999) %}{% set all.x = [all.x] %}{% endfor %}"
            "{{ all.x | tojson }}",
            r"cannot render these messages \(RecursionError\)",
        ),
        ("{% for a in [1] %}" * 30 + "{% endfor %}" * 30, "cannot be read"),
        ("{% for a in range(150) %}{% for b in range(150) %}{% generation %}{% endgeneration %}"
         "{% endfor %}{% endfor %}", "the chat is too long"),
    ],
    ids=["two macros", "a deep list", "deep loops", "many marks"],
)  # fmt: skip
def test_templates_that_go_too_deep_or_too_far(source: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        ChatTemplate(source, {}).render(ASKED)


def test_what_hung_is_ended_and_the_next_call_works(moody: ChatTemplate) -> None:
    assert moody.render([Message("user", "Hi")]) == "Hi"
    before = pid_of(moody)
    with pytest.raises(MissingCapability, match="takes more than"):
        moody.render([Message("user", "hang")])
    assert not lives(before)
    assert moody.render([Message("user", "Ho")]) == "Ho"


def test_nobody_waits_behind_a_template_that_hangs(
    moody: ChatTemplate, plain: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each who asks keeps a thread of the server, one after the other; and other templates are as fast as ever."""
    monkeypatch.setattr(chat_template, "LIMITS", replace(chat_template.LIMITS, call_seconds=2.5))
    plain.render(ASKED)
    started = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        hung = [pool.submit(moody.render, [Message("user", "hang")]) for _ in range(8)]
        assert plain.render(ASKED) == f"{SECRET}|"
        assert not any(each.done() for each in hung)
        for each in hung:
            with pytest.raises(MissingCapability, match="takes more than"):
                each.result()
        first = time.monotonic() - started
        again = pool.submit(moody.render, [Message("user", "hang")])
        while moody.process.pid is None:
            time.sleep(0.01)
        asked = time.monotonic()
        with pytest.raises(MissingCapability, match="takes more than"):
            moody.render([Message("user", "Hi")])
        assert time.monotonic() - asked < 2.5
        assert isinstance(again.exception(), MissingCapability)
    assert first < 8 * 2.5
    assert moody.render([Message("user", "Hi")]) == "Hi"


def test_after_a_process_is_killed_the_next_call_starts_another(plain: ChatTemplate) -> None:
    plain.render(ASKED)
    pid = pid_of(plain)
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert plain.render(ASKED) == f"{SECRET}|"
    assert pid_of(plain) != pid


def ticks_of(pid: int) -> int:
    """How much of the processor it has had."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:  # noqa: PTH123
        return int(file.read().rpartition(")")[2].split()[11])


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGKILL, PredictorFailed), (signal.SIGSEGV, MissingCapability)], ids=["kill", "crash"]
)
def test_a_process_that_ends_while_it_renders(number: int, error: type[Exception]) -> None:
    """Who runs the machine may kill it, which is nobody's fault; a crash is the template's."""
    template = ChatTemplate(MOODY, {})
    template.render(ASKED)
    pid, before = pid_of(template), ticks_of(pid_of(template))
    with ThreadPoolExecutor(1) as pool:
        hung = pool.submit(template.render, [Message("user", "hang")])
        while ticks_of(pid) < before + 10:  # it is at work on that
            time.sleep(0.02)
        os.kill(pid, number)
        with pytest.raises(error, match=signal.Signals(number).name):
            hung.result()
    assert template.render(ASKED) == SECRET


def test_threads_get_their_own_chats(plain: ChatTemplate) -> None:
    chats = [[Message("user", f"{number} " * (number % 50)), Message("user", str(number))] for number in range(200)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(plain.render, chats)) == [f"{a.content}|{b.content}|" for a, b in chats]


def test_texts_arrive_as_they_are(plain: ChatTemplate) -> None:
    """Also those that no encoding has: half characters, alone and in pairs that are not one."""
    odd = ["\ud800", "\ud83d\ude00", "🙂é\0\x85\u2028", "</s>{{ 7 * 7 }}", ""]
    assert plain.render([Message("user", text) for text in odd]) == "".join(f"{text}|" for text in odd)
    marked = ChatTemplate("{{ a }}{% generation %}{{ messages[0].content }}{% endgeneration %}", {"a": "\ud800"})
    text, (span,) = marked.render_marked([Message("user", "🙂\ud83d\ude00")])
    assert text[span.start : span.stop] == "🙂\ud83d\ude00" and text == "\ud800🙂\ud83d\ude00"


def test_messages_longer_than_any_chat_are_refused(plain: ChatTemplate) -> None:
    with pytest.raises(InvalidRequest, match="the chat is too long"):
        plain.render([Message("user", "x" * 4_000_001)])
    assert len(plain.render([Message("user", "é" * 3_999_990)])) == 3_999_991


def test_the_process_begins_with_the_first_chat_and_ends_with_the_template() -> None:
    template = ChatTemplate("{{ messages[0].content }}", {})
    assert template.process.pid is None
    template.render(ASKED)
    pid = pid_of(template)
    template.render(ASKED)
    assert pid_of(template) == pid
    with open(f"/proc/{pid}/limits", encoding="utf-8") as file:  # noqa: PTH123
        limits = file.read().split()
    assert limits[limits.index("address") + 2] == str(512 * 2**20)
    del template
    gc.collect()
    assert not lives(pid)


def test_marks_in_what_is_never_written_hinder_no_chat() -> None:
    source = "{% set x %}{% generation %}never said{% endgeneration %}{% endset %}said"
    template = ChatTemplate(source, {})
    assert template.render(ASKED) == "said"
    with pytest.raises(MissingCapability, match="marks answers where"):
        template.render_marked(ASKED)


FORGED = {
    "no size": ({}, b""),
    "less than nothing": ({"bytes": -1}, b""),
    "more than came": ({"bytes": 5}, b"x"),
    "half a place": ({"bytes": 1}, b"xyz"),
    "no text": ({"bytes": 1}, b"\xff"),
    "too much text": ({"bytes": 4_000_001}, b"x" * 4_000_001),
    "a place behind the text": ({"bytes": 1, "misplaced": False}, b"x" + PLACE.pack(0, 2**63)),
    "a place that ends before it starts": ({"bytes": 1, "misplaced": False}, b"x" + PLACE.pack(1, 0)),
}


@pytest.mark.parametrize(("answer", "payload"), FORGED.values(), ids=FORGED)
def test_a_process_that_has_been_taken_over_is_not_believed(answer: dict[str, object], payload: bytes) -> None:
    with pytest.raises(PredictorFailed, match="the chat template's process answered"):
        written_from(answer, payload)
