"""The machine under test: one server, two workers, the embedded Postgres, on a small disk of their own where root may
mount one.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
import skops.io
from sklearn.linear_model import LogisticRegression

from tests import tiny_models
from tests.app.predictors import INPUTS, WHEN, boosted, definition, rows
from tests.clients.server import environment
from tests.fine_tunes import save_base, save_fine_tune, training_file
from tests.nursery import Process, nursery
from tests.postgres import reachable_folder

SECRET = "a-secret-among-faults"
FOLDERS = ("files", "indexes", "models", "tmp")
DISK = "2g"
"""What a hundred rounds write has to fit, and when it is full all of it is memory."""
START_SECONDS = 240.0
STOP_SECONDS = 60.0
WORKERS = 2


@dataclass
class World:
    """Processes by name (`server`, `worker-0`, ...); `disk` says whether the data have a disk of their own."""

    root: Path
    data_dir: Path
    disk: bool
    port: int
    environment: dict[str, str]
    linear: LogisticRegression
    processes: dict[str, Process] = field(default_factory=dict)
    monitored: str = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def names(self) -> list[str]:
        return ["server", *(f"worker-{number}" for number in range(WORKERS))]

    def client(self, secret: str = SECRET) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {secret}"}, timeout=60)

    def start(self, name: str) -> None:
        command = ["serve", "--no-worker", "--port", str(self.port)] if name == "server" else ["worker"]
        self.processes[name] = self.run(command, self.root / f"{name}.log")

    def run(self, command: Sequence[str], log: Path) -> Process:
        """Begins a `whence` that writes to the end of this file."""
        with log.open("ab") as file:
            return nursery().start(command, self.environment, file.fileno(), file.fileno())

    def mend(self) -> None:
        """Starts what has ended, and waits until the server is ready."""
        for name in self.names:
            if name not in self.processes or self.processes[name].poll() is not None:
                self.start(name)
        deadline = time.monotonic() + START_SECONDS
        while not self.ready():
            assert time.monotonic() < deadline, f"the server did not come back: see {self.root / 'server.log'}"
            if self.processes["server"].poll() is not None:
                self.start("server")
            time.sleep(0.05)

    def ready(self) -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/readyz", timeout=30).status_code == 200
        return False

    def stop(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGTERM)
        for name, process in self.processes.items():
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            assert process.poll() is not None, f"{name} does not end: see {self.root / name}.log"

    @property
    def cluster(self) -> Path:
        return (self.data_dir / "postgres").resolve()

    @property
    def postmaster(self) -> int:
        return int((self.cluster / "postmaster.pid").read_text().split()[0])

    def records(self, batch: str, values: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
        """Inferences of one batch, as they travel, with what the model says to them."""
        outputs = [{"stays": stays, "leaves": leaves} for stays, leaves in self.linear.predict_proba(values).tolist()]
        return [
            {
                "partner_inference_id": f"{batch}-{place}",
                "inference_timestamp": WHEN,
                "batch_id": batch,
                "inference_data": dict(zip(INPUTS, row, strict=True)) | output,
            }
            for place, (row, output) in enumerate(zip(values, outputs, strict=True))
        ]

    @contextmanager
    def database(self) -> Iterator[psycopg.Connection[Any]]:
        """Past the program and its row-level security."""
        password = (self.data_dir / "postgres.superuser-password").read_text().strip()
        given = {"host": str(self.cluster), "port": 5432, "user": "postgres", "password": password}
        with psycopg.connect(**given, dbname="whence", autocommit=True, application_name="faults") as connection:
            yield connection

    def sizes(self) -> dict[str, int]:
        """Bytes on its disk, by what they are for."""
        places = [self.cluster / "base", self.cluster / "pg_wal", *(self.data_dir / name for name in FOLDERS)]
        return {place.name: sum(size for file in place.rglob("*") for size in size_of(file)) for place in places}

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self.database() as connection:
            return connection.execute(query, values or None).fetchall()  # type: ignore[arg-type]


@contextmanager
def world(logs: Path | None = None) -> Iterator[World]:
    """A world that is ready: three models and a monitored one, whose inferences are explained as they come in.

    What its processes have said is copied to `logs` at the end.
    """
    with reachable_folder() as root:
        data_dir = root / "data"
        data_dir.mkdir()
        data_dir.chmod(0o711)
        with own_disk(data_dir) as disk:
            (data_dir / "tmp").mkdir()
            settings = {"WHENCE_API_KEY": SECRET, "WHENCE_MODELS_DIR": str(root / "models")}
            own = environment(data_dir, **settings, TMPDIR=str(data_dir / "tmp"))
            made = World(root, data_dir, disk, free_port(), own, make_models(root / "models"))
            try:
                made.mend()
                register(made)
                made.monitored = monitor(made)
                yield made
            finally:
                made.stop()
                if logs is not None:
                    shutil.copytree(root, logs, ignore=shutil.ignore_patterns("data", "models"), dirs_exist_ok=True)


@contextmanager
def own_disk(folder: Path) -> Iterator[bool]:
    """A small file system in memory; False, and nothing, where it cannot be mounted."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=0711", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            time.sleep(0.5)
            subprocess.run(["umount", "-l", str(folder)], check=True)


def size_of(file: Path) -> Iterator[int]:
    """None of one that has just gone."""
    with suppress(FileNotFoundError):
        if file.is_file():
            yield file.stat().st_size


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def make_models(folder: Path) -> LogisticRegression:
    """The files of all models; the monitored one as an object."""
    folder.mkdir()
    tiny_models.save(folder / "tiny")
    save_fine_tune(folder / "tuned", save_base(folder / "base"))
    boosted(folder)
    values = rows(200, seed=3)
    model = LogisticRegression().fit(values, (values[:, 0] > values[:, 1]).astype(int))
    skops.io.dump(model, folder / "linear.skops")
    (folder / "facts.jsonl").write_bytes(training_file())
    return model


def register(made: World) -> None:
    kinds = {"tiny-lm": ("tiny", "causal-lm"), "base": ("base", "causal-lm"), "linear": ("linear.skops", "tabular")}
    with made.client() as client:
        for name, (file, kind) in kinds.items():
            post(client, "/models", json={"name": name, "path": file, "kind": kind})
        post(client, "/models", json={"name": "tuned", "path": "tuned", "kind": "causal-lm", "base": "base"})
        facts = (made.root / "models" / "facts.jsonl").read_bytes()
        file = post(client, "/files", files={"file": ("facts.jsonl", facts)})["id"]
        job = post(client, "/models/tuned/influence-index", json={"training_files": [file]})["id"]
        deadline = time.monotonic() + START_SECONDS
        while client.get(f"/jobs/{job}").json()["state"] != "succeeded":
            assert time.monotonic() < deadline
            time.sleep(0.1)


def post(client: httpx.Client, path: str, **given: Any) -> dict[str, Any]:
    answer = client.post(path, **given)
    assert answer.is_success, answer.text
    return dict(answer.json())


def monitor(made: World) -> str:
    """The id of the monitored model of `linear`."""
    with made.client() as client:
        created = client.post("/api/v3/models", json=definition("linear")).raise_for_status().json()
        path = f"/api/v3/models/{created['id']}/enrichments/explainability"
        first = made.records("first", rows(30, seed=5).tolist())  # what the others are explained against
        post(client, f"/api/v3/models/{created['id']}/inferences", json=first)
        body = {"enabled": True, "config": {"explanation_algo": "shap"}}
        answer = client.patch(path, json=body)
        assert answer.status_code == 202, answer.text
        return str(created["id"])
