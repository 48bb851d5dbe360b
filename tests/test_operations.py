"""docs/operations.md, followed to the letter: a backup, a restore elsewhere, an upgrade from an older schema."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from alembic import command
from sqlalchemy import NullPool, create_engine, text

from app.backup import back_up, bring_back, kept
from app.refusals import Refusal
from app.settings import Settings
from storage.database import postgres_url
from storage.embedded import embedded_postgres
from storage.errors import DatabaseRefused, DumpFailed
from storage.migrations import _config
from tests import tiny_models
from tests.clients.server import environment, objects, running, whence
from tests.postgres import reachable_folder

GUIDE = (Path(__file__).parents[1] / "docs" / "operations.md").read_text(encoding="utf-8")
SECRET = "a-secret-of-the-tests"
LINES = b'{"messages": [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Oslo"}]}\n'


def blocks(heading: str) -> list[str]:
    """The shell blocks below a heading."""
    section = re.split(r"^## ", GUIDE, flags=re.MULTILINE)
    (found,) = [part for part in section if part.startswith(f"{heading}\n")]
    return re.findall(r"^```sh\n(.*?)^```$", found, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with reachable_folder() as folder:
        yield folder


def shell(place: Path, block: str) -> str:
    """Runs a block as it stands, in a folder whose data directory is `kept`."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    settings = environment(place / "kept") | {"PATH": path}
    done = subprocess.run(
        ["sh", "-euc", block], cwd=place, env=settings, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_everything_comes_back_elsewhere(place: Path) -> None:
    headers = {"Authorization": f"Bearer {SECRET}"}
    folder = tiny_models.save(place / "tiny-lm")
    objects(whence(place / "kept", "models", "add", "tiny-lm", str(folder), "--kind", "causal-lm", "--json"))
    with running(place / "kept", WHENCE_API_KEY=SECRET) as server, httpx.Client(headers=headers, timeout=60) as client:
        body = {"model": "tiny-lm", "prompt": "Anna lives in Oslo. Anna lives in", "target": " Oslo"}
        explained = client.post(f"{server.url}/explain", json=body).json()
        uploaded = client.post(
            f"{server.url}/files", files={"file": ("facts.jsonl", LINES)}, data={"purpose": "fine-tune"}
        )
        assert uploaded.status_code in (200, 201), uploaded.text
        file = uploaded.json()["id"]
        (back,) = blocks("Back up")
        shell(place, back)  # while the server goes on
        assert client.delete(f"{server.url}/files/{file}").status_code in (200, 204)
    assert stat.S_IMODE((place / "whence-backup.tar").stat().st_mode) == 0o600
    (restore,) = blocks("Restore")
    assert "WHENCE_API_KEY" in shell(place, restore)
    with (
        running(place / "restored", WHENCE_API_KEY=SECRET) as server,
        httpx.Client(headers=headers, timeout=60) as client,
    ):
        assert client.get(f"{server.url}/explanations/{explained['id']}").json()["id"] == explained["id"]
        assert client.get(f"{server.url}/files/{file}/content").content == LINES
        again = client.post(f"{server.url}/explain", json=body, timeout=60).json()
        assert again["id"] == explained["id"]  # served from storage


def test_an_older_schema_is_upgraded(place: Path) -> None:
    with embedded_postgres(place / "kept"):  # made by the test above; a start migrates to the newest
        pass
    old = place / "old"
    with (
        embedded_postgres(old) as url,
        create_engine(postgres_url(url), poolclass=NullPool).begin() as connection,
    ):
        command.upgrade(_config(connection), "0004")
        connection.execute(text("SELECT set_config('whence.tenant', 'default', true)"))
        connection.execute(text("INSERT INTO tenants (id) VALUES ('default')"))
    before, after = blocks("Upgrade")
    here = f"export WHENCE_DATA_DIR={old}\n"
    shell(place, here + before)
    assert "this version's schema" in shell(place, here + after)
    (made,) = objects(whence(old, "keys", "create", "me", "--json"))
    assert made["tenant"] == "default"


def test_what_cannot_be_whole_is_refused(place: Path) -> None:
    target = place / "whence-backup.tar"
    with pytest.raises(Refusal, match="exists: name a new file"):
        back_up(place / "kept", None, target)
    with pytest.raises(Refusal, match="is not empty"):
        bring_back(target, place / "restored", None)
    (place / "no-backup.tar").write_bytes(LINES)
    with pytest.raises(Refusal, match="cannot be read as a backup"):
        bring_back(place / "no-backup.tar", place / "nowhere", None)
    for content in (place / "restored" / "files").rglob("*"):
        if content.is_file():
            content.unlink()
    with pytest.raises(Refusal, match="training files and indexes are not in"):
        back_up(place / "restored", None, place / "half.tar")
    assert not list(place.glob("half.tar*"))
    with embedded_postgres(place / "kept") as url, pytest.raises(DatabaseRefused, match="below row-level security"):
        back_up(place / "kept", url, place / "empty.tar")


def test_a_broken_restore_starts_no_server(place: Path) -> None:
    broken = place / "broken.tar"
    with tarfile.open(place / "whence-backup.tar") as whole, tarfile.open(broken, "w") as archive:
        whole.extractall(place / "parts", filter="data")
        dump = place / "parts" / "database.dump"
        dump.write_bytes(dump.read_bytes()[:2000])
        for name in ("whence-backup.json", "database.dump"):
            archive.add(place / "parts" / name, name)
    with pytest.raises(DumpFailed):
        bring_back(broken, place / "half", None)
    done = whence(place / "half", "keys", "list")
    assert done.returncode == 1 and "not wholly restored" in done.stderr


def test_the_cluster_and_unfinished_work_stay_out(tmp_path: Path) -> None:
    for name in (
        "postgres/PG_VERSION",
        "postgres.password",
        "files/a/1",
        "files/a/1.x.part",
        "indexes/a/.building-1/x",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [str(path.relative_to(tmp_path)) for path in kept(tmp_path)] == ["files/a/1"]
    (tmp_path / "models").symlink_to(tmp_path / "indexes")
    with pytest.raises(Refusal, match="is a link"):
        list(kept(tmp_path))


def test_secrets_come_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "key"
    secret.write_text(f"{SECRET}\n")
    monkeypatch.setenv("WHENCE_API_KEY_FILE", str(secret))
    settings = Settings()
    assert settings.api_key is not None and settings.api_key.get_secret_value() == SECRET
    assert SECRET not in repr(settings)
    monkeypatch.setenv("WHENCE_API_KEY", "another-secret-of-the-tests")
    with pytest.raises(ValueError, match="both set"):
        Settings()
    monkeypatch.delenv("WHENCE_API_KEY")
    for content, told in ((b"", "is empty"), (b"short", "at least 16"), (b"\xff" * 20, "cannot be read")):
        secret.write_bytes(content)
        with pytest.raises(ValueError, match=told):
            Settings()


def test_the_password_of_a_url_may_lie_in_a_file(place: Path) -> None:
    with embedded_postgres(place / "kept") as url:
        parts = postgres_url(url)
        (place / "password").write_text(f"{parts.password}\n")
        bare = parts.set(password=None, drivername="postgresql").render_as_string()
        settings = {"WHENCE_DATABASE_URL": bare, "WHENCE_DATABASE_PASSWORD_FILE": str(place / "password")}
        assert "WHENCE_API_KEY" in json.dumps(objects(whence(place / "other", "keys", "list", "--json", **settings)))
        (place / "password").write_text("wrong\n")
        refused = whence(place / "other", "keys", "list", **settings)
        assert refused.returncode == 1 and "wrong" not in refused.stderr
