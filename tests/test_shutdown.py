"""A real server that is told to end in the middle of its work: nobody is cut off, and no job is lost."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import tiny_models
from tests.clients.server import Server, objects, running, whence
from tests.postgres import reachable_folder
from tests.test_jobs_survive import wait

SECRET = "a-secret-of-the-shutdown"
WORDS = " ".join(f"The key of house {number} is red." for number in range(7))
CLIENTS = 20


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Data of a server with one small random model that takes a good part of a second to explain."""
    model = tiny_models.save(
        tmp_path_factory.mktemp("model") / "slow",
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        max_position_embeddings=1024,
    )
    with reachable_folder() as folder:
        objects(whence(folder, "models", "add", "slow-lm", str(model), "--kind", "causal-lm", "--json"))
        yield folder


def client(server: Server) -> httpx.Client:
    return httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {SECRET}"}, timeout=90)


def body(number: int) -> dict[str, Any]:
    return {
        "model": "slow-lm",
        "prompt": f"{number} {WORDS}",
        "target": " red",
        "prompt_granularity": {"type": "word"},
    }


def ask(one: httpx.Client, number: int) -> httpx.Response:
    return one.post("/explain", json=body(number))


def waiting(one: httpx.Client) -> float:
    lines = one.get("/metrics").raise_for_status().text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("whence_http_requests_in_progress "))


@dataclass(frozen=True)
class Flight:
    """Twenty requests and a job, most of them under way when the server was told to end."""

    answers: list[httpx.Response]
    job: str
    meanwhile: list[tuple[int, Any]]
    seconds: float


def stop_in_flight(server: Server, one: httpx.Client, number: int, *, late: bool) -> Flight:
    """`late`: whether somebody comes after the signal."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = [pool.submit(ask, one, number + place) for place in range(CLIENTS)]
        asked = one.post("/explain", json=body(number + CLIENTS), headers={"Prefer": "respond-async"})
        job = str(asked.raise_for_status().json()["id"])
        wait(lambda: waiting(one) > CLIENTS // 2)  # one of them asks this
        server.process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        meanwhile = list(after_the_signal(server)) if late else []
        got = [answer.result() for answer in answers]
    assert server.process.wait(120) == 0
    return Flight(got, job, meanwhile, time.monotonic() - told)


def after_the_signal(server: Server) -> Iterator[tuple[int, Any]]:
    """What somebody who comes then is told."""
    wait(lambda: httpx.get(f"{server.url}/readyz", timeout=60).status_code != 200)  # the signal has been looked at
    for path in ("/readyz", "/version"):
        response = httpx.get(f"{server.url}{path}", timeout=60)
        yield response.status_code, (response.json(), response.headers.get("retry-after"))


def assert_right_or_refused(answers: list[httpx.Response]) -> set[int]:
    for answer in answers:
        if answer.status_code == 503:
            assert answer.json()["code"] == "SHUTTING_DOWN" and int(answer.headers["retry-after"]) >= 1
        else:
            assert answer.status_code == 200 and len(answer.json()["explanations"]) == 1, answer.text
    return {answer.status_code for answer in answers}


def assert_done_once(one: httpx.Client, flight: Flight) -> None:
    """The job went on where it was put back; it and every answer are stored, each once."""
    wait(lambda: one.get(f"/jobs/{flight.job}").json()["state"] == "succeeded")
    about = one.get(f"/jobs/{flight.job}").json()
    assert about["attempts"] == 1
    stored = [entry["id"] for entry in one.get("/explanations?limit=500").json()["explanations"]]
    answered = {answer.json()["id"] for answer in flight.answers if answer.status_code == 200}
    assert len(stored) == len(set(stored)) and answered | {about["explanation"]} <= set(stored)


@pytest.mark.timeout(600)  # many starts of a server
def test_told_to_end_in_the_middle_of_its_work(data_dir: Path) -> None:
    """First with time enough for all who wait, then with too little; each time the next server goes on with the job."""
    with running(data_dir, WHENCE_API_KEY=SECRET, WHENCE_SHUTDOWN_SECONDS="120") as server, client(server) as one:
        patient = stop_in_flight(server, one, 0, late=True)
    assert 200 in assert_right_or_refused(patient.answers)
    assert len([answer for answer in patient.answers if answer.status_code == 200]) >= CLIENTS // 2
    (ready, (parts, _)), (version, (problem, retry)) = patient.meanwhile
    assert (ready, parts["not_ready"][-1], parts["accepting"]) == (503, "accepting", False)
    assert (version, problem["code"]) == (503, "SHUTTING_DOWN") and int(retry) >= 1

    with running(data_dir, WHENCE_API_KEY=SECRET, WHENCE_SHUTDOWN_SECONDS="0.5") as server, client(server) as one:
        assert_done_once(one, patient)
        hasty = stop_in_flight(server, one, 100, late=False)
    assert any("were refused" in line for line in server.lines)
    assert 503 in assert_right_or_refused(hasty.answers)
    assert hasty.seconds < 60  # a few seconds, on a machine that does nothing else

    with running(data_dir, WHENCE_API_KEY=SECRET) as server, client(server) as one:
        assert_done_once(one, hasty)
        odd = httpx.request("BREW", f"{server.url}/of-house?house", content="of house", timeout=60)
        assert odd.status_code >= 400
    assert_only_json_and_nothing_said(server)


def assert_only_json_and_nothing_said(server: Server) -> None:
    lines = [json.loads(line) for line in server.lines if line.startswith("{")]
    others = [line for line in server.lines if line.strip() and not line.startswith("{")]
    assert [line for line in others if "ready at" not in line] == []
    assert {"event", "level", "logger", "time"} <= set.intersection(*map(set, lines))
    assert "house" not in server.output and SECRET not in server.output
