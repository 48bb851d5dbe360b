"""The process between Whence and its embedded Postgres: runs the server for as long as somebody uses it.

A script of its own, standard library only, started by `storage.embedded`:

    python -I -S keeper.py LOCK_FD USERS_FILE UID GID LOG POSTGRES ARGUMENT...

It holds two file locks, which the kernel frees however a process ends:
- LOCK_FD, an exclusive lock inherited from the starter, says that a keeper lives;
- USERS_FILE is locked shared by every process that uses the server. When the keeper can lock it exclusively, the last
  user has gone (finished, crashed or killed), and it stops the server and ends.

The server itself dies with the keeper: on Linux the kernel sends it the fast-shutdown signal. Elsewhere a keeper that
is killed leaves its server running; the next start uses that one. A server that ends by itself is started again.
UID and GID are -1 when the server runs as the user who started it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

POLL_S = 0.1
RETRY_S = 0.25
GIVE_UP_S = 10.0  # long enough for a former server to finish its shutdown
STEADY_S = 10.0  # a server that lived this long had started well
PR_SET_PDEATHSIG = 1

Server = subprocess.Popen[bytes]


def main(arguments: list[str]) -> None:
    """Leaves the starter's process tree, then keeps the server until nobody uses it."""
    _lock_fd, users, uid, gid, log, *command = arguments
    if os.fork():
        os._exit(0)  # the starter waits for this process only; init adopts and reaps the keeper
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _stay)
    os.umask(0o077)
    users_fd = os.open(users, os.O_RDWR)
    data = Path(command[command.index("-D") + 1])
    keep(lambda: start(command, int(uid), int(gid), log), users_fd, data / "postmaster.pid")


def _stay(_number: int, _frame: object) -> None:
    """Signals to a whole service or terminal reach the keeper too, but its users decide when they are done.

    A function, not SIG_IGN: ignored signals would stay ignored in the server.
    """


def keep(start_server: Callable[[], Server], users_fd: int, former: Path) -> None:
    """Runs the server until the last user has gone, or until it cannot be started.

    A former server that is still shutting down, or processes that a killed one left for a moment, are waited for: they
    show by the lock file `former`.
    """
    last_steady = time.monotonic()
    while True:
        began, in_the_way = time.monotonic(), former.exists()  # it may go while the server finds it and gives up
        server = start_server()
        if _outlives_users(server, users_fd):
            stop(server)
            return
        if time.monotonic() - began > STEADY_S:
            last_steady = time.monotonic()
        if not (in_the_way or former.exists()) or time.monotonic() - last_steady > GIVE_UP_S:
            return
        time.sleep(RETRY_S)


def _outlives_users(server: Server, users_fd: int) -> bool:
    """Waits for whichever ends first; True when the server is what is left."""
    while server.poll() is None:
        if _unused(users_fd):
            return True
        time.sleep(POLL_S)
    return False


def _unused(users_fd: int) -> bool:
    try:
        fcntl.flock(users_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def start(command: list[str], uid: int, gid: int, log: str) -> Server:
    """The server in a session of its own, bound to this process, with nothing of the caller's environment."""
    log_fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        return subprocess.Popen(  # noqa: S603 - the program's own binary
            command,
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            cwd="/",
            env={},
            start_new_session=True,
            user=None if uid < 0 else uid,
            group=None if gid < 0 else gid,
            extra_groups=None if uid < 0 else [],
            preexec_fn=_bond_to(os.getpid()),  # noqa: PLW1509 - the keeper has one thread; runs after the change of user
        )
    finally:
        os.close(log_fd)


def _bond_to(keeper: int) -> Callable[[], None] | None:
    """What the server's process does before it becomes the server: ask the kernel for a signal when `keeper` ends."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)

    def bond() -> None:
        # A keeper that ended before the request would never trigger it.
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGINT) or os.getppid() != keeper:
            os._exit(1)

    return bond


def stop(server: Server) -> None:
    """Fast shutdown (clients are disconnected, a checkpoint is written), harder when that takes minutes."""
    for number, patience_s in ((signal.SIGINT, 120.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, None)):
        server.send_signal(number)
        try:
            server.wait(patience_s)
        except subprocess.TimeoutExpired:
            continue
        return


if __name__ == "__main__":
    main(sys.argv[1:])
