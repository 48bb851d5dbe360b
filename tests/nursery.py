"""A process that has imported everything once, and from which `whence` commands are forked.

An import of PyTorch and its friends takes ten seconds of a core, a fork some milliseconds, and the tests start a
hundred servers and commands. It has one thread, so that nothing is held by a thread that the fork leaves behind. Over a
socket it is sent one JSON object per command (`arguments`, `environment`) with three file descriptors: of the command's
output, of its errors, and of a pipe that is told its exit status. It answers with the process id, and ends when the
socket is closed.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, NoReturn

ROOT = Path(__file__).parent.parent
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Else the import of numpy alone starts more."""
EVERYTHING = (
    "app.main",
    "app.registry",
    "app.serving",
    "app.demo",
    "peft",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.masking_utils",
)
LONGEST = 2**20


class Process:
    """A forked command, with as much of `subprocess.Popen` as is needed. Its nursery buries it."""

    def __init__(self, pid: int, status: int, stdout: IO[str] | None = None) -> None:
        self.pid = pid
        self.stdout = stdout
        self.returncode: int | None = None
        self._status = status
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """None as long as it lives, then its exit status: that of a signal is negative."""
        with self._lock:
            if self.returncode is None and select.select([self._status], [], [], 0)[0]:
                self.returncode = int(os.read(self._status, 16))
                os.close(self._status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status; raises `subprocess.TimeoutExpired`."""
        end = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            time.sleep(0.005)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Nursery:
    """What starts them."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.nursery", str(theirs.fileno())],
                env=os.environ | ONE_THREAD,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self._lock = threading.Lock()

    def start(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        stdout: int,
        stderr: int,
        read: IO[str] | None = None,
    ) -> Process:
        """`whence` with these arguments and exactly this environment, writing to these open files; `read` is the
        other end of its output.
        """
        status, theirs = os.pipe()
        message = json.dumps({"arguments": list(arguments), "environment": dict(environment)}).encode()
        try:
            with self._lock:
                socket.send_fds(self._socket, [message], [stdout, stderr, theirs])
                answer = self._socket.recv(64)
        finally:
            os.close(theirs)
        assert answer, "the nursery has ended: its errors are above"
        return Process(int(answer), status, read)

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


@functools.cache
def nursery() -> Nursery:
    """The one of this process, begun when it is needed first."""
    made = Nursery()
    atexit.register(made.close)
    return made


# -- inside ------------------------------------------------------------------------------------------------------------


def serve(asked: socket.socket) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in EVERYTHING:
            importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1, "a thread would be lost in a fork"  # noqa: PTH208
    gc.freeze()
    living: dict[int, int] = {}
    signal.signal(signal.SIGCHLD, lambda *_: bury(living))
    while True:
        message, files, _, _ = socket.recv_fds(asked, LONGEST, 3)
        if not message:
            return
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        pid = os.fork()
        if pid == 0:
            become(json.loads(message), files)
        living[pid] = files.pop()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        for file in files:
            os.close(file)
        asked.send(str(pid).encode())


def bury(living: dict[int, int]) -> None:
    """Tells how they have ended."""
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            told = living.pop(pid)
            with suppress(BrokenPipeError):
                os.write(told, str(os.waitstatus_to_exitcode(status)).encode())
            os.close(told)


def become(asked: Mapping[str, object], files: list[int]) -> NoReturn:
    """The command that is asked for, to its end."""
    from app import cli

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    for old, new in zip(files, (1, 2), strict=False):
        os.dup2(old, new)
    os.closerange(3, 1024)
    arguments, environment = asked["arguments"], asked["environment"]
    assert isinstance(arguments, list) and isinstance(environment, dict)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # it is looked up once
    sys.argv = ["whence", *arguments]
    sys.modules["__main__"].__package__ = None  # else its name in help texts is that of this module
    status = 1
    try:
        cli.main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter would
        sys.excepthook(*sys.exc_info())
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(socket.socket(fileno=int(sys.argv[1])))
