"""A process that has imported everything once, and from which servers and workers are forked: it saves the seconds that
imports take. It has one thread, so that nothing is held by a thread that the fork leaves behind.

Reads one JSON object per line (`arguments`, `log`), answers with a process id. Its environment is that of all.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Else the import of numpy alone starts more."""


@dataclass(frozen=True)
class Process:
    """A forked one. Its nursery buries it."""

    pid: int

    def poll(self) -> int | None:
        """None as long as it lives."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return 0
        return 0 if state == "Z" else None

    def send_signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, seconds: float = 60.0) -> bool:
        """Whether it has ended in time."""
        deadline = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.poll() is not None


class Nursery:
    def __init__(self, environment: dict[str, str], log: Path) -> None:
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.nursery"],
                env=environment | ONE_THREAD,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
        self.lock = threading.Lock()
        assert self.answer() == "ready"

    def answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def start(self, arguments: list[str], log: Path) -> Process:
        assert self.process.stdin is not None
        with self.lock:
            self.process.stdin.write(json.dumps({"arguments": arguments, "log": str(log)}) + "\n")
            self.process.stdin.flush()
            return Process(self.answer())

    def close(self) -> None:
        self.process.communicate()


def main() -> None:
    for name in ("app.main", "app.registry", "app.serving"):
        importlib.import_module(name)

    assert len(os.listdir("/proc/self/task")) == 1, "a thread would be lost in a fork"  # noqa: PTH208
    gc.freeze()
    signal.signal(signal.SIGCHLD, bury)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        given = json.loads(line)
        pid = os.fork()
        if pid == 0:
            become(given["arguments"], given["log"])
        print(json.dumps(pid), flush=True)


def bury(*_: object) -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def become(arguments: list[str], log: str) -> None:
    """The command with these arguments, to its end."""
    from app import cli

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    nothing, output = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for old, new in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(old, new)
    os.closerange(3, 1024)
    sys.argv = ["whence", *arguments]
    status = 1
    try:
        cli.main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
