"""One demo server for all tests of a run that need it, whichever process they run in: its start takes half a minute."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.clients.server import environment

KEY = "an-admin-key-for-the-demo"
INFERENCES = 60
"""Of each predictor: to explain them all would take a minute of a core."""
START_SECONDS = 480
STOP_SECONDS = 30


@contextmanager
def locked(folder: Path) -> Iterator[dict[str, Any]]:
    """What the processes of this run know of the server; written back at the end."""
    with (folder / "demo.lock").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read()
        known: dict[str, Any] = json.loads(text) if text else {"users": 0}
        yield known
        file.truncate(0)
        file.write(json.dumps(known))


@dataclass(frozen=True)
class Demo:
    """Where it is, and the file of what it has printed."""

    url: str
    log: Path


@contextmanager
def shared_demo(folder: Path) -> Iterator[Demo]:
    """The server that all who share this folder use; the last one ends it."""
    with locked(folder) as known:
        if not known["users"]:
            known.update(started())
        known["users"] += 1
    try:
        yield Demo(known["url"], Path(known["folder"]) / "log")
    finally:
        with locked(folder) as known:
            known["users"] -= 1
            if not known["users"]:
                stop(known["pid"])
                shutil.rmtree(known["folder"])


def started() -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="whence-test-"))
    folder.chmod(0o711)  # the database's user passes through
    command = [sys.executable, "-m", "app.cli", "demo", "--port", "0", "--inferences", str(INFERENCES)]
    log, actions = folder / "log", list[Any]()
    log.touch()
    for stream, path, flags in ((0, os.devnull, os.O_RDONLY), (1, str(log), os.O_WRONLY), (2, str(log), os.O_WRONLY)):
        actions.append((os.POSIX_SPAWN_OPEN, stream, path, flags | os.O_APPEND, 0o600))
    variables = environment(folder / "data", WHENCE_API_KEY=KEY)
    # Not by subprocess: another process of the run may end it.
    pid = os.posix_spawn(sys.executable, command, variables, file_actions=actions)
    return {"pid": pid, "url": address(pid, log), "folder": str(folder)}


def address(pid: int, log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and os.waitpid(pid, os.WNOHANG) == (0, 0):
        _, ready, rest = log.read_text().partition("ready at ")
        if ready and " " in rest:
            return rest.split()[0]
        time.sleep(0.1)
    stop(pid)
    raise AssertionError(f"the demo did not start:\n{log.read_text()}")


def stop(pid: int) -> None:
    """Ends a server, which another process may have started: that cannot be waited for, but for its end be looked."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while runs(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)


def runs(pid: int) -> bool:
    """Whether it has not ended; one that has, and has not been waited for by its parent yet, is a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
