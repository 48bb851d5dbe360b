"""One cluster of two nodes and one server on it for all tests here, and a server without a cluster beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from tests import tiny_models
from tests.app.conftest import CHAT_TEMPLATE
from tests.clients.conftest import SECRET, Drive, clients, scenes
from tests.clients.server import Server, running
from tests.cluster.nodes import Cluster, running_cluster
from tests.fine_tunes import save_base, save_fine_tune, training_file
from tests.postgres import reachable_folder

__all__ = ["clients"]  # a fixture

TWICE = {"min_replicas": 2, "max_replicas": 2, "cpus": 1, "gpus": 0}
ONCE = {**TWICE, "min_replicas": 1, "max_replicas": 1}
MODELS = (("tiny-lm", "causal-lm", TWICE), ("tiny-vision", "image-text-lm", ONCE))


@pytest.fixture(scope="session")
def ray() -> None:
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install -c constraints.txt -e '.[ray]'")


@pytest.fixture(scope="session")
def cluster(ray: None) -> Iterator[Cluster]:
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny = tiny_models.save(folder / "tiny-lm")
    (tiny / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    tiny_models.save_image_text(folder / "tiny-vision")
    save_fine_tune(folder / "tuned", save_base(folder / "base"))
    return folder


@pytest.fixture(scope="session")
def far(cluster: Cluster, models_dir: Path) -> Iterator[Server]:
    """A server whose models run on the cluster: `tiny-lm` in two replicas, `tiny-vision` in one."""
    with serving(models_dir, **on(cluster)) as server:
        yield server


@pytest.fixture(scope="session")
def near(models_dir: Path) -> Iterator[Server]:
    """A server with the same models in its own process."""
    with serving(models_dir) as server:
        yield server


@pytest.fixture(scope="session")
def client_of(clients: Path) -> Callable[[Server], Drive]:
    """Runs scenes with the vendor's client against a server."""
    python = clients / ".venv-clients" / "bin" / "python"
    return lambda server: scenes(server, python, "error")


@pytest.fixture(scope="session")
def seekr_of(clients: Path) -> Callable[[Server], Drive]:
    """The same with Seekr's client."""
    python = clients / ".venv-seekr" / "bin" / "python"
    return lambda server: scenes(server, python, "error:This SeekrFlow API")


@pytest.fixture(scope="session")
def fine_tunes(far: Server, near: Server) -> tuple[Server, Server]:
    """Both servers, with `org/tuned` and its influence index. Its base has no replica once it has been looked at."""
    for server in (far, near):
        with http(server) as client:
            register(client, "tuned-from", "base", {**ONCE, "min_replicas": 0, "cpus": 0.5})
            register(client, "org/tuned", "tuned", {**ONCE, "cpus": 0.5}, base="tuned-from")
            file = client.post("/files", files={"file": ("facts.jsonl", training_file())}).json()["id"]
            asked = client.post("/models/org/tuned/influence-index", json={"training_files": [file]})
            while (job := client.get(asked.headers["location"]).json())["state"] in ("queued", "running"):
                time.sleep(0.1)
            assert job["state"] == "succeeded", job
    return far, near


def register(client: httpx.Client, name: str, path: str, scaling: dict[str, float], **more: str) -> None:
    answer = client.post("/models", json={"name": name, "path": path, "scaling": scaling, **more})
    assert answer.status_code == 201, answer.text


def on(cluster: Cluster) -> dict[str, str]:
    return {"WHENCE_RAY_ADDRESS": cluster.address, "WHENCE_RAY_TOKEN_FILE": str(cluster.token)}


@contextmanager
def serving(models_dir: Path, **settings: str) -> Iterator[Server]:
    settings = {"WHENCE_MODELS_DIR": str(models_dir), "WHENCE_API_KEY": SECRET, "WHENCE_DEVICE": "cpu", **settings}
    with reachable_folder() as data_dir, running(data_dir, **settings) as server:
        with http(server) as client:
            for name, kind, scaling in MODELS:
                try:
                    register(client, name, name, scaling, kind=kind)
                except AssertionError as error:
                    raise AssertionError(f"{error}\n{server.output}") from None
        yield server


def http(server: Server) -> httpx.Client:
    return httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {SECRET}"}, timeout=120)
