"""The embedded server: who starts it, who stops it, and what is left after a kill."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest

from storage import cluster
from storage.embedded import embedded_postgres, revive
from storage.errors import DatabaseRefused, EmbeddedServerFailed
from storage.migrations import migrate
from tests.postgres import Server, connection, reachable_folder, running_server
from tests.storage.test_migrations import in_processes

ROOT = Path(__file__).resolve().parents[2]
USER = """
import sys
from pathlib import Path
from storage.embedded import embedded_postgres
with embedded_postgres(Path(sys.argv[1])) as url:
    print(url, flush=True)
    sys.stdin.read()
"""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="about running as root")
linux = pytest.mark.skipif(sys.platform != "linux", reason="about a signal that Linux sends")


@pytest.fixture
def data_dir() -> Iterator[Path]:
    with reachable_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data directory whose cluster exists, for tests that do not mind what is in it."""
    with reachable_folder() as folder:
        with embedded_postgres(folder):
            pass
        yield folder


@contextmanager
def user(data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that uses the server until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", USER, str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    with process:
        yield process
        if process.poll() is None:
            process.communicate(timeout=120)


def url_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert url.startswith("postgresql+psycopg://whence:")
    return url


def servers(data_dir: Path) -> set[int]:
    """All processes of the server, which work in its data folder."""
    place = (data_dir / "postgres").resolve()
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").readlink() == place:
                found.add(int(process.name))
    return found


def keeper(data_dir: Path) -> int:
    marks = (b"keeper.py", os.fsencode(data_dir / "postgres.log"))
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (process / "cmdline").read_bytes()
            if all(mark in command for mark in marks):
                return int(process.name)
    raise AssertionError("no keeper")


def postmaster(data_dir: Path) -> int:
    return int((data_dir / "postgres" / "postmaster.pid").read_text().split()[0])


def wait(condition: Callable[[], bool], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(url: str) -> bool:
    with suppress(psycopg.OperationalError), connection(url) as plain:
        return plain.execute("SELECT 1").fetchone() == (1,)
    return False


def test_data_survive_and_the_server_goes_with_its_killed_user(made: Path) -> None:
    with user(made) as process:
        with connection(url_of(process)) as plain:
            plain.execute("CREATE TABLE kept AS SELECT 42 AS answer")
            assert len(servers(made)) > 3
        process.kill()
        wait(lambda: not servers(made))
    with embedded_postgres(made) as url, connection(url) as plain:
        assert plain.execute("SELECT answer FROM kept").fetchone() == (42,)
        plain.execute("SELECT '[1,2,3]'::vector")
    assert not servers(made)


def test_a_start_right_after_a_kill_waits_for_the_former_server(made: Path) -> None:
    with user(made) as process:
        url_of(process)
        process.kill()
        process.wait()
        with embedded_postgres(made) as url:
            assert alive(url)
            time.sleep(0.5)
            assert alive(url)


def test_nobody_takes_the_server_away_from_another(made: Path) -> None:
    with user(made) as first:
        url_of(first)
        with user(made) as second:
            url = url_of(second)
            first.communicate(timeout=120)
            time.sleep(0.5)
            assert alive(url)
            with embedded_postgres(made) as same:
                assert same == url
            assert alive(url)
    wait(lambda: not servers(made))


@linux
def test_the_server_dies_with_its_keeper(made: Path) -> None:
    with user(made) as process:
        url = url_of(process)
        os.kill(keeper(made), signal.SIGKILL)
        wait(lambda: not servers(made))
        with embedded_postgres(made) as same:  # a new keeper serves the old user too
            assert same == url
    assert not servers(made)


def test_a_killed_server_is_started_again(made: Path) -> None:
    with embedded_postgres(made) as url:
        killed = postmaster(made)
        os.kill(killed, signal.SIGKILL)
        wait(lambda: killed not in servers(made) and alive(url))


def test_signals_to_the_terminal_or_service_leave_it_alone(made: Path) -> None:
    with embedded_postgres(made) as url:
        assert os.getsid(postmaster(made)) not in (os.getsid(0), os.getsid(keeper(made)))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(keeper(made), number)
        time.sleep(0.3)
        assert alive(url)


def test_an_interrupted_first_start_is_made_up_for(data_dir: Path) -> None:
    with user(data_dir) as process:
        wait(lambda: any(data_dir.glob("postgres.new-*/data/base")))
        process.kill()
    assert not (data_dir / "postgres").exists()
    with embedded_postgres(data_dir) as url:
        assert alive(url)
    assert not list(data_dir.glob("postgres.new-*"))


def test_twenty_at_once(data_dir: Path) -> None:
    def use(number: int) -> None:
        time.sleep(number % 5 * 0.3)  # some come while others go
        with embedded_postgres(data_dir) as url:
            assert alive(url)

    assert in_processes(20, use) == [0] * 20
    assert not servers(data_dir)


def test_a_long_path_has_its_socket_elsewhere(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "STATE", data_dir / "state")
    deep = data_dir / ("d" * 60) / ("e" * 60)
    with embedded_postgres(deep) as url, embedded_postgres(deep) as same:
        assert url == same
        assert alive(url)
        folder = cluster.locate(deep).socket_dir
        assert not folder.is_relative_to(deep)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    shutil.rmtree(folder)


def test_somebody_elses_socket_folder_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "SHORT", tmp_path)
    data, me = Path("/" + "d" * 120), cluster.Account(os.geteuid(), os.getegid(), switched=False)
    folder = cluster._socket_dir(data, me)
    assert cluster._socket_dir(data, me) == folder
    folder.chmod(0o755)
    with pytest.raises(EmbeddedServerFailed, match="not a private folder"):
        cluster._socket_dir(data, me)
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(EmbeddedServerFailed, match="not a private folder"):
        cluster._socket_dir(data, me)


@as_root
def test_under_root_private_folders_stay_private(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "STATE", data_dir / "state")
    with tempfile.TemporaryDirectory() as name:  # 0700
        private = Path(name)
        package = Path(str(cluster.find_spec(cluster.WHEEL).submodule_search_locations[0]))
        installed = private / cluster.WHEEL
        shutil.copytree(package / "pginstall18", installed / "pginstall18", ignore=shutil.ignore_patterns("include"))
        shutil.copytree(package.with_name(f"{cluster.WHEEL}.libs"), private / f"{cluster.WHEEL}.libs")
        spec = SimpleNamespace(submodule_search_locations=[str(installed)])
        monkeypatch.setattr(cluster, "find_spec", lambda _name: spec)
        for _ in range(2):
            with embedded_postgres(private / "data") as url:
                assert alive(url)
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
        assert (private / "data" / "postgres").resolve().parent == data_dir / "state" / "clusters"
        assert [path.name[:2] for path in (data_dir / "state" / "postgres").iterdir()] == ["0."]
        # A data directory moved away keeps its data, and a new one in its place gets others.
        (private / "data").rename(private / "moved")
        (private / "data").mkdir()
        assert cluster.locate(private / "data").data.name == f"{cluster.locate(private / 'moved').data.name}-2"


@as_root
def test_under_root_the_server_is_nobodys(made: Path) -> None:
    with embedded_postgres(made):
        assert Path(f"/proc/{postmaster(made)}").stat().st_uid == (made / "postgres").stat().st_uid != 0


def test_files_are_private_and_the_role_is_plain(postgres: Server) -> None:
    mine = postgres.data_dir.glob("postgres*")  # servers of other tests keep files beside them
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in mine}
    assert modes.pop("postgres") == 0o700
    assert set(modes) == {
        "postgres.log",
        "postgres.password",
        "postgres.superuser-password",
        "postgres.users.lock",
        "postgres.keeper.lock",
    }
    assert set(modes.values()) == {0o600}
    with connection(postgres.url) as plain:
        role = plain.execute("SELECT rolsuper, rolbypassrls, rolcreaterole FROM pg_roles WHERE rolname = current_user")
        assert role.fetchone() == (False, False, False)
        listening = plain.execute("SELECT current_setting('listen_addresses'), current_setting('fsync')")
        assert listening.fetchone() == ("", "on")
    for username in ("whence", "postgres"):
        with (
            pytest.raises(psycopg.OperationalError, match="password authentication failed"),
            connection(postgres.url.replace("whence:", f"{username}:x", 1)),
        ):
            pass


