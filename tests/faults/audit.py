"""What there is, against the books: nothing acknowledged is lost or changed, nothing doubled, nothing left behind."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import psycopg

from tests.app.predictors import INPUTS
from tests.faults.load import Batch, Books, State
from tests.faults.strokes import children, family, parent
from tests.faults.world import World

DRAIN_SECONDS = 120.0
OUTPUTS = ("stays", "leaves")
CHECKED = 40
"""Entries of each kind that are read after a round, the newest first and some of the others; at the end all are."""
DATABASE = {
    "a question stored twice": "SELECT encode(request_key, 'hex'), count(*) FROM explanations GROUP BY request_key "
    "HAVING count(*) > 1 AND min(kind) <> 'influence'",
    "an inference stored twice": "SELECT partner_inference_id FROM inferences GROUP BY model_id, partner_inference_id "
    "HAVING count(*) > 1",
    "a job that failed": "SELECT id, kind, attempts, error ->> 'detail' FROM jobs WHERE state = 'failed'",
    "a job with the result of another": "SELECT id, result FROM jobs WHERE kind = 'explain' AND result <> id",
    "an index left in the middle": "SELECT id FROM influence_indexes WHERE state = 'building'",
    "a transaction left open": "SELECT pid FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' "
    "AND xact_start < now() - interval '20 seconds'",
}


@dataclass
class Findings:
    """What was lost, what was there twice, and what else is not as it must be."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def all(self) -> list[str]:
        return [*self.lost, *self.doubled, *self.wrong]


def drain(world: World, findings: Findings) -> None:
    """Until no job waits or runs and the queue is empty."""
    asked = "SELECT (SELECT count(*) FROM jobs WHERE state IN ('queued', 'running')), count(*) FROM procrastinate_jobs"
    left: Any = None
    deadline = time.monotonic() + DRAIN_SECONDS
    while time.monotonic() < deadline:
        with suppress(psycopg.Error):
            ((*left,),) = world.rows(asked)
            if left == [0, 0]:
                return
        time.sleep(0.1)
    findings.wrong.append(f"the queue did not drain: {left} jobs and entries are left")


