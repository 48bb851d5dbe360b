"""The command line as users run it: real processes, the embedded Postgres, a tiny model."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from app import cli, demo, registry
from app.refusals import Refusal
from app.settings import Settings
from tests import tiny_models
from tests.clients.server import environment, objects, running
from tests.postgres import running_server

SECRET = "a-secret-of-the-tests"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def data_dir() -> Iterator[Path]:
    """One data directory for the commands of this file, its database running all the time."""
    with running_server() as server:
        yield server.data_dir


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs one command inside this process, which has imported everything already."""

    def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        with monkeypatch.context() as patched:
            patched.setattr(os, "environ", environment(data_dir, **settings))
            patched.setattr(sys, "argv", ["whence", *arguments])
            with pytest.raises(SystemExit) as end:
                cli.main()
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, int(end.value.code or 0), printed.out, printed.err)

    return run


def fails(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a failed command leaves."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("whence: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_the_commands_need_no_torch_to_start() -> None:
    """Nor what only a store needs: `app.store` is all that imports it."""
    heavy = "{'torch', 'transformers', 'uvicorn', 'fastapi', 'fsspec'}"
    script = f"import sys, app.cli; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_version_is_the_installed_one(run: Run) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", run("version").stdout)


def test_a_key_is_created_listed_and_revoked(run: Run) -> None:
    made = objects(run("keys", "create", "reader", "--json"))[0]
    assert set(made) >= {"id", "secret", "name", "tenant", "scopes", "expires_at"}
    assert (made["tenant"], made["scopes"], made["expires_at"]) == ("default", ["read", "explain"], None)

    def listed() -> dict[str, object]:
        lines = objects(run("keys", "list", "--json"))
        return next(line for line in lines if line["id"] == made["id"])

    assert listed()["revoked_at"] is None and "secret" not in listed()
    assert run("keys", "revoke", made["id"]).returncode == 0
    assert listed()["revoked_at"] is not None


def test_a_key_takes_scopes_tenant_and_expiry(run: Run) -> None:
    arguments = ["keys", "create", "temporary", "--tenant", "lab", "--scope", "ingest", "--scope", "read"]
    made = objects(run(*arguments, "--expires", "90d", "--json"))[0]
    assert (made["tenant"], made["scopes"]) == ("lab", ["read", "ingest"])
    assert made["expires_at"] > made["created_at"]
    assert [key["name"] for key in objects(run("keys", "list", "--tenant", "lab", "--json"))] == ["temporary"]


def test_a_key_has_limits_of_its_own(run: Run) -> None:
    made = objects(run("keys", "create", "limited", "--rate", "60", "--budget", "2.5", "--json"))[0]
    named = ("requests_per_minute", "seconds_per_minute", "concurrency", "request_seconds")
    assert [made[name] for name in named] == [60, 2.5, None, None]
    changed = objects(run("keys", "limit", made["id"], "--rate", "0", "--concurrency", "4", "--largest", "9", "--json"))
    assert [changed[0][name] for name in named] == [0, 2.5, 4, 9.0] and "secret" not in changed[0]
    assert run("keys", "create", "x", "--rate", "-1").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["keys", "create", "x", "--expires", "soon"], "--expires"),
        (["keys", "create", "x", "--tenant", "No Slug"], "tenant"),
        (["keys", "revoke", "00000000-0000-0000-0000-000000000000"], "no such API key"),
        (["keys", "limit", "00000000-0000-0000-0000-000000000000", "--rate", "1"], "no such API key"),
        (["models", "remove", "nothing"], "no such model"),
        (["models", "add", "x", "/nowhere", "--kind", "causal-lm"], "no file or folder /nowhere"),
        (["check", "nothing"], "no model 'nothing'"),
    ],
)
def test_failures_are_one_line(run: Run, arguments: list[str], reason: str) -> None:
    assert reason in fails(run(*arguments))


def test_a_bad_setting_is_named_as_the_environment_names_it(run: Run) -> None:
    assert "WHENCE_PORT: " in fails(run("keys", "list", WHENCE_PORT="http"))


