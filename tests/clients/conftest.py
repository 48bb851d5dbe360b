"""One server with a tiny random model for all client tests, and the vendor's client in an environment of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_models
from tests.app.conftest import CHAT_TEMPLATE
from tests.clients.server import Server, objects, running, whence
from tests.postgres import reachable_folder

ROOT = Path(__file__).resolve().parents[2]
SECRET = "a-secret-of-the-tests"

Drive = Callable[..., Any]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_models.save(tmp_path_factory.mktemp("model"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def vision_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_image_text(tmp_path_factory.mktemp("model") / "tiny-vision")


@pytest.fixture(scope="session")
def server(model_folder: Path, vision_folder: Path) -> Iterator[Server]:
    models = {"tiny-lm": (model_folder, "causal-lm"), "tiny-vision": (vision_folder, "image-text-lm")}
    with reachable_folder() as data_dir:
        for name, (folder, kind) in models.items():
            added = whence(data_dir, "models", "add", name, str(folder), "--kind", kind, "--json")
            assert objects(added)[0]["name"] == name
        with running(data_dir, WHENCE_API_KEY=SECRET) as server:
            yield server


@pytest.fixture(scope="session")
def clients() -> Path:
    """The folder of the environments with the vendors' clients; made by `make clients` where they are out of date."""
    command = ["make", "--no-print-directory", "clients"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, f"the environment of the vendor's client cannot be made:\n{made.stdout}{made.stderr}"
    return ROOT


@pytest.fixture(scope="session")
def client_python(clients: Path) -> Path:
    return clients / ".venv-clients" / "bin" / "python"


@pytest.fixture(scope="session")
def drive(server: Server, client_python: Path) -> Drive:
    """Runs one scene of a script with the vendor's client against the server; what it printed as JSON."""
    return scenes(server, client_python, "error")


@pytest.fixture(scope="session")
def drive_seekr(server: Server, clients: Path) -> Drive:
    """The same with Seekr's client, which warns of its own ways with httpx; what it says of the server is an error."""
    return scenes(server, clients / ".venv-seekr" / "bin" / "python", "error:This SeekrFlow API")


def scenes(server: Server, python: Path, warnings: str) -> Drive:
    def run(script: str, scene: str, *, token: str = SECRET, path: str = "") -> Any:
        command = [python, "-W", warnings, Path(__file__).with_name(script), scene, server.url + path, token]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
