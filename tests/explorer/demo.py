"""One demo server for all browser tests of a run, whichever process they run in: its start takes half a minute."""

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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.clients.server import environment

KEY = "an-admin-key-for-the-explorer"
START_SECONDS = 480


@contextmanager
def locked(folder: Path) -> Iterator[dict[str, Any]]:
    """What the processes of this run know of the server; written back at the end."""
    with (folder / "explorer.lock").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read()
        known: dict[str, Any] = json.loads(text) if text else {"users": 0}
        yield known
        file.truncate(0)
        file.write(json.dumps(known))


@contextmanager
def shared_demo(folder: Path) -> Iterator[str]:
    """The address of the server that all who share this folder use; the last one ends it."""
    with locked(folder) as known:
        if not known["users"]:
            known.update(started())
        known["users"] += 1
    try:
        yield known["url"]
    finally:
        with locked(folder) as known:
            known["users"] -= 1
            if not known["users"]:
                stop(known["pid"])
                shutil.rmtree(known["folder"])


def started() -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="whence-test-"))
    folder.chmod(0o711)  # the database's user passes through
    command = [sys.executable, "-m", "app.cli", "demo", "--port", "0"]
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
    """A server that another process has started is nobody's child once that has ended, and cannot be waited for."""
    try:
        os.kill(pid, signal.SIGTERM)
        for _ in range(600):
            os.kill(pid, 0)
            reap(pid)
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return
