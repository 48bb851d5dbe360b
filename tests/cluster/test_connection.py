"""Which clusters are joined: held against the head of a real one, with its token authentication on and off."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.cluster.connection import check_guarded
from app.refusals import Refusal
from app.settings import Settings
from tests.cluster.nodes import HEAD, free_port

TOKEN, OTHER = secrets.token_hex(32), secrets.token_hex(32)

Head = Callable[[str], str]


@pytest.fixture
def head(ray: None, tmp_path: Path) -> Iterator[Head]:
    """Starts the server at a cluster's head, alone, in that mode; where it is."""
    found = find_spec("ray")
    assert found is not None and found.origin is not None
    program = Path(found.origin).parent / "core/src/ray/gcs/gcs_server"
    port, started = free_port(), list[subprocess.Popen[bytes]]()

    def start(mode: str) -> str:
        options = [f"--gcs_server_port={port}", f"--node-ip-address={HEAD}", f"--session-dir={tmp_path}"]
        options += [f"--log_dir={tmp_path}", "--config_list=e30=", "--session-name=s", f"--node-id={'ab' * 28}"]
        given = os.environ | {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": TOKEN}
        quiet = subprocess.DEVNULL
        started.append(subprocess.Popen([program, *options], env=given, stdout=quiet, stderr=quiet))
        for _ in range(1200):
            with suppress(OSError), socket.create_connection((HEAD, port), timeout=1):
                break
            time.sleep(0.05)
        return f"{HEAD}:{port}"

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_one_that_asks_for_its_token_is_joined_with_it_alone(head: Head) -> None:
    address = head("token")
    check_guarded(address, TOKEN)
    with pytest.raises(Refusal, match="asks for another token") as refused:
        check_guarded(address, OTHER)
    assert TOKEN not in str(refused.value) and OTHER not in str(refused.value)


def test_one_that_lets_anybody_in_is_refused(head: Head) -> None:
    with pytest.raises(Refusal, match="lets anybody in"):
        check_guarded(head("disabled"), TOKEN)


def test_one_that_is_not_there_is_refused(ray: None) -> None:
    with pytest.raises(Refusal, match="cannot be reached"):
        check_guarded(f"{HEAD}:{free_port()}", TOKEN)


def test_an_address_needs_a_token_unless_that_is_allowed() -> None:
    with pytest.raises(ValidationError, match="WHENCE_RAY_TOKEN_FILE"):
        Settings(ray_address="head:6379")
    assert Settings(ray_address="head:6379", ray_without_token=True).ray_token is None


@pytest.mark.parametrize("wrong", ["auto", "local", "ray://head:10001", "http://head:8265", "head"])
def test_an_address_is_that_of_a_head(wrong: str) -> None:
    """Others would start a cluster of their own, or go through a port that runs anybody's programs."""
    with pytest.raises(ValidationError):
        Settings(ray_address=wrong, ray_without_token=True)


def test_the_token_comes_from_a_file_and_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    settings = Settings.model_validate({"ray_address": "head:6379", "ray_token_file": str(file)})
    assert settings.ray_token is not None and settings.ray_token.get_secret_value() == TOKEN
    assert TOKEN not in repr(settings)
