"""The application behind a real socket, with something of every kind in its store."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from app.main import create_app
from app.settings import Settings
from tests.app import predictors
from tests.app.conftest import CHAT_TEMPLATE, PROMPT, TARGET
from tests.fine_tunes import PAIRS, save_base, save_fine_tune, training_file
from tests.tiny_models import save

KEY = "an-admin-key-for-tests"
SPARES = 4
"""Things of each kind that may be deleted."""

FINAL = ("succeeded", "failed", "cancelled")
INFERENCES = "/api/v3/models/{}/inferences"
NAMES = {"stays": "churn_no", "leaves": "churn_yes", "left": "churned"}


@dataclass(frozen=True)
class Stored:
    """What can be named in a request: ids and names, by what they are of; spare ones may be deleted."""

    ids: Mapping[str, list[str]]


@contextmanager
def served(settings: Settings) -> Iterator[str]:
    """The URL of a server that runs in a thread of its own."""
    app = create_app(settings)
    config = uvicorn.Config(
        app, port=0, http="httptools", lifespan="on", log_config=None, access_log=False, server_header=False
    )
    server = uvicorn.Server(config)
    app.state.stopping = lambda: server.should_exit
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        yield address(server, thread)
    finally:
        server.should_exit = True
        thread.join()


def address(server: uvicorn.Server, thread: threading.Thread) -> str:
    deadline = time.monotonic() + 120
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline, "the server did not start"
        time.sleep(0.05)
    return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"


def save_models(folder: Path) -> None:
    """Everything that is registered, on disk."""
    (save(folder / "my-lm") / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    save_fine_tune(folder / "tuned", save_base(folder / "base"))
    predictors.boosted(folder)
    predictors.text_classifier(folder / "notes")


class Client(httpx.Client):
    def send_json(self, method: str, path: str, body: Any = None, *, status: int = 200, **more: Any) -> Any:
        answer = (
            self.request(method, path, json=body, **more) if body is not None else self.request(method, path, **more)
        )
        assert answer.status_code == status, (path, answer.text)
        return answer.json()

    def register(self, name: str, kind: str, path: str, **more: Any) -> None:
        self.send_json("POST", "/models", {"name": name, "kind": kind, "path": path, **more}, status=201)

    def ended(self, job: str) -> dict[str, Any]:
        while True:
            found: dict[str, Any] = self.send_json("GET", f"/jobs/{job}")
            if found["state"] in FINAL:
                return found
            time.sleep(0.1)

    def file(self, content: bytes, name: str) -> str:
        sent = self.send_json("POST", "/files", files={"file": (name, content)}, status=201)
        return str(sent["id"])


def fill(url: str, models: Path) -> Stored:
    """Registers and sends one of everything, and some spare ones."""
    with Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=120) as client:
        register_models(client)
        files = [client.file(training_file(PAIRS[: 6 + place]), f"facts-{place}.jsonl") for place in range(SPARES + 2)]
        build_index(client, files[0])
        monitored = [monitor(client, models, "churn-7"), note_model(client)]
        archived = [monitor(client, models, f"spare-{place}", count=0) for place in range(SPARES)]
        return collected(client, files, monitored, archived)


def register_models(client: Client) -> None:
    for name, path in (("demo-lm", "my-lm"), ("base", "base"), *((f"spare/{n}", "my-lm") for n in range(SPARES))):
        client.register(name, "causal-lm", path)
    client.register("demo-qa", "causal-lm", "tuned", base="base")
    client.register("churn-7", "tabular", "churn.json")
    client.register("notes", "text-classifier", "notes")


def build_index(client: Client, file: str) -> None:
    job = client.send_json("POST", "/models/demo-qa/influence-index", {"training_files": [file]}, status=202)
    assert client.ended(job["id"])["state"] == "succeeded"


def monitor(client: Client, models: Path, name: str, count: int = 12) -> str:
    """A model of rows with a reference set, inferences and ground truth, explained."""
    id = str(client.send_json("POST", "/api/v3/models", named(predictors.definition(name)), status=201)["id"])
    if count:
        path = f"/api/v3/models/{id}"
        reference = [dict(zip(predictors.INPUTS, row, strict=True)) for row in predictors.rows(60, seed=1).tolist()]
        files = {"reference_data": ("rows.json", json.dumps(reference))}
        client.send_json("POST", f"{path}/reference_data", files=files, status=207)
        client.send_json("POST", f"{path}/inferences", records(models, count), status=207)
        enable(client, id)
    return id


def records(models: Path, count: int) -> list[dict[str, Any]]:
    made = predictors.records(models / "churn.json", predictors.rows(count))
    truth = {"ground_truth_timestamp": predictors.WHEN, "ground_truth_data": {"left": 1}}
    return [named(record | truth | {"batch_id": f"b-{place % 2}"}) for place, record in enumerate(made)]


def named(value: Any) -> Any:
    """With the names that the examples of the description have."""
    text = json.dumps(value)
    for name, other in NAMES.items():
        text = text.replace(f'"{name}"', f'"{other}"')
    return json.loads(text)


def note_model(client: Client) -> str:
    id = str(client.send_json("POST", "/api/v3/models", predictors.text_definition("notes"), status=201)["id"])
    sent = [
        {
            "partner_inference_id": f"n-{place}",
            "inference_timestamp": predictors.WHEN,
            "inference_data": {"note": f"smoke in the {place}", "routine": 0.4, "urgent": 0.6},
        }
        for place in range(3)
    ]
    client.send_json("POST", INFERENCES.format(id), sent, status=207)
    enable(client, id)
    return id


def enable(client: Client, id: str) -> None:
    body = {"enabled": True, "config": {"explanation_algo": "lime", "explanation_nsamples": 20}}
    client.send_json("PATCH", f"/api/v3/models/{id}/enrichments/explainability", body, status=202)
    for job in client.send_json("GET", "/jobs?limit=500")["jobs"]:
        client.ended(job["id"])


def collected(client: Client, files: list[str], monitored: list[str], archived: list[str]) -> Stored:
    asked = {"model": "demo-lm", "prompt": PROMPT, "target": TARGET}
    explanations = [client.send_json("POST", "/explain", asked | {"normalize": flag})["id"] for flag in (True, False)]
    question = {"model_id": "demo-qa", "question": PAIRS[0][0], "answer": PAIRS[0][1]}
    explanations.append(client.send_json("POST", "/influence", question)["id"])
    ahead = {"Prefer": "respond-async"}
    jobs = [
        client.send_json("POST", "/explain", asked | {"target": f" {n}"}, status=202, headers=ahead)["id"]
        for n in range(2 + SPARES)
    ]
    for job in jobs:
        client.ended(job)
    deployments = [each["id"] for each in client.send_json("GET", "/v1/flow/deployments")["data"]]
    spare_models = [f"spare/{place}" for place in range(SPARES)]
    spare = {"jobs": jobs[2:], "files": files[2:], "models": spare_models, "monitored": archived}
    kept = {
        "explanations": explanations,
        "jobs": jobs[:2],
        "files": files[:2],
        "models": ["demo-lm", "demo-qa", "churn-7"],
        "tuned": ["demo-qa"],
        "enrichments": ["explainability", "hotspots"],
        "monitored": monitored,
        "inferences": ["u-0", "u-1", "n-0"],
        "batches": ["b-0", "b-1"],
        "deployments": deployments[:3],
    }
    return Stored(kept | {f"spare-{name}": values for name, values in spare.items()})