class Audit:
    """One comparison; `thorough` reads everything back, not only what is new."""

    def __init__(self, world: World, books: Books, dice: random.Random, *, thorough: bool) -> None:
        self.world, self.books, self.dice, self.thorough = world, books, dice, thorough
        self.findings = Findings()

    def run(self) -> Findings:
        drain(self.world, self.findings)
        with self.world.client() as self.client:
            for check in (
                self.explanations, self.jobs, self.inferences, self.files, self.models, self.indexes, self.keys,
                self.database, self.processes, self.leftovers,
            ):  # fmt: skip
                try:
                    check()
                except Exception as error:  # noqa: BLE001 - the other checks are worth having
                    self.findings.wrong.append(f"{check.__name__}: {type(error).__name__} {error}"[:400])
        return self.findings

    def some(self, entries: list[Any]) -> list[Any]:
        if self.thorough or len(entries) <= CHECKED:
            return entries
        return entries[-CHECKED:] + self.dice.sample(entries[:-CHECKED], min(5, len(entries) - CHECKED))

    def get(self, path: str) -> httpx.Response:
        return self.client.get(path)

    def explanations(self) -> None:
        """Stored under their ids, and told again when the same is asked."""
        for id, (body, told) in self.some(list(self.books.explanations.items())):
            again = self.client.post("/explain", json=body)
            if self.get(f"/explanations/{id}").status_code != 200:
                self.findings.lost.append(f"explanation {id}")
            elif (again.json().get("id"), again.json().get("explanations")) != (id, told):
                self.findings.doubled.append(f"explanation {id}: {again.status_code}")

    def jobs(self) -> None:
        for id in self.some(self.books.jobs):
            job = self.get(f"/jobs/{id}").json()
            stored = self.get(f"/explanations/{id}").status_code
            if (job.get("state"), job.get("explanation"), stored) != ("succeeded", id, 200):
                self.findings.lost.append(f"job {id}: {job.get('state')} {stored}")

    def inferences(self) -> None:
        """Each batch whole, with its values and the scores of each input; or not at all, where nobody said it was."""
        for name, batch in self.some(list(self.books.batches.items())):
            found = self.query(name, "inference", "partner_inference_id", *INPUTS)
            if not found and not batch.acknowledged:
                continue
            if {row[0]: row[1:] for row in found} != batch.records:
                self.findings.lost.append(f"batch {name}: {len(found)} of {len(batch.records)}")
            if len(found) > len(batch.records):
                self.findings.doubled.append(f"batch {name}")
            self.scores(name, batch)

    def scores(self, name: str, batch: Batch) -> None:
        """One of each input for each output."""
        places = ("partner_inference_id", "explainer_predicted_attribute", "explainer_attribute")
        found = self.query(name, "enriched", *places, "explainer_score")
        there = Counter(row[:3] for row in found if row[3] is not None)
        wanted = {(id, *each) for id in batch.records for each in product(OUTPUTS, INPUTS)}
        if set(there) != wanted:
            self.findings.lost.append(f"scores of batch {name}: {len(there)} of {len(wanted)}")
        if there.total() > len(there):
            self.findings.doubled.append(f"scores of batch {name}")

    def query(self, batch: str, source: str, *names: str) -> list[tuple[Any, ...]]:
        where = [{"property": "batch_id", "comparator": "eq", "value": batch}]
        body = {"select": [{"property": name} for name in names], "from": source, "filter": where}
        path = f"/api/v3/models/{self.world.monitored}/inferences/query"
        answer = self.client.post(path, json=body, params={"page_size": 10_000})
        assert answer.status_code == 200, answer.text
        return [tuple(row[name] for name in names) for row in answer.json()["query_result"]]

    def files(self) -> None:
        listed = [file["filename"] for file in self.get("/files?limit=10000").json()["files"]]
        if len(set(listed)) < len(listed) or not set(listed) <= {*self.books.files, "facts.jsonl"}:
            self.findings.doubled.append("a file is listed twice, or nobody sent it")
        for name, file in self.some(list(self.books.files.items())):
            there = name in listed
            if file.state in ("there", "removed") and there != (file.state == "there"):
                self.findings.lost.append(f"file {name} is {'there' if there else 'gone'} and was {file.state}")
            if there and file.id is not None and self.get(f"/files/{file.id}/content").content != file.content:
                self.findings.lost.append(f"the content of file {name}")

    def models(self) -> None:
        """What nobody acknowledged is there or not; it is removed now."""
        for name, state in self.some(list(self.books.models.items())):
            there = self.get(f"/models/{name}").status_code == 200
            if state == "removed" and there:
                self.findings.lost.append(f"the removal of model {name}")
            if there:
                assert self.client.delete(f"/models/{name}").status_code == 204
            gone: State = "removed"
            self.books.models[name] = gone

    def indexes(self) -> None:
        for id in self.some(self.books.indexes):
            state = self.get(f"/jobs/{id}").json().get("state")
            if state != "succeeded":
                self.findings.lost.append(f"build of an index {id}: {state}")
        ready = [
            each for each in self.get("/models/tuned/influence-index").json()["indexes"] if each["state"] == "ready"
        ]
        if len(ready) != 1:
            self.findings.wrong.append(f"{len(ready)} indexes are ready")

    def keys(self) -> None:
        for secret in self.some(self.books.keys):
            with self.world.client(secret) as client:
                if client.get("/explanations?limit=1").status_code != 200:
                    self.findings.lost.append("a key")

    def database(self) -> None:
        for what, query in DATABASE.items():
            found = self.world.rows(query)
            doubled = self.findings.doubled if "twice" in what else self.findings.wrong
            doubled += [f"{what}: {' '.join(map(str, row))}" for row in found]

    def processes(self) -> None:
        """Those of this world are the server, its workers, the database, and whom they began; within ten seconds."""
        deadline = time.monotonic() + 10
        while orphans := {pid: line for pid, line in ours(self.world) if pid not in expected(self.world)}:
            if time.monotonic() > deadline:
                self.findings.wrong += [f"process {pid} was left behind: {line}" for pid, line in orphans.items()]
                return
            time.sleep(0.1)

    def leftovers(self) -> None:
        """Half a content has half an hour to be swept; a build, and a temporary folder, none."""
        data = self.world.data_dir
        found = [*data.glob("indexes/*/.building-*"), *(data / "tmp").iterdir(), *data.glob("models/*.part")]
        self.findings.wrong += [f"left behind: {path.relative_to(data)}" for path in found]


def expected(world: World) -> set[int]:
    keeper = parent(world.postmaster)
    return {pid for top in (os.getpid(), keeper) for pid in family(top)}


def ours(world: World) -> Iterator[tuple[int, str]]:
    """Processes that have to do with the data of this world, by their arguments, environment or place."""
    place, cluster = str(world.data_dir).encode(), str(world.cluster)
    marks: list[Callable[[Path], bool]] = [
        lambda process: place in (process / "cmdline").read_bytes(),
        lambda process: place in (process / "environ").read_bytes(),
        lambda process: str((process / "cwd").resolve()) == cluster,
    ]
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(mark(process) for mark in marks) or adopted_child(process):
                yield int(process.name), (process / "cmdline").read_text().replace("\0", " ")[:200]


def adopted_child(process: Path) -> bool:
    """A process that held a model for another, which is gone; those of other checkouts are not ours."""
    line = (process / "cmdline").read_bytes()
    here = str(Path(__file__).resolve().parents[2]).encode()
    return b"skops_child" in line and here in line and parent(int(process.name)) == 1


def shared_memory(world: World) -> set[str]:
    """The segments that Postgres has mapped now."""
    pids = [world.postmaster, *children(world.postmaster)]
    lines: list[str] = []
    for pid in pids:
        with suppress(OSError):
            lines += Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split()[-1] for line in lines if "/shm/PostgreSQL" in line}
