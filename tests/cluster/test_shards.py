"""Jobs that the nodes of a cluster help with: the same bytes and scores, whatever becomes of a node or of who leads."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import shard_log, test_backfill_survives
from tests.clients.conftest import SECRET
from tests.clients.server import Server, running
from tests.cluster.conftest import http, on
from tests.cluster.nodes import Cluster, commands, running_cluster
from tests.fine_tunes import NAMES, PLACES, save_base, save_fine_tune, training_file
from tests.postgres import Server as Postgres
from tests.postgres import running_server
from tests.test_backfill_survives import artifact
from tests.test_jobs_survive import wait

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
__all__ = ["artifact"]  # a fixture

HEAD, OTHER = "127.0.0.4", "127.0.0.5"
PAIRS, ROWS = 8_000, 3_000
LARGER = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4}
LEASED = {
    "index": "SELECT count(*) FROM influence_shards WHERE digest IS NULL AND leased_until > now()",
    "scores": "SELECT count(*) FROM job_shards WHERE NOT done AND leased_until > now()",
}


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with running_server() as server:
        yield server


@pytest.fixture(scope="module")
def two_nodes(ray: None, database: Postgres) -> Iterator[Cluster]:
    """Whose nodes know the database and the folder of the servers here."""
    settings = {"WHENCE_DATABASE_URL": database.url, "WHENCE_DATA_DIR": str(database.data_dir)}
    with running_cluster(ips=(HEAD, OTHER), **settings) as cluster:
        yield cluster


@pytest.fixture
def cluster(two_nodes: Cluster) -> Cluster:
    """With both nodes, also where a test has lost one."""
    if two_nodes.raylet(OTHER) is None:
        two_nodes.join(OTHER)
    return two_nodes


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_fine_tune(folder / "tuned", save_base(folder / "base", **LARGER))
    return folder


@contextmanager
def serving(database: Postgres, models: Path, returncode: int = 0, **settings: str) -> Iterator[Server]:
    """A server that works on jobs itself."""
    own = {"WHENCE_DATABASE_URL": database.url, "WHENCE_MODELS_DIR": str(models), "WHENCE_API_KEY": SECRET}
    with running(database.data_dir, returncode=returncode, **own, WHENCE_DEVICE="cpu", **settings) as server:
        yield server


def leased(database: Postgres, of: str = "index") -> int:
    """Shards that somebody computes now."""
    with shard_log.database(database.data_dir) as connection:
        return int(connection.execute(LEASED[of]).fetchone()[0])  # type: ignore[index]


def helpers(cluster: Cluster) -> list[int]:
    """Processes of the cluster in which tasks of ours run."""
    there = set(cluster.processes())
    return [pid for pid, words in commands() if words[0].startswith("ray::take_part") and pid in there]


def build(client: httpx.Client) -> str:
    """Begins an index of the model, registered anew so that none of its shards is there; where its job is."""
    client.delete("/models/tuned")
    for name, more in (("base", {}), ("tuned", {"base": "base"})):
        if client.get(f"/models/{name}").status_code == 404:
            answer = client.post("/models", json={"name": name, "path": name, **more})
            assert answer.status_code == 201, answer.text
    if not (files := client.get("/files").json()["files"]):
        pairs = [(f"Who keeps {PLACES[each % 12]} {each}?", f"{NAMES[each // 12 % 12]}.") for each in range(PAIRS)]
        files = [client.post("/files", files={"file": ("many.jsonl", training_file(pairs))}).json()]
    asked = client.post("/models/tuned/influence-index", json={"training_files": [files[0]["id"]]})
    return str(asked.raise_for_status().headers["location"])


def ended(client: httpx.Client, job: str) -> dict[str, Any]:
    wait(lambda: client.get(job).json()["state"] not in ("queued", "running"), seconds=600)
    return dict(client.get(job).json())


def index(client: httpx.Client, data_dir: Path) -> dict[str, bytes]:
    """The files of the index that answers."""
    (found,) = client.get("/models/tuned/influence-index").json()["indexes"]
    assert found["state"] == "ready" and found["facts"]["pairs"] == PAIRS
    folder = data_dir / "indexes" / "default" / found["id"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lost_a_node(cluster: Cluster, database: Postgres, of: str = "index") -> list[shard_log.Event]:
    """kill -9 of a node, once the server and both nodes compute a shard each; what was leased and stored until then."""
    wait(lambda: leased(database, of) == 3, seconds=180)
    before = shard_log.read(database.data_dir)
    cluster.kill(OTHER)
    return before


def check_each_once(database: Postgres, before: list[shard_log.Event]) -> None:
    """Every shard was stored once, that of the lost node was leased again, and there was work left when it was lost."""
    events = shard_log.read(database.data_dir)
    stored = shard_log.stored(events)
    assert len(stored) == len(set(stored)) > len(shard_log.stored(before)) + 2
    assert sum(each.event == shard_log.LEASED for each in events) > len(stored)


def test_an_index_has_the_same_bytes_when_a_node_dies(cluster: Cluster, database: Postgres, models: Path) -> None:
    with serving(database, models, **on(cluster)) as server, http(server) as client:
        shard_log.begin(database.data_dir)
        job = build(client)
        before = lost_a_node(cluster, database)
        assert ended(client, job)["state"] == "succeeded"
        check_each_once(database, before)
        wait(lambda: not helpers(cluster), seconds=30)
        shared = index(client, database.data_dir)
    with serving(database, models) as server, http(server) as client:
        assert ended(client, build(client))["state"] == "succeeded"
        assert index(client, database.data_dir) == shared


def test_tasks_end_with_a_job_that_is_cancelled_and_with_who_leads(
    cluster: Cluster, database: Postgres, models: Path
) -> None:
    with serving(database, models, -signal.SIGKILL, **on(cluster)) as server, http(server) as client:
        job = build(client)
        wait(lambda: leased(database) == 3, seconds=180)
        assert client.delete(job).json()["state"] == "cancelled"
        wait(lambda: not helpers(cluster) and not leased(database), seconds=60)
        build(client)
        wait(lambda: leased(database) == 3, seconds=180)
        assert len(helpers(cluster)) == 2
        server.process.kill()
        wait(lambda: not helpers(cluster), seconds=60)
    with serving(database, models) as server, http(server) as client:
        for job in client.get("/jobs").json()["jobs"]:  # what others here would find
            client.delete(f"/jobs/{job['id']}")


def test_scores_are_the_same_when_a_node_dies(
    cluster: Cluster, database: Postgres, models: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shapley values of nine inputs are exact: under another seed the same are computed again, by the server alone."""
    monkeypatch.setattr(test_backfill_survives, "COUNT", ROWS)
    shutil.copy(artifact, models / "product.json")
    with serving(database, models, **on(cluster)) as server, http(server) as client:
        body = {"name": "product", "kind": "tabular", "path": "product.json"}
        assert client.post("/models", json=body).status_code == 201
        shard_log.begin(database.data_dir)
        id = test_backfill_survives.prepared(client, artifact)
        before = lost_a_node(cluster, database, "scores")
        assert backfilled(client) == ROWS
        check_each_once(database, before)
        shared = scores(database)
        assert len(shared) == ROWS
    with serving(database, models) as server, http(server) as client:
        path = f"{test_backfill_survives.MODELS}/{id}/enrichments/explainability"
        assert client.patch(path, json={"config": {"seed": 2}}).status_code == 202
        assert backfilled(client) == ROWS
        assert scores(database) == shared


def backfilled(client: httpx.Client) -> int:
    """The inferences of the newest job that explains them, once it has succeeded."""
    newest = client.get("/jobs").json()["jobs"][0]
    assert newest["kind"] == test_backfill_survives.KIND
    done = ended(client, f"/jobs/{newest['id']}")
    assert done["state"] == "succeeded", done
    return int(done["done"])


def scores(database: Postgres) -> list[tuple[Any, ...]]:
    """As they are stored, bit for bit."""
    with shard_log.database(database.data_dir) as connection:
        return connection.execute("SELECT seq, scores, base_values FROM inference_scores ORDER BY seq").fetchall()
