"""A real server in a process of its own, as users start it, and the `whence` command beside it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

START_SECONDS = 240


@dataclass
class Server:
    """A running server; `lines` is everything it has printed, logged requests included."""

    process: subprocess.Popen[str]
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
        seen = httpx.get(f"{self.url}/version").headers["x-request-id"]  # logged after everything before it
        while seen not in self.output:
            assert self.process.poll() is None, self.output
            threading.Event().wait(0.01)
        logged = [json.loads(line[line.index("{") :]) for line in self.lines if '"route":' in line]
        return [entry["status"] for entry in logged if entry["route"] == route]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Asks the server to end; its exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


def environment(data_dir: Path, **settings: str) -> dict[str, str]:
    """This process's environment with only these settings of Whence."""
    rest = {name: value for name, value in os.environ.items() if not name.startswith("WHENCE_")}
    return rest | {"WHENCE_DATA_DIR": str(data_dir)} | settings


def whence(data_dir: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Runs one command to its end."""
    command = [sys.executable, "-m", "app.cli", *arguments]
    return subprocess.run(
        command, env=environment(data_dir, **settings), capture_output=True, text=True, timeout=180, check=False
    )


def objects(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """What a command with --json printed."""
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@contextmanager
def running(
    data_dir: Path, command: str = "serve", returncode: int = 0, options: Sequence[str] = (), **settings: str
) -> Iterator[Server]:
    """A server on a free port, ready to answer; stopped at the end, with that exit status or else the test fails."""
    arguments = [sys.executable, "-m", "app.cli", command, "--port", "0", *options]
    with subprocess.Popen(
        arguments, env=environment(data_dir, **settings), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
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
    assert process.returncode == returncode, server.output
