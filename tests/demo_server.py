"""The demo as users start it, for all tests that look at it: its start takes half a minute."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.clients.server import environment

KEY = "an-admin-key-for-the-demo"
INFERENCES = 60
"""Of each predictor: to explain them all would take a minute of a core."""
START_SECONDS = 480
STOP_SECONDS = 120


@dataclass(frozen=True)
class Demo:
    """Where it is, and the file of what it has printed."""

    url: str
    log: Path


@contextmanager
def running_demo() -> Iterator[Demo]:
    folder = Path(tempfile.mkdtemp(prefix="whence-test-"))
    folder.chmod(0o711)  # the database's user passes through
    log = folder / "log"
    command = [sys.executable, "-m", "app.cli", "demo", "--port", "0", "--inferences", str(INFERENCES)]
    variables = environment(folder / "data", WHENCE_API_KEY=KEY)
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=variables, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        yield Demo(address(process, log), log)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        finally:
            process.kill()
            shutil.rmtree(folder)


def address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        _, ready, rest = log.read_text().partition("ready at ")
        if ready and " " in rest:
            return rest.split()[0]
        time.sleep(0.1)
    raise AssertionError(f"the demo did not start:\n{log.read_text()}")