def test_the_log_quotes_no_statements_and_no_rows(postgres: Server) -> None:
    with connection(postgres.url) as plain:
        for statement in (
            "SELECT 'my prompt' FROM",
            "SELECT %s::text::integer",
            "INSERT INTO models (name, tenant_id) VALUES (%s, 'x')",
        ):
            with pytest.raises(psycopg.Error):
                plain.execute(statement, ["my prompt"] if "%s" in statement else None)
    log = (postgres.data_dir / "postgres.log").read_text()
    assert "database system is ready" in log
    assert "my prompt" not in log


def test_data_of_another_major_are_refused(data_dir: Path) -> None:
    (data_dir / "postgres").mkdir()
    version = data_dir / "postgres" / "PG_VERSION"
    version.write_text("17\n")
    if os.geteuid() == 0:
        shutil.chown(version, "nobody")
    with pytest.raises(DatabaseRefused, match=r"PostgreSQL 17 .* PostgreSQL 18: dump .* WHENCE_DATABASE_URL"):
        embedded_postgres(data_dir).__enter__()


def test_a_lost_password_file_is_told(made: Path) -> None:
    password = made / "postgres.password"
    kept = password.rename(made / "kept")
    with pytest.raises(EmbeddedServerFailed, match=r"put back postgres\.password"):
        embedded_postgres(made).__enter__()
    kept.replace(password)
    assert not servers(made)


def test_a_server_that_cannot_start_says_why(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cluster.SETTINGS, "shared_buffers", "nonsense")
    with pytest.raises(EmbeddedServerFailed, match="shared_buffers"):
        embedded_postgres(made).__enter__()


def test_an_unwritable_data_directory_is_told() -> None:
    with pytest.raises(EmbeddedServerFailed, match="use another data directory, or set WHENCE_DATABASE_URL"):
        embedded_postgres(Path("/proc/whence")).__enter__()


def test_a_server_whose_keeper_was_killed_is_started_again() -> None:
    with running_server() as server:
        migrate(server.url)
        postmaster = int((server.data_dir / "postgres" / "postmaster.pid").read_text().split()[0])
        keeper = int(Path(f"/proc/{postmaster}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(keeper, signal.SIGKILL)
        revive(server.data_dir)
        with connection(server.url) as found:
            assert found.execute("SELECT count(*) FROM tenants").fetchone() == (0,)
