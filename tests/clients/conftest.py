"""One server with a tiny random model for all client tests, and the vendor's client in an environment of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import tiny_models
from tests.app.conftest import CHAT_TEMPLATE
from tests.clients.server import Server, objects, running, whence
from tests.clients.stages import stage
from tests.fine_tunes import save_base, save_fine_tune, training_file
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
        with running(data_dir, WHENCE_API_KEY=SECRET, WHENCE_CONTEXT_MODEL="tiny-lm") as server:
            yield server


@pytest.fixture(scope="session")
def fine_tunes(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """The same server with `org/tuned`, fine-tuned from `tuned-from` and with its index, and with `org/building`."""
    folder = tmp_path_factory.mktemp("fine-tune")
    tuned = save_fine_tune(folder / "tuned", save_base(folder / "base"))
    data = folder / "facts.jsonl"
    data.write_bytes(training_file())
    kind = ("--kind", "causal-lm", "--json")
    based = (str(tuned), "--base", "tuned-from", *kind)
    for arguments in (
        ("tuned-from", str(folder / "base"), *kind),
        ("org/tuned", *based, "--training-data", str(data)),
        ("org/building", *based),
    ):
        objects(whence(server.data_dir, "models", "add", *arguments))
    return server


@pytest.fixture
def building(fine_tunes: Server) -> Iterator[None]:
    """The index of `org/building` is being built, and would be for much longer than a test takes."""
    pairs = training_file([(f"Who keeps ship {number}?", "Ida.") for number in range(10_000)])
    headers = {"Authorization": f"Bearer {SECRET}"}
    with httpx.Client(base_url=fine_tunes.url, headers=headers, timeout=60) as client:
        file = client.post("/files", files={"file": ("many.jsonl", pairs)}).raise_for_status().json()["id"]
        asked = client.post("/models/org/building/influence-index", json={"training_files": [file]})
        yield
        client.delete(f"/jobs/{asked.raise_for_status().json()['id']}").raise_for_status()


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
        return json.loads(stage(python, warnings).printed(script, scene, server.url + path, token))

    return run


@pytest.fixture(scope="session")
def arthur(clients: Path) -> Callable[..., Any]:
    """Runs a script with Arthur's client, which prints its progress before what it found."""
    python = clients / ".venv-arthur" / "bin" / "python"
    if not python.exists():
        pytest.skip("arthurai runs on Python 3.11 alone")
    return lambda script, *arguments: json.loads(stage(python).printed(script, *arguments).rpartition("\nfound ")[2])
