"""A process that holds one model and answers frames, started when needed and again after it has ended.

What the model does to it stays there: a crash, a memory limit or a hang is an error here, and the next call gets a new
process. Protocol and limits: `sandbox`.
"""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from explainers.errors import (
    ExplainerError,
    InvalidRequest,
    MissingCapability,
    OutOfTime,
    PredictorFailed,
    ProcessCrashed,
    UnreadableModel,
)

FRAME = struct.Struct("<IQ")
MAX_HEADER = 2**20
PIECE = 2**16
SANDBOX = Path(__file__).with_name("sandbox.py")
SINGLE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
ENVIRONMENT = {**SINGLE, "MALLOC_ARENA_MAX": "2"}
"""All that a process is told: a thread's arena takes 64 MiB of the address space that is limited."""
REFUSALS: Mapping[str, type[ExplainerError]] = {
    "unreadable": UnreadableModel,
    "invalid": InvalidRequest,
    "capability": MissingCapability,
    "failed": PredictorFailed,
}

OTHERS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that a process gets from without: from whoever runs the machine, or from its kernel when memory runs out."""

Process = subprocess.Popen[bytes]


@dataclass(frozen=True, slots=True)
class Limits:
    """`load_seconds` and `call_seconds` are of the clock; the processor's time is the longer of them on each core."""

    memory_bytes: int = 4 * 2**30
    load_seconds: float = 120.0
    call_seconds: float = 60.0
    cores: int = 1
    answer_bytes: int = 2**30


class ChildProcess:
    """One model in a process of its own; calls from several threads take turns.

    `module` is what serves there, `whose` the words for the model in its refusals; `facts` go with the content.
    """

    def __init__(
        self, module: str, content: bytes, limits: Limits, whose: str, facts: Mapping[str, Any] | None = None
    ) -> None:
        self._module, self._content, self._limits = module, content, limits
        self._whose, self._facts = whose, facts or {}
        self._process: Process | None = None
        self._lock = threading.Lock()
        self._undo: weakref.finalize[[Process], ChildProcess] | None = None

    @property
    def pid(self) -> int | None:
        """Of the running process, if there is one."""
        return self._process.pid if self._process else None

    def start(self) -> dict[str, Any]:
        """Loads the model; its facts. Raises UnreadableModel, also where the process ends or takes too long with it."""
        with self._lock:
            self._stop()
            try:
                return self._start()
            except PredictorFailed as error:
                raise UnreadableModel(f"{self._whose}: {error}") from error

    def call(self, header: Mapping[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        """Raises PredictorFailed when the process ends or takes too long; InvalidRequest and its kin from within."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._stop()
                self._start()
            return self._exchange(header, payload, self._limits.call_seconds)

    def close(self) -> None:
        with self._lock:
            self._stop()

    def _start(self) -> dict[str, Any]:
        limits = self._limits
        seconds = (int(max(limits.load_seconds, limits.call_seconds)) + 1) * limits.cores
        root = Path(__file__).parent.parent.parent
        self._process = subprocess.Popen(  # noqa: S603 - our own script
            [sys.executable, "-I", SANDBOX, str(root), self._module, str(limits.memory_bytes), str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT,
            cwd="/",
            start_new_session=True,
        )
        self._undo = weakref.finalize(self, _end, self._process)
        facts, _ = self._exchange({**self._facts, "ask": "load"}, self._content, limits.load_seconds)
        return facts

    def _exchange(self, header: Mapping[str, Any], payload: bytes, seconds: float) -> tuple[dict[str, Any], bytes]:
        assert self._process is not None  # noqa: S101 - started by the callers
        text = json.dumps(header).encode()
        deadline = time.monotonic() + seconds
        try:
            _send(self._process, FRAME.pack(len(text), len(payload)) + text + payload, deadline)
            found, numbers = _receive(self._process, deadline, self._limits.answer_bytes)
        except (_Ended, BrokenPipeError, ValueError, RecursionError) as error:
            raise self._why(error) from error
        if "error" in found:
            kind = found["error"]
            if header["ask"] == "load":
                self._stop()
                kind = "unreadable" if kind == "invalid" else kind
            raise REFUSALS.get(kind, MissingCapability)(f"{self._whose}: {found.get('message')}")
        return found, numbers

    def _why(self, error: Exception) -> PredictorFailed:
        """What became of the process; it is gone afterwards."""
        if isinstance(error, _TooLate):
            self._stop()
            return OutOfTime("the model's process did not answer in time and was ended")
        code = self._stop(patience=10.0)  # its end is under way
        if isinstance(error, ValueError | RecursionError) or code is None:
            return PredictorFailed("the model's process answered nonsense and was ended")
        name = signal.Signals(-code).name if code < 0 else f"status {code}"
        reason = f"the model's process ended ({name}); the next call starts it again"
        if -code == signal.SIGXCPU:
            return OutOfTime(reason)
        return PredictorFailed(reason) if -code in OTHERS else ProcessCrashed(reason, name)

    def _stop(self, patience: float = 0.0) -> int | None:
        """The status with which it ended by itself; None when it had to be killed or was not there."""
        process, self._process = self._process, None
        if self._undo:
            self._undo.detach()
        if process is None:
            return None
        try:
            code: int | None = process.wait(patience) if patience else process.poll()
        except subprocess.TimeoutExpired:
            code = None
        _end(process)
        return code


def _end(process: Process) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()


class _Ended(Exception):
    """The pipe is closed."""


class _TooLate(_Ended):
    """The deadline has passed."""


def _send(process: Process, data: bytes, deadline: float) -> None:
    assert process.stdin is not None  # noqa: S101 - a pipe
    number, rest = process.stdin.fileno(), memoryview(data)
    os.set_blocking(number, False)
    while rest:
        _wait(number, select.POLLOUT, deadline)
        rest = rest[os.write(number, rest[:PIECE]) :]


def _receive(process: Process, deadline: float, most: int) -> tuple[dict[str, Any], bytes]:
    assert process.stdout is not None  # noqa: S101 - a pipe
    number = process.stdout.fileno()
    header, payload = FRAME.unpack(_read(number, FRAME.size, deadline))
    if header > MAX_HEADER or payload > most:
        raise ValueError("an answer too long")
    found = json.loads(_read(number, header, deadline))
    if not isinstance(found, dict):
        raise ValueError("an answer that is no object")
    return found, _read(number, payload, deadline)


def _read(number: int, count: int, deadline: float) -> bytes:
    pieces = bytearray()
    while len(pieces) < count:
        _wait(number, select.POLLIN, deadline)
        piece = os.read(number, min(count - len(pieces), 2**20))
        if not piece:
            raise _Ended
        pieces += piece
    return bytes(pieces)


def _wait(number: int, event: int, deadline: float) -> None:
    watch = select.poll()
    watch.register(number, event)
    if not watch.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise _TooLate
