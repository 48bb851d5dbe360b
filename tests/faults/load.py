"""Clients of every kind at once. They keep the books: what was asked, and what was acknowledged."""

from __future__ import annotations

import itertools
import json
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

from tests.app.predictors import rows
from tests.faults.world import World
from tests.fine_tunes import PAIRS, training_file

State = Literal["asked", "there", "removing", "removed"]
AWAY = (429, 503, 507)
"""What a server may answer that cannot at the moment; it says when to come back."""


@dataclass
class Batch:
    """Inferences of one request, by their ids."""

    records: dict[str, tuple[float, ...]]
    acknowledged: bool = False


@dataclass
class File:
    content: bytes
    id: str | None = None
    state: State = "asked"


@dataclass
class Books:
    """Everything that clients ever asked to be kept; `surprises` are answers that nobody should get."""

    explanations: dict[str, tuple[dict[str, Any], Any]] = field(default_factory=dict)
    jobs: list[str] = field(default_factory=list)
    batches: dict[str, Batch] = field(default_factory=dict)
    files: dict[str, File] = field(default_factory=dict)
    models: dict[str, State] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    indexes: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    surprises: list[str] = field(default_factory=list)
    lenient: bool = False
    """Whether answers of 5xx are no surprise: a server without memory cannot always say why."""

    def acknowledged(self) -> dict[str, int]:
        return {
            "explanations": len(self.explanations),
            "jobs": len(self.jobs),
            "inferences": sum(len(batch.records) for batch in self.batches.values() if batch.acknowledged),
            "files": sum(file.state != "asked" for file in self.files.values()),
            "models": sum(state != "asked" for state in self.models.values()),
            "keys": len(self.keys),
            "index_builds": len(self.indexes),
        }


class Load:
    """Clients in threads, from `start` until `stop`."""

    def __init__(self, world: World, books: Books, seed: int) -> None:
        self.world, self.books, self.seed = world, books, seed
        self.ended = threading.Event()
        self.threads: list[threading.Thread] = []

    def start(self) -> None:
        for number, act in enumerate(ACTS):
            thread = threading.Thread(target=self.run, args=(number, act))
            thread.start()
            self.threads.append(thread)

    def stop(self) -> None:
        self.ended.set()
        for thread in self.threads:
            thread.join()

    def run(self, number: int, act: Act) -> None:
        dice = random.Random(f"{self.seed} {number}")
        with self.world.client() as client:
            actor = Actor(self.world, self.books, client, dice, f"{self.seed}-{number}")
            while not self.ended.wait(dice.uniform(0.02, PAUSES.get(act.__name__, 0.2))):
                try:
                    act(actor)
                except Exception as error:  # noqa: BLE001 - a thread that ends in silence proves nothing
                    self.books.surprises.append(f"{act.__name__}: {type(error).__name__} {error}"[:300])


@dataclass
class Actor:
    """One client; `label` makes its names different from those of all others."""

    world: World
    books: Books
    client: httpx.Client
    dice: random.Random
    label: str
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    def name(self) -> str:
        return f"{self.label}-{next(self.numbers)}"

    def call(self, method: str, path: str, *expected: int, **given: Any) -> httpx.Response | None:
        """None where nobody answered, or somebody who cannot now."""
        try:
            answer = self.client.request(method, path, **given)
        except httpx.TransportError:
            self.books.counts["unanswered"] += 1
            return None
        self.books.counts[str(answer.status_code)] += 1
        if answer.status_code in AWAY and "retry-after" in answer.headers:
            return None
        if answer.status_code in expected:
            return answer
        if not (self.books.lenient and answer.status_code >= 500):
            self.books.surprises.append(f"{method} {path}: {answer.status_code} {answer.text[:200]}")
        return None


Act = Callable[[Actor], None]


def question(actor: Actor) -> dict[str, Any]:
    prompt = f"Note {actor.name()}. Anna lives in Oslo. Ben lives in Rome. Anna lives in"
    return {"model": "tiny-lm", "prompt": prompt, "target": " Oslo", "prompt_granularity": {"type": "word"}}


def explain(actor: Actor) -> None:
    body = question(actor)
    answer = actor.call("POST", "/explain", 200, json=body)
    if answer is not None:
        found = answer.json()
        actor.books.explanations[found["id"]] = body, found["explanations"]


def explain_later(actor: Actor) -> None:
    answer = actor.call("POST", "/explain", 202, json=question(actor), headers={"Prefer": "respond-async"})
    if answer is not None:
        actor.books.jobs.append(answer.json()["id"])


