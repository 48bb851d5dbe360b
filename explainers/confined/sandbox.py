"""The process in which files of strangers are read and run: it takes work from its parent until the pipe ends.

Started by `child_process`, for a module that has a class `Served` with a method `answer`:

    python -I sandbox.py ROOT MODULE MEMORY_BYTES CPU_SECONDS

Frames in both directions: 4 bytes length of a JSON header, 8 bytes length of a payload (both little-endian), header,
payload. Numbers are float64 in C order. It may open few files, write none, and use no more memory and processor time
than it is given; what the kernel lets it do is in `system_calls`. It ends when its parent does: the pipe from it then
hangs up, which a thread waits for. When memory runs out on the machine, it is the first to go.
"""

from __future__ import annotations

import json
import os
import resource
import select
import struct
import sys
import threading
import warnings
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Protocol

FRAME = struct.Struct("<IQ")
OPEN_FILES = 64


class Refusal(Exception):
    """An answer that is an error: `kind` is unreadable, invalid, capability or failed."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Served(Protocol):
    def answer(self, header: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        """The answer to one frame; raises `Refusal`, and what the model raises."""


def main(arguments: list[str]) -> None:
    from explainers.confined import system_calls  # noqa: PLC0415 - the script has to find its packages first

    module, memory, seconds = arguments[0], int(arguments[1]), int(arguments[2])
    source, sink = _private_pipes()
    warnings.simplefilter("ignore")
    with suppress(OSError):  # where /proc is not ours to write
        Path("/proc/self/oom_score_adj").write_text("1000")
    _limit(memory, seconds)
    system_calls.restrict()
    threading.Thread(target=_end_with_parent, args=(source.fileno(),), daemon=True).start()
    served: Served = import_module(module).Served()
    serve(served, source, sink, seconds)


def serve(served: Served, source: BinaryIO, sink: BinaryIO, seconds: int) -> None:
    """Answers frames until the parent closes the pipe."""
    while (frame := _receive(source)) is not None:
        _allow(seconds)
        answer, numbers = _answered(served, *frame)
        text = json.dumps(answer).encode()
        sink.write(FRAME.pack(len(text), len(numbers)) + text)
        sink.write(numbers)
        sink.flush()


def _answered(served: Served, header: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
    try:
        return served.answer(header, payload)
    except Refusal as refusal:
        return {"error": refusal.kind, "message": str(refusal)[:300]}, b""
    except MemoryError:
        return {"error": "capability", "message": "the model needs more memory than it is given"}, b""
    except Exception as error:  # noqa: BLE001 - whatever a model raises is an answer
        return {"error": "invalid", "message": f"{type(error).__name__}: {error}"[:300]}, b""


def _private_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The pipes to the parent; whatever else is printed goes nowhere."""
    source, sink = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    return os.fdopen(source, "rb"), os.fdopen(sink, "wb")


def _end_with_parent(source: int) -> None:
    watch = select.poll()
    watch.register(source, 0)  # hang-up is always reported
    watch.poll()
    os._exit(0)


def _limit(memory: int, seconds: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _allow(seconds)


def _allow(seconds: int) -> None:
    """Processor time for one more answer; the kernel ends the process beyond it."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(usage.ru_utime + usage.ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (spent + seconds + 1, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _receive(source: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    start = source.read(FRAME.size)
    if len(start) < FRAME.size:
        return None
    header, payload = FRAME.unpack(start)
    return json.loads(source.read(header)), source.read(payload)


if __name__ == "__main__":
    sys.path.append(sys.argv[1])
    import_module("explainers.confined.sandbox").main(sys.argv[2:])