def test_a_database_that_is_not_there_is_one_line(run: Run) -> None:
    url = "postgresql://whence:hidden@127.0.0.1:1/whence"
    assert "hidden" not in fails(run("keys", "list", WHENCE_DATABASE_URL=url))


@pytest.mark.parametrize("length", ["0d", "d", "90", "-1d", "1y", "90 d", "1.5h"])
def test_lengths_of_time_are_strict(length: str) -> None:
    with pytest.raises(Refusal):
        registry.duration(length)


def test_a_model_is_added_listed_checked_and_removed(run: Run, model_folder: Path) -> None:
    arguments = ["models", "add", "tiny", str(model_folder), "--kind", "causal-lm", "--description", "small"]
    added = objects(run(*arguments, "--json"))[0]
    assert added["digest"].startswith("sha256:")
    assert objects(run("models", "list", "--json")) == [added]
    assert "is registered" in fails(run(*arguments))

    checked = run("check", "tiny")
    assert checked.returncode == 0 and "LlamaForCausalLM" in checked.stdout
    assert all(line["passed"] for line in objects(run("check", "tiny", "--json")))

    assert run("models", "remove", "tiny").returncode == 0
    assert objects(run("models", "list", "--json")) == []


def test_a_folder_without_a_model_is_refused(run: Run, tmp_path: Path) -> None:
    reason = fails(run("models", "add", "empty", str(tmp_path), "--kind", "causal-lm"))
    assert "config.json" in reason
    assert "kind must be one of: causal-lm" in fails(run("models", "add", "x", str(tmp_path), "--kind", "oracle"))
    for name in ("", "../x", "a/../b", "a b"):
        assert "name must be" in fails(run("models", "add", name, str(tmp_path), "--kind", "causal-lm"))


def test_a_port_in_use_is_found_before_anything_is_started(run: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"port {port}" in fails(run("serve", "--port", port, "--data-dir", str(tmp_path / "data")))
    assert not (tmp_path / "data").exists()


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_commands_work_beside_a_server(run: Run, data_dir: Path, model_folder: Path) -> None:
    with running(data_dir, WHENCE_API_KEY=SECRET) as server:
        made = objects(run("keys", "create", "beside", "--json"))[0]
        listing = httpx.get(f"{server.url}/models_available", headers=bearer(made["secret"]), timeout=60)
        assert listing.status_code == 200
        run("keys", "revoke", made["id"])
        assert (
            httpx.get(f"{server.url}/models_available", headers=bearer(made["secret"]), timeout=60).status_code == 401
        )

        added = ["models", "add", "beside", str(model_folder), "--kind", "causal-lm"]
        assert run(*added).returncode == 0
        question = {"model": "beside", "prompt": "Oslo is in", "target": " Norway"}
        answer = httpx.post(f"{server.url}/explain", json=question, headers=bearer(SECRET), timeout=60)
        assert answer.status_code == 200
        run("models", "remove", "beside")


def test_the_first_key_is_shown_once_and_ctrl_c_ends_in_good_order(new_data_dir: Path) -> None:
    with running(new_data_dir) as server:
        secret = re.search(r"whence_\S+", server.output)
        assert secret is not None
        assert httpx.get(f"{server.url}/models_available", headers=bearer(secret[0]), timeout=60).status_code == 200
        assert server.stop(signal.SIGINT) == 0
    with running(new_data_dir) as server:
        assert "whence_" not in server.output


def test_the_demo_key_is_private_and_kept_while_it_is_valid(run: Run, data_dir: Path) -> None:
    settings = Settings(data_dir=data_dir)

    def demo_key() -> str:
        return asyncio.run(cli.opened(settings, lambda database: demo.demo_key(database, settings)))

    first = demo_key()
    assert stat.S_IMODE((data_dir / "demo-key").stat().st_mode) == 0o600
    assert demo_key() == first
    keys = objects(run("keys", "list", "--json"))
    for key in keys:
        run("keys", "revoke", key["id"])
    assert demo_key() != first
    assert len(objects(run("keys", "list", "--json"))) == len(keys) + 1