def infer(actor: Actor) -> None:
    """One, some, or so many that they travel by COPY."""
    name, count = actor.name(), actor.dice.choice([1, 1, 8, 120])
    values = rows(count, seed=actor.dice.randrange(2**31)).tolist()
    batch = actor.books.batches[name] = Batch({f"{name}-{place}": tuple(row) for place, row in enumerate(values)})
    sent = actor.world.records(name, values)
    path = f"/api/v3/models/{actor.world.monitored}/inferences"
    if actor.dice.random() < 0.3:
        content = json.dumps(sent).encode()
        answer = actor.call("POST", f"{path}/file", 207, files={"inference_data": ("rows.json", content)})
    else:
        answer = actor.call("POST", path, 207, json=sent)
    if answer is not None:
        counts = answer.json()["counts"]
        batch.acknowledged = counts["success"] == count
        if not batch.acknowledged:
            actor.books.surprises.append(f"inferences: {counts}")


def ask(actor: Actor) -> None:
    body = {"select": [{"function": "count"}]}
    actor.call("POST", f"/api/v3/models/{actor.world.monitored}/inferences/query", 200, json=body)


def send_file(actor: Actor) -> None:
    """Sends one; now and then one of before is removed."""
    name = f"{actor.name()}.jsonl"
    pairs = [*PAIRS, *((f"Who keeps {name} {number}?", "Anna.") for number in range(actor.dice.choice([1, 5, 3000])))]
    file = actor.books.files[name] = File(training_file(pairs))
    answer = actor.call("POST", "/files", 201, files={"file": (name, file.content)})
    if answer is not None:
        file.id, file.state = answer.json()["id"], "there"
        if actor.dice.random() < 0.4:
            file.state = "removing"
            if actor.call("DELETE", f"/files/{file.id}", 204) is not None:
                file.state = "removed"


def register_model(actor: Actor) -> None:
    """Registers one, from the folder of models or as an upload, and removes it again."""
    name, folder = f"model-{actor.name()}", actor.world.root / "models"
    actor.books.models[name] = "asked"
    file = "churn.json"
    if actor.dice.random() < 0.5:
        body = {"name": name, "kind": "tabular", "path": file}
        answer = actor.call("POST", "/models", 201, json=body)
    else:
        form = {"name": name, "kind": "tabular"}
        answer = actor.call("POST", "/models", 201, data=form, files={"file": (file, (folder / file).read_bytes())})
    if answer is not None:
        actor.books.models[name] = "removing"
        if actor.call("DELETE", f"/models/{name}", 204) is not None:
            actor.books.models[name] = "removed"


def trace(actor: Actor) -> None:
    """The answer of a fine-tuned model, and the pair that taught it."""
    asked, known = actor.dice.choice(PAIRS)
    # 409: its index has just been replaced.
    answer = actor.call("POST", "/influence", 200, 409, json={"model_id": "tuned", "question": asked})
    if answer is not None and answer.status_code == 200:
        found = answer.json()
        first = found["results"][0]["messages"] if found["results"] else None
        if (found["answer"], first) != (known, f"Q: {asked}\nA: {known}"):
            actor.books.surprises.append(f"influence of '{asked}': {found['answer']} {first}")


def build_index(actor: Actor) -> None:
    """From a file of this client's own."""
    name = f"index-{actor.name()}.jsonl"
    file = actor.books.files[name] = File(training_file([*PAIRS, (f"Who keeps {name}?", "Ben.")]))
    sent = actor.call("POST", "/files", 201, files={"file": (name, file.content)})
    if sent is None:
        return
    file.id, file.state = sent.json()["id"], "there"
    answer = actor.call("POST", "/models/tuned/influence-index", 202, 409, json={"training_files": [file.id]})
    if answer is not None and answer.status_code == 202:
        actor.books.indexes.append(answer.json()["id"])


def make_key(actor: Actor) -> None:
    """By the command beside the server."""
    log = actor.world.root / f"key-{actor.name()}.log"
    assert actor.world.run(["keys", "create", actor.name(), "--json"], log).wait(120) is not None
    told = log.read_text()
    if told.startswith("{"):
        actor.books.keys.append(json.loads(told.splitlines()[0])["secret"])
    elif "Traceback" in told:
        actor.books.surprises.append(f"keys create: {told[-600:]}")


def vanish(actor: Actor) -> None:
    """Sends half a body, or a whole one, and is gone with a reset before any answer."""
    path, body = "/files", b"-" * 20_000
    if actor.dice.random() < 0.5:
        path, body = "/explain", json.dumps(question(actor)).encode()
    authorization = actor.client.headers["authorization"]
    kind = "multipart/form-data; boundary=b" if path == "/files" else "application/json"
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {authorization}\r\nContent-Type: {kind}\r\n"
    with suppress(OSError), socket.create_connection(("127.0.0.1", actor.world.port), timeout=5) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
        one.sendall(body[: len(body) // 2] if path == "/files" else body)


ACTS: list[Act] = [
    explain, explain, explain_later, infer, ask, send_file, register_model, trace, build_index, make_key, vanish,
]  # fmt: skip
PAUSES = {
    "build_index": 15.0,
    "make_key": 10.0,
    "send_file": 0.6,
    "register_model": 2.0,
    "trace": 1.0,
    "explain_later": 0.5,
}
"""Longest pause of a client before an act, in seconds; less than that of a round for what is done in each."""
