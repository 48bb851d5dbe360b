"""Lines of the log: one JSON object each, with the request they belong to, and nothing that a library may quote."""

from __future__ import annotations

import io
import json
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from app import logs
from app.logs import Line
from tests.app.conftest import Running

pytestmark = pytest.mark.anyio

CANARY = "canary-4f1d"


@contextmanager
def written(form: logs.Format = "json") -> Iterator[io.StringIO]:
    """What a handler of ours on the root writes meanwhile."""
    stream = io.StringIO()
    handler, root = logs.handler(form, stream), logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield stream
    finally:
        root.removeHandler(handler)
        root.setLevel(before)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_fields_of_a_line_stand_beside_the_others() -> None:
    with written() as stream:
        logging.getLogger("app.access").warning(Line(route="/explain", status=200))
        logging.getLogger("app.jobs").warning("job %s was left to others: %s", "7", "KeyError")
    access, job = lines(stream)
    assert (access["event"], access["route"], access["status"]) == ("request", "/explain", 200)
    assert (job["event"], job["level"], job["logger"]) == ("job 7 was left to others: KeyError", "warning", "app.jobs")
    assert job["time"].endswith("Z")


def test_libraries_words_are_left_out() -> None:
    library = logging.getLogger("some.library")
    with written() as stream:
        library.warning("prompt %s in %r", CANARY, ValueError(CANARY))
        library.debug(f"statement {CANARY}")
        logging.getLogger("uvicorn.error").warning("Started server process [%d]", 7)
    first, second, third = lines(stream)
    assert CANARY not in stream.getvalue()
    assert first["errors"] == ["ValueError"] and first["place"].startswith("test_logs:")
    assert second["event"] == first["event"] and third["event"] == "Started server process [7]"


def failing(text: str) -> None:
    raise ValueError(text)


@pytest.mark.parametrize("form", ["json", "text"])
def test_errors_are_told_by_type_and_place(form: logs.Format) -> None:
    with written(form) as stream:
        for name in ("app.jobs", "asyncio"):
            try:
                failing(CANARY)
            except ValueError:
                logging.getLogger(name).exception("it failed")
    told = stream.getvalue()
    assert CANARY not in told and "raise ValueError" not in told
    assert told.count("ValueError") == 2 and told.count("in failing") == 2


def test_text_is_one_line_for_a_person() -> None:
    with written("text") as stream:
        logging.getLogger("app.access").warning(Line(route="/explain", status=200))
    told = stream.getvalue()
    assert told.count("\n") == 1 and "request" in told and "route=/explain" in told and "status=200" in told


def test_a_terminal_gets_text_and_a_pipe_json() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, is_json in ((Terminal(), False), (io.StringIO(), True)):
        handler = logs.handler("auto", stream)
        handler.emit(logging.LogRecord("app", logging.INFO, __file__, 1, "hello", (), None))
        assert stream.getvalue().startswith("{") == is_json and "hello" in stream.getvalue()


def test_hooks_tell_no_text() -> None:
    with written() as stream:
        logs.tell_warning(UserWarning(CANARY), UserWarning, "/somewhere/else.py", 7)
        thread = threading.Thread(target=failing, args=(CANARY,))
        hook, threading.excepthook = threading.excepthook, logs.tell_thread
        try:
            thread.start()
            thread.join()
        finally:
            threading.excepthook = hook
        try:
            failing(CANARY)
        except ValueError as error:
            logs.tell_unraisable(SimpleNamespace(exc_type=type(error), exc_traceback=error.__traceback__))
    assert CANARY not in stream.getvalue()
    events = [line["event"] for line in lines(stream)]
    assert events[0] == "UserWarning at else.py:7" and "in failing" in events[1] and "in failing" in events[2]


def test_a_program_with_handlers_of_its_own_keeps_them() -> None:
    before, shown = list(logging.getLogger().handlers), warnings.showwarning
    assert before  # pytest's
    logs.configure("info", "json")
    assert logging.getLogger().handlers == before and warnings.showwarning is shown


async def test_lines_of_a_request_have_its_id_also_from_the_device(running: Running) -> None:
    def work(_: Any) -> None:
        logging.getLogger("app.device").warning("at work")

    async def at_work() -> dict[str, str]:
        await running.server.explainer.runtime.run(work)
        return {}

    running.app.add_api_route("/at-work", at_work)
    with written() as stream:
        await running.client.get("/at-work", headers={"X-Request-ID": "mine-7"})
        logging.getLogger("app.device").warning("afterwards")
    found = [line for line in lines(stream) if line["logger"] in ("app.device", "app.access")]
    device, access, after = found
    assert (device["event"], device["request_id"]) == ("at work", "mine-7")
    assert (access["route"], access["request_id"], access["event"]) == ("/at-work", "mine-7", "request")
    assert "request_id" not in after
