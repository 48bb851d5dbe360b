"""The Postgres that comes with Whence: started when the first process needs it, stopped when the last one has gone.

    with embedded_postgres(Path(".whence")) as url: ...

Any number of processes on one machine (a server, workers, commands) may use the same data directory at once and come
and go in any order. Each holds a shared file lock while it uses the server; a small separate process (`keeper.py`)
runs the server and stops it once nobody holds that lock any more. So the server goes away even when its users are
killed with SIGKILL, no user can take it away from another, and Ctrl-C in a terminal reaches neither it nor the keeper.

In the data directory: `postgres/` (0700), `postgres.log`, the passwords (0600) and two lock files. The server listens
on a unix socket only and asks everybody for a password. The folder must lie on a file system with working `flock`.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from sqlalchemy import URL

from storage import cluster as clusters
from storage import keeper
from storage.cluster import Cluster
from storage.errors import EmbeddedServerFailed

POLL_S = 0.03
LOG_BYTES = 16 << 20


@contextmanager
def embedded_postgres(data_dir: Path, *, patience_s: float = 120.0) -> Iterator[str]:
    """The SQLAlchemy URL of a running server with the data in `data_dir`, for a plain role that owns its database.

    Raises EmbeddedServerFailed when it cannot run here or is not ready within `patience_s`, DatabaseRefused when the
    data are of another Postgres major; both say what to do.
    """
    deadline = time.monotonic() + patience_s
    with _os_errors(data_dir):
        data_dir = made_data_dir(data_dir)
        users = _open(data_dir / "postgres.users.lock")
    try:
        with _os_errors(data_dir):
            _join(users, deadline)
            url = _attach(data_dir, deadline)
        yield url
    finally:
        _leave(users, data_dir)
        os.close(users)


def revive(data_dir: Path, *, patience_s: float = 30.0) -> None:
    """Starts the server again if its keeper was killed; for a process inside `embedded_postgres` of that folder."""
    with _os_errors(data_dir):
        _attach(made_data_dir(data_dir), time.monotonic() + patience_s)


@contextmanager
def _os_errors(data_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EmbeddedServerFailed(
            f"the embedded Postgres cannot be started in {data_dir} ({error}): use another data directory, or "
            f"{clusters.WAY_OUT}"
        ) from error


def made_data_dir(data_dir: Path) -> Path:
    """The absolute data directory; a new one is private, but root's can be passed through by the server's user."""
    if not data_dir.is_dir():
        data_dir.mkdir(parents=True, exist_ok=True)
        data_dir.chmod(0o711 if os.geteuid() == 0 else 0o700)
    return data_dir.resolve()


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def _locked(descriptor: int, kind: int) -> bool:
    """Tries to take a lock, or to turn the one that is held into another kind (a failure loses it)."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _join(users: int, deadline: float) -> None:
    """Becomes one of the users; waits while a keeper is stopping the server."""
    while not _locked(users, fcntl.LOCK_SH):
        _pause(deadline, "a former server is still shutting down")


def _pause(deadline: float, reason: str) -> None:
    if time.monotonic() > deadline:
        raise EmbeddedServerFailed(f"the embedded Postgres was not ready in time: {reason}")
    time.sleep(POLL_S)


def _attach(data_dir: Path, deadline: float) -> str:
    """Waits for the server of the living keeper; where none lives, starts one (a lock decides who)."""
    started = False
    while True:
        lock = _open(data_dir / "postgres.keeper.lock")
        try:
            if _locked(lock, fcntl.LOCK_EX):
                if started:
                    raise EmbeddedServerFailed(f"the embedded Postgres did not start: {_last_words(data_dir)}")
                _start(data_dir, lock)
                started = True
        finally:
            os.close(lock)  # the keeper, where one was started, holds the same lock through its own descriptor
        problem = "its data are still being made"
        if (data_dir / "postgres").exists():
            cluster = clusters.locate(data_dir)
            problem = _connection_problem(cluster)
            if not problem:
                return url_of(cluster, "whence", cluster.passwords.whence)
        _pause(deadline, problem)


def _start(data_dir: Path, lock: int) -> None:
    cluster = clusters.locate(data_dir)
    clusters.check_reachable(cluster)
    folder = clusters.binaries(cluster.account)
    if not (cluster.data / "PG_VERSION").exists():
        clusters.create(cluster, folder)
    clusters.check_major(cluster)
    _spawn(cluster, folder, data_dir, lock)


def _spawn(cluster: Cluster, folder: Path, data_dir: Path, lock: int) -> None:
    """Starts the keeper, which inherits the lock; returns when it stands on its own."""
    log = data_dir / "postgres.log"
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.replace(data_dir / "postgres.log.1")
    account = cluster.account
    user = [str(account.uid), str(account.gid)] if account.switched else ["-1", "-1"]
    settings = clusters.options({"unix_socket_directories": str(cluster.socket_dir)})
    server = [str(folder / "postgres"), "-D", str(cluster.data), *settings]
    script = [str(Path(keeper.__file__).resolve()), str(lock), str(data_dir / "postgres.users.lock"), *user, str(log)]
    subprocess.run(  # noqa: S603 - this very program
        [sys.executable, "-I", "-S", *script, *server],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
        cwd="/",
        pass_fds=(lock,),
        start_new_session=True,
    )


def _connection_problem(cluster: Cluster) -> str:
    """Why the server cannot be used; empty when it answers."""
    try:
        psycopg.connect(
            host=str(cluster.socket_dir),
            port=5432,
            dbname="whence",
            user="whence",
            password=cluster.passwords.whence,
            connect_timeout=5,
        ).close()
    except psycopg.OperationalError as error:
        if "password authentication failed" in str(error):
            raise EmbeddedServerFailed(
                "the password file in the data directory is not the one that its data were made with: put back "
                "postgres.password, or use another data directory"
            ) from None
        return str(error)
    return ""


def url_of(cluster: Cluster, role: str, password: str) -> str:
    """The SQLAlchemy URL of the database for one of its roles."""
    url = URL.create(
        "postgresql+psycopg",
        username=role,
        password=password,
        database="whence",
        query={"host": str(cluster.socket_dir), "port": "5432"},
    )
    return url.render_as_string(hide_password=False)


def _last_words(data_dir: Path) -> str:
    log = data_dir / "postgres.log"
    if not log.exists():
        return "it left no log"
    lines = log.read_text(errors="replace").strip().splitlines()
    return f"{' | '.join(lines[-3:])} (more in {log})"


def _leave(users: int, data_dir: Path) -> None:
    """Stops using the server; the last user waits until it is down, so that nothing is killed with a container."""
    deadline = time.monotonic() + 30.0
    lock = _open(data_dir / "postgres.keeper.lock")
    try:
        while time.monotonic() < deadline and not _used_by_others(users) and not _locked(lock, fcntl.LOCK_SH):
            time.sleep(POLL_S)
    finally:
        os.close(lock)


def _used_by_others(users: int) -> bool:
    """Whether another process holds the shared lock; gives up one's own."""
    # Where neither lock can be had, the keeper has it: it is stopping the server.
    used = not _locked(users, fcntl.LOCK_EX) and _locked(users, fcntl.LOCK_SH)
    fcntl.flock(users, fcntl.LOCK_UN)
    return used
