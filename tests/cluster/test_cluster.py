"""A server on a real cluster of two nodes: the same answers, and what becomes of work when clients and nodes go."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.conftest import SECRET, Drive
from tests.clients.server import Server, running, whence
from tests.cluster.conftest import http, on
from tests.cluster.nodes import OTHER, Cluster, below, listening

pytestmark = pytest.mark.long
CANARY = "canaryQ7x"
PROMPT = f"Anna lives in Oslo. Ben lives in Rome. {CANARY} lives in"
DASHBOARD_AND_JOBS = 8265
SCENES = (
    ("drive_aleph_alpha.py", "explain, async"),
    ("drive_aleph_alpha.py", "images"),
    ("drive_aleph_alpha.py", "mistakes"),
    ("drive_completions.py", "complete"),
    ("drive_completions.py", "complete with streaming"),
    ("drive_completions.py", "evaluate"),
    ("drive_completions.py", "chat with streaming"),
)


@pytest.fixture(scope="module")
def client(far: Server) -> Iterator[httpx.Client]:
    with http(far) as client:
        yield client


def explain(client: httpx.Client, number: int, **changes: Any) -> httpx.Response:
    body = {"model": "tiny-lm", "prompt": f"{PROMPT} {number}", "target": " Oslo", **changes}
    return client.post("/explain", json=body)


def explanations(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()["explanations"]


def figure(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def test_without_an_address_ray_is_not_imported(near: Server, far: Server, client: httpx.Client) -> None:
    with http(near) as other:
        explanations(explain(other, 0))
    maps = [Path(f"/proc/{server.process.pid}/maps").read_text() for server in (near, far)]
    assert ["_raylet" in mapped for mapped in maps] == [False, True]


@pytest.mark.parametrize(("script", "scene"), SCENES, ids=[scene for _, scene in SCENES])
def test_the_vendors_client_gets_the_same_to_the_bit(
    client_of: Callable[[Server], Drive], far: Server, near: Server, script: str, scene: str
) -> None:
    assert client_of(far)(script, scene) == client_of(near)(script, scene)


def test_seekrs_client_gets_the_same_training_pairs(
    seekr_of: Callable[[Server], Drive], fine_tunes: tuple[Server, Server]
) -> None:
    """A chat with the fine-tune, whose answer is then traced: through its replica, which has the base beside it."""
    found, own = (seekr_of(server)("drive_seekr.py", "sync-pairs") for server in fine_tunes)
    assert found["alone"]["results"] and found["same"] and found["deployed"]
    for told in (found, own):
        for part in ("alone", "about it"):
            for result in told[part]["results"]:
                assert result.pop("file_id").startswith("file-")
    assert [found[part]["results"] for part in ("alone", "about it")] == [
        own[part]["results"] for part in ("alone", "about it")
    ]
    assert (found["answer"], found["none"], found["blank"]) == (own["answer"], own["none"], own["blank"])


def test_the_same_question_at_the_same_time_is_computed_once(client: httpx.Client) -> None:
    name = 'whence_answers_total{kind="completion",source="computed"}'
    before = figure(client, name)
    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(lambda _: explain(client, 1, prompt_granularity={"type": "token"}), range(20)))
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert figure(client, name) == before + 1


def test_who_goes_away_frees_the_replica(client: httpx.Client) -> None:
    """Of the one replica that reads images. What was stopped is counted with the next answer."""
    body = {"model": "tiny-vision", "prompt": PROMPT, "maximum_tokens": 200, "n": 40, "stream": True}
    before = figure(client, "whence_forwards_total")
    with client.stream("POST", "/complete", json={**body, "temperature": 1.0, "disable_optimizations": True}) as answer:
        assert answer.status_code == 200, answer.read()
        next(answer.iter_lines())
    time.sleep(1.0)
    explanations(explain(client, 2, model="tiny-vision"))
    stopped = figure(client, "whence_forwards_total")
    time.sleep(1.0)
    last = explain(client, 3, model="tiny-vision")
    stored = client.get(f"/explanations/{last.json()['id']}").json()
    assert figure(client, "whence_forwards_total") - stopped == stored["forwards"]
    assert 0 < stopped - before < 200


def test_nice_work_is_done_and_waits_for_nobody_who_waits(client: httpx.Client) -> None:
    asked = client.post(
        "/explain",
        json={"model": "tiny-lm", "prompt": f"{PROMPT} 4", "target": " Oslo"},
        headers={"Prefer": "respond-async"},
    )
    assert asked.status_code == 202, asked.text
    answers = explanations(explain(client, 4))
    for _ in range(200):
        job = client.get(asked.headers["location"]).json()
        if job["state"] == "succeeded":
            break
        time.sleep(0.05)
    assert job["state"] == "succeeded" and answers


def test_neither_the_dashboard_nor_the_port_for_jobs_is_open(cluster: Cluster, far: Server) -> None:
    ports = {port for _, port in listening([*cluster.processes(), far.process.pid, *below(far.process.pid)])}
    assert DASHBOARD_AND_JOBS not in ports
    own = int(far.url.rpartition(":")[2])
    assert own in ports


def test_no_file_of_the_cluster_holds_a_prompt(cluster: Cluster, far: Server, client: httpx.Client) -> None:
    assert explain(client, 5, target=CANARY * 400).status_code == 400
    for path in cluster.sessions.rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path
    assert CANARY not in far.output


def test_a_server_with_another_token_does_not_start(cluster: Cluster, new_data_dir: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("0" * 64)
    done = whence(new_data_dir, "serve", "--port", "0", **on(cluster) | {"WHENCE_RAY_TOKEN_FILE": str(wrong)})
    assert done.returncode == 1 and "asks for another token" in done.stderr, done.stdout + done.stderr
    assert "0" * 64 not in done.stderr and cluster.token.read_text() not in done.stderr


def test_two_servers_share_the_replicas_and_one_goes_on_alone(
    cluster: Cluster, far: Server, near: Server, models_dir: Path, client: httpx.Client
) -> None:
    """Of one database: what one has answered the other finds, and one that ends takes no replica with it."""
    settings = {"WHENCE_MODELS_DIR": str(models_dir), "WHENCE_API_KEY": SECRET, "WHENCE_DEVICE": "cpu", **on(cluster)}
    with running(far.data_dir, **settings) as second, http(second) as other, ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(explain, each, 200 + number) for number in range(12) for each in (client, other)]
        answers = [each.result(timeout=120) for each in asked]
        pairs = list(zip(answers[::2], answers[1::2], strict=True))
        assert all(explanations(one) == explanations(two) for one, two in pairs)
        assert explain(other, 200).json()["id"] == explain(client, 200).json()["id"]
        asked = [threads.submit(explain, client, 220 + number) for number in range(24)]
        assert second.stop() == 0
        alone = [explanations(each.result(timeout=120)) for each in asked]
    with http(near) as local:
        assert alone[::6] == [explanations(explain(local, 220 + number)) for number in range(0, 24, 6)]


def test_a_node_that_dies_under_load_costs_no_answer(cluster: Cluster, far: Server, near: Server) -> None:
    """kill -9 of a raylet and a replica while requests are under way: each is answered, and answered right."""
    done, killed = threading.Semaphore(0), threading.Event()

    def ask(number: int) -> Any:
        with http(far) as client:
            answer = explain(client, number, prompt_granularity={"type": "token"})
        done.release()
        return number, explanations(answer), killed.is_set()

    with ThreadPoolExecutor(12) as threads:
        asked = [threads.submit(ask, 100 + number) for number in range(72)]
        for _ in range(12):
            assert done.acquire(timeout=60)
        cluster.kill(OTHER)
        killed.set()
        answers = [each.result(timeout=120) for each in asked]
    assert sum(after for *_, after in answers) > 30, "the node was killed too late"
    with http(near) as other:
        for number, found, _ in answers[:: len(answers) // 24]:
            assert found == explanations(explain(other, number, prompt_granularity={"type": "token"}))
