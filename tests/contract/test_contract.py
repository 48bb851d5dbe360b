"""Everything that the description says, held against a running server by schemathesis, and everything it does not say.

All operations of all dialects, all checks: no 5xx, documented statuses, types, headers and schemas only, what does not
fit is refused, what needs a key refuses without, what is gone stays gone. `schemathesis.toml` says where a check cannot
hold. WHENCE_FUZZ_EXAMPLES=300 sends the whole of the coverage phase, and so many random requests to each operation.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.settings import Settings
from storage.migrations import migrate
from tests.contract.configuration import configuration, operations, prepared
from tests.contract.served import KEY, Stored, fill, save_models, served
from tests.postgres import Server

LONG = int(os.environ.get("WHENCE_FUZZ_EXAMPLES", "0"))
EXAMPLES, EVERY = (LONG, 1) if LONG else (4, 24)


@dataclass(frozen=True)
class Target:
    url: str
    stored: Stored
    document: dict[str, Any]


@pytest.fixture(scope="module")
def target(postgres: Server, new_folder: Path) -> Iterator[Target]:
    save_models(new_folder / "models")
    with postgres.empty_database() as database:
        migrate(database)
        settings = Settings.model_validate(
            {
                "data_dir": new_folder,
                "database_url": database,
                "api_key": KEY,
                "models_dir": new_folder / "models",
                "device": "cpu",
                "threads": 1,
                "deadline_seconds": 30,
                "log_level": "warning",
            }
        )
        with served(settings) as url:
            stored = fill(url, new_folder / "models")
            document = httpx.get(f"{url}/openapi.json", headers={"Authorization": f"Bearer {KEY}"}, timeout=60).json()
            yield Target(url, stored, prepared(document, stored))


@pytest.fixture(scope="module")
def new_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contract")
    (folder / "models").mkdir()
    return folder


@pytest.mark.timeout(900 + 300 * LONG)
def test_the_server_is_what_its_description_says(target: Target, tmp_path: Path) -> None:
    (tmp_path / "openapi.json").write_text(json.dumps(target.document))
    (tmp_path / "schemathesis.toml").write_text(configuration(target.document, target.stored))
    done = schemathesis(target, tmp_path)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
    count = len(list(operations(target.document)))
    assert f"Selected: {count}/{count}\n  Tested: {count}\n" in done.stdout
    assert httpx.get(f"{target.url}/readyz", timeout=60).status_code == 200


def schemathesis(target: Target, folder: Path) -> subprocess.CompletedProcess[str]:
    arguments = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", folder / "schemathesis.toml"),
        *("run", folder / "openapi.json", "--url", target.url, "--max-examples", str(EXAMPLES)),
        *("--seed", "6", "--generation-deterministic", "--no-color"),
    ]
    kept = [id for name, ids in target.stored.ids.items() if not name.startswith("spare-") for id in ids]
    own = {
        "SCHEMATHESIS_HOOKS": "tests.contract.hooks",
        "WHENCE_TEST_KEPT": json.dumps(kept),
        "WHENCE_TEST_EVERY": str(EVERY),
        "WHENCE_TEST_KEY": KEY,
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    return subprocess.run(
        arguments, env=os.environ | own, cwd=folder, capture_output=True, text=True, check=False
    )  # fmt: skip
