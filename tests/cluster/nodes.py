"""Two nodes of a Ray cluster on this machine: raylets with their own processes, all of them on loopback addresses."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RAY = (sys.executable, "-c", "from ray.scripts.scripts import main; main()")
HEAD, OTHER = "127.0.0.2", "127.0.0.3"  # Ray takes 127.0.0.1 for the address of the network
START_SECONDS = 180


@dataclass
class Cluster:
    """`token` is a file, `settings` are those of Whence on its nodes; `log` is what starting them has printed."""

    folder: Path
    port: int
    token: Path
    guarded: bool = True
    head: str = HEAD
    settings: Mapping[str, str] = field(default_factory=dict)
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"{self.head}:{self.port}"

    @property
    def sessions(self) -> Path:
        return self.folder / "r"

    @property
    def environment(self) -> dict[str, str]:
        guard = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)} if self.guarded else {}
        own = {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "disabled",
            # Workers that nobody has asked for yet would each take a second of a core.
            "RAY_prestart_worker_first_driver": "0",
            "RAY_enable_worker_prestart": "0",
        }
        return os.environ | own | guard | self.settings

    def start(self, ip: str, *options: str) -> None:
        has = ("--num-cpus=3", "--num-gpus=0", "--include-log-monitor=false", f"--object-store-memory={100 * 2**20}")
        command = [*RAY, "start", "--block", f"--node-ip-address={ip}", *has, *options]
        with (self.folder / f"{ip}.log").open("wb") as log:
            process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=subprocess.STDOUT)
        self.started.append(process)
        end = time.monotonic() + START_SECONDS
        while self.raylet(ip) is None or not self.answers():
            assert process.poll() is None and time.monotonic() < end, self.log(ip)
            time.sleep(0.05)

    def join(self, ip: str) -> None:
        """Starts a node."""
        self.start(ip, f"--address={self.address}")

    def log(self, ip: str) -> str:
        return (self.folder / f"{ip}.log").read_text(errors="replace")

    def answers(self) -> bool:
        with suppress(OSError), socket.create_connection((self.head, self.port), timeout=1):
            return True
        return False

    def raylet(self, ip: str) -> int | None:
        """Its process id."""
        for pid, words in commands():
            if words[0].endswith("/raylet") and f"--node_ip_address={ip}" in words and str(self.sessions) in str(words):
                return pid
        return None

    def kill(self, ip: str) -> list[int]:
        """Ends a node as a power cut does: no process of it gets to do anything. Returns their ids."""
        raylet = self.raylet(ip)
        assert raylet is not None
        gone = [raylet, *below(raylet)]
        for pid in gone:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return gone

    def processes(self) -> list[int]:
        """All of both nodes."""
        own = [pid for pid, words in commands() if str(self.sessions) in " ".join(words)]
        return sorted({*own, *(child for pid in own for child in below(pid))})

    def stop(self) -> None:
        """At once: in good order it takes ten seconds."""
        while everything := {*self.processes(), *(each.pid for each in self.started if each.poll() is None)}:
            for pid in everything:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)


@contextmanager
def running_cluster(
    *, ips: tuple[str, ...] = (HEAD, OTHER), guarded: bool = True, **settings: str
) -> Iterator[Cluster]:
    """Without a dashboard, and with token authentication unless not `guarded`; a node at each address."""
    folder = Path(tempfile.mkdtemp(prefix="w", dir="/tmp"))  # paths of sockets must be short
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    cluster = Cluster(folder, free_port(ips[0]), token, guarded, ips[0], settings)
    own = ("--head", f"--port={cluster.port}", f"--temp-dir={cluster.sessions}", "--include-dashboard=false")
    try:
        cluster.start(ips[0], *own)
        for ip in ips[1:]:
            cluster.join(ip)
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def free_port(ip: str = HEAD) -> int:
    with socket.socket() as listener:
        listener.bind((ip, 0))
        port: int = listener.getsockname()[1]
        return port


def commands() -> Iterator[tuple[int, list[str]]]:
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            with suppress(OSError):
                words = (place / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if words[0]:
                    yield int(place.name), words


def below(parent: int) -> list[int]:
    """The processes that it has started, and those that these have."""
    parents: dict[int, int] = {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            with suppress(OSError):
                parents[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
    found: list[int] = []
    waiting = [parent]
    while waiting:
        here = waiting.pop()
        children = [pid for pid, above in parents.items() if above == here]
        found += children
        waiting += children
    return found


def listening(pids: list[int]) -> set[tuple[str, int]]:
    """Address and port of every TCP socket at which one of these processes listens."""
    inodes: set[str] = set()
    for pid in pids:
        with suppress(OSError):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    inodes.add(str(link.readlink()).removeprefix("socket:[").removesuffix("]"))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in inodes:
                address, port = words[1].split(":")
                found.add((address, int(port, 16)))
    return found
