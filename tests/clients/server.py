"""A real server in a process of its own, as users start it, and the `whence` command beside it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TypeAlias

import httpx

from tests.nursery import Process, nursery

START_SECONDS = 240
COMMAND_SECONDS = 180

Start: TypeAlias = Callable[[Sequence[str], Mapping[str, str]], "Process | subprocess.Popen[str]"]


@dataclass
class Server:
    """A running server; `lines` is everything it has printed, logged requests included."""

    process: Process | subprocess.Popen[str]
    data_dir: Path
    lines: list[str] = field(default_factory=list)
    url: str = ""
    ready: threading.Event = field(default_factory=threading.Event)

    def read(self) -> None:
        """Collects what the server prints until it ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            found = re.search(r"ready at (http://\S+)", line)
            if found:
                self.url = found[1]
                self.ready.set()
        self.ready.set()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def statuses(self, route: str) -> list[int]:
        """The statuses of all requests to that route so far, by the server's own access log."""
        seen = httpx.get(f"{self.url}/version", timeout=60).headers["x-request-id"]  # logged after everything before it
        while seen not in self.output:
            assert self.process.poll() is None, self.output
            threading.Event().wait(0.01)
        logged = [json.loads(line[line.index("{") :]) for line in self.lines if '"route":' in line]
        return [entry["status"] for entry in logged if entry["route"] == route]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Asks the server to end; its exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout=180)


def forked(arguments: Sequence[str], environment: Mapping[str, str]) -> Process:
    """A `whence` whose output is read here, without the seconds that its imports take."""
    read, theirs = os.pipe()
    try:
        return nursery().start(arguments, environment, theirs, theirs, os.fdopen(read))
    finally:
        os.close(theirs)


def spawned(arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """The same as users start it: with as many threads as the environment says."""
    command = [sys.executable, "-m", "app.cli", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def environment(data_dir: Path, **settings: str) -> dict[str, str]:
    """This process's environment with only these settings of Whence."""
    rest = {name: value for name, value in os.environ.items() if not name.startswith("WHENCE_")}
    return rest | {"WHENCE_DATA_DIR": str(data_dir)} | settings


def whence(data_dir: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Runs one command to its end."""
    with TemporaryFile("w+") as out, TemporaryFile("w+") as errors:
        process = nursery().start(arguments, environment(data_dir, **settings), out.fileno(), errors.fileno())
        try:
            status = process.wait(timeout=COMMAND_SECONDS)
        finally:
            process.kill()
        for file in (out, errors):
            file.seek(0)
        return subprocess.CompletedProcess(["whence", *arguments], status, out.read(), errors.read())


def objects(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """What a command with --json printed."""
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@contextmanager
def running(
    data_dir: Path,
    command: str = "serve",
    returncode: int = 0,
    options: Sequence[str] = (),
    start: Start = forked,
    **settings: str,
) -> Iterator[Server]:
    """A server on a free port, ready to answer; stopped at the end, with that exit status or else the test fails."""
    process = start([command, "--port", "0", *options], environment(data_dir, **settings))
    server = Server(process, data_dir)
    reader = threading.Thread(target=server.read)
    reader.start()
    try:
        assert server.ready.wait(START_SECONDS) and server.url, server.output
        yield server
    finally:
        if process.poll() is None:
            server.stop()
        reader.join()
        assert process.stdout is not None
        process.stdout.close()
    assert process.returncode == returncode, server.output
