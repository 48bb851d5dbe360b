"""The faults. Each is struck once in a round, at a random moment, and is over when its function returns; what it has
ended is started again by `World.mend`.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg

from tests.faults.load import Books
from tests.faults.world import World

OURS = "FROM pg_stat_activity WHERE application_name LIKE 'whence%'"


@dataclass
class Stroke:
    """Where the fault happens, and what decides what is left open."""

    world: World
    books: Books
    dice: random.Random

    def kill(self, pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def kill_process(self, name: str) -> None:
        process = self.world.processes[name]
        process.kill()
        process.wait()

    def worker(self) -> str:
        return self.dice.choice(self.world.names[1:])

    def freeze(self, pids: list[int], seconds: float) -> None:
        """Stops processes as they stand, and lets them go on."""
        try:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            time.sleep(seconds)
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def backends(self) -> list[int]:
        """The processes of Postgres that serve the program."""
        with suppress(psycopg.Error):
            return [pid for (pid,) in self.world.rows(f"SELECT pid {OURS}")]
        return []


def kill_server(stroke: Stroke) -> None:
    stroke.kill_process("server")


def kill_worker(stroke: Stroke) -> None:
    stroke.kill_process(stroke.worker())


def kill_all(stroke: Stroke) -> None:
    """The server and its workers at once: the database has no user left and is stopped."""
    for process in stroke.world.processes.values():
        process.kill()
    for process in stroke.world.processes.values():
        process.wait()


def kill_postmaster(stroke: Stroke) -> None:
    stroke.kill(stroke.world.postmaster)


def kill_keeper(stroke: Stroke) -> None:
    stroke.kill(parent(stroke.world.postmaster))


def kill_backend(stroke: Stroke) -> None:
    """After which Postgres throws everybody out and recovers."""
    for pid in stroke.dice.sample(found := stroke.backends(), min(1, len(found))):
        stroke.kill(pid)


def kill_child(stroke: Stroke) -> None:
    """The processes that hold a scikit-learn model for the server and its workers."""
    for process in stroke.world.processes.values():
        for child in children(process.pid):
            stroke.kill(child)


def freeze_server(stroke: Stroke) -> None:
    stroke.freeze([stroke.world.processes["server"].pid], stroke.dice.uniform(1, 4))


def freeze_worker(stroke: Stroke) -> None:
    """Sometimes for so long that others take it for dead, and it wakes up among them."""
    stroke.freeze([stroke.world.processes[stroke.worker()].pid], stroke.dice.choice([2.0, 11.0]))


def freeze_postgres(stroke: Stroke) -> None:
    stroke.freeze([stroke.world.postmaster, *stroke.backends()], stroke.dice.uniform(1, 6))


def drop_connections(stroke: Stroke) -> None:
    """All connections of the program to its database, several times."""
    for _ in range(4):
        with suppress(psycopg.Error):
            stroke.world.rows(f"SELECT pg_terminate_backend(pid) {OURS}")
        time.sleep(stroke.dice.uniform(0.05, 0.5))


def fill_disk(stroke: Stroke) -> None:
    """To the last byte, for some seconds; what others give back meanwhile is taken, too."""
    filler = stroke.world.data_dir / "filler"
    until = time.monotonic() + stroke.dice.uniform(3, 6)
    file = os.open(filler, os.O_WRONLY | os.O_CREAT)
    try:
        disk = os.statvfs(filler)
        with suppress(OSError):
            os.posix_fallocate(file, 0, disk.f_bavail * disk.f_frsize)
        os.lseek(file, 0, os.SEEK_END)
        while time.monotonic() < until:
            with suppress(OSError):
                while time.monotonic() < until:
                    os.write(file, bytes(4096))
            time.sleep(0.01)
    finally:
        os.close(file)
        filler.unlink()


def take_memory(stroke: Stroke) -> None:
    """The server may have hardly more of the address space than it has."""
    pid = stroke.world.processes["server"].pid
    stroke.books.lenient = True
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    more = stroke.dice.choice([0, 2**20, 2**24])
    try:
        resource.prlimit(pid, resource.RLIMIT_AS, (size_of(pid) + more, before[1]))
        time.sleep(stroke.dice.uniform(1, 3))
    finally:
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_AS, before)


STROKES: list[Callable[[Stroke], None]] = [
    kill_server,
    kill_worker,
    kill_all,
    kill_postmaster,
    kill_keeper,
    kill_backend,
    kill_child,
    freeze_server,
    freeze_worker,
    freeze_postgres,
    drop_connections,
    fill_disk,
    take_memory,
]


def possible(world: World) -> list[Callable[[Stroke], None]]:
    """The disk of the machine is not ours to fill."""
    return [stroke for stroke in STROKES if stroke is not fill_disk or world.disk]


# -- processes ---------------------------------------------------------------------------------------------------------


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children(pid: int) -> list[int]:
    """Of all its threads."""
    with suppress(OSError):
        lists = [(task / "children").read_text().split() for task in Path(f"/proc/{pid}/task").iterdir()]
        return [int(child) for each in lists for child in each]
    return []


def family(pid: int) -> Iterator[int]:
    """A process and all its descendants."""
    yield pid
    for child in children(pid):
        yield from family(child)


def size_of(pid: int) -> int:
    """Bytes of its address space."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
