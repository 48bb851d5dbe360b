"""Where log lines go: to stderr, one JSON object a line, or text for a person at a terminal.

Context: libraries log what they were given (statements, tokens, the text of errors), and so quote prompts. Decision: of
their lines only severity, place and kinds of errors are told, except for the few whose words are known to be harmless;
of our own, which quote nothing, all is told; of an error its type and where it went through, never its text.
Consequence: what a line of another's says stands at the place that it names.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
import warnings
from collections.abc import MutableMapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias

import structlog
from structlog.stdlib import ProcessorFormatter

Format: TypeAlias = Literal["auto", "json", "text"]
Event: TypeAlias = MutableMapping[str, Any]

ROOMS = ("app", "demo", "explainers", "storage")
HARMLESS = ("alembic.runtime.migration", "uvicorn.error")
"""Loggers whose words are about versions, addresses and processes."""
DEEPEST = 40
"""Frames of an error that are told, the last ones."""

log = logging.getLogger("app.process")


class Line(dict[str, Any]):
    """What a line has to say as fields; as text it is their JSON."""

    def __str__(self) -> str:
        return json.dumps(self, separators=(",", ":"))


def configure(level: str, form: Format = "auto") -> None:
    """Gives all loggers a place to write, unless the program that runs the server has given them one."""
    root, chosen = logging.getLogger(), logging.getLevelNamesMapping()[level.upper()]
    for room in ROOMS:
        logging.getLogger(room).setLevel(chosen)
    if root.handlers or logging.getLogger("app").handlers:
        return
    root.addHandler(handler(form))
    root.setLevel(chosen if chosen == logging.DEBUG else max(chosen, logging.WARNING))
    take_over()
    warnings.showwarning = tell_warning
    threading.excepthook = tell_thread
    sys.unraisablehook = tell_unraisable


def take_over() -> None:
    """Lines of libraries that write to stderr by themselves come to the root like all others."""
    for logger in list(logging.getLogger().manager.loggerDict.values()):
        if isinstance(logger, logging.Logger) and logger.handlers:
            logger.handlers.clear()
            logger.propagate = True


def handler(form: Format, stream: Any = None) -> logging.Handler:
    """Writes whole lines to stderr, or to `stream`."""
    lines = logging.StreamHandler(stream)
    text = form == "text" or (form == "auto" and lines.stream.isatty())
    renderer: Any = structlog.dev.ConsoleRenderer(colors=False) if text else structlog.processors.JSONRenderer(compact)
    chain: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        told,
    ]
    last = [ProcessorFormatter.remove_processors_meta, renderer]
    lines.setFormatter(ProcessorFormatter(foreign_pre_chain=chain, processors=last, pass_foreign_args=True))
    return lines


def compact(event: Event, **_: Any) -> str:
    return json.dumps(event, separators=(",", ":"), default=lambda value: type(value).__name__)


def told(_: Any, __: str, event: Event) -> Event:
    """What may be told of a line."""
    record: logging.LogRecord = event["_record"]
    arguments = event.pop("positional_args", None) or ()
    event.pop("stack_info", None)
    if isinstance(record.msg, Line):
        event["event"] = "request"
        event.update(record.msg)
    elif record.name.partition(".")[0] not in ROOMS and record.name not in HARMLESS:
        event["event"] = "a library's line: its words are left out"
        event["place"] = f"{record.module}:{record.lineno}"
        kinds = [type(value).__name__ for value in arguments if isinstance(value, BaseException)]
        event.update({"errors": kinds} if kinds else {})
    error = event.pop("exc_info", None)
    if isinstance(error, tuple) and error[0] is not None:
        event.update(error=error[0].__name__, frames=frames(error[2]))
    return event


def frames(trace: TracebackType | None) -> list[str]:
    """Where an error went through; no line of code, no value."""
    passed = traceback.extract_tb(trace)[-DEEPEST:]
    return [f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in passed]


def tell_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """Its class and place; the text may hold values."""
    log.warning("%s at %s:%s", category.__name__, Path(filename).name, lineno)


def tell_thread(ended: threading.ExceptHookArgs) -> None:
    where = "".join(f"\n  {frame}" for frame in frames(ended.exc_traceback))
    log.error("a thread ended with %s%s", ended.exc_type.__name__, where)


def tell_unraisable(ignored: Any) -> None:
    where = "".join(f"\n  {frame}" for frame in frames(ignored.exc_traceback))
    log.error("%s was ignored%s", ignored.exc_type.__name__, where)
