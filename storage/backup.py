"""A dump of the whole database, and a database from one: Postgres's own pg_dump and pg_restore, as they come with it.

Both need a role above row-level security, which Whence itself never uses: any other would see no tenant's rows, and the
dump of it would be whole to look at and empty.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, NullPool, create_engine, text

from storage import cluster as clusters
from storage.cluster import Account
from storage.database import CONNECT_TIMEOUT_S, postgres_url, translated_errors
from storage.embedded import url_of
from storage.errors import DatabaseRefused, DumpFailed

KEPT = {
    "files": ("training_files", "SELECT tenant_id, id, encode(digest, 'hex') FROM training_files"),
    "indexes": (
        "influence_indexes",
        "SELECT tenant_id, id, facts ->> 'digest' FROM influence_indexes WHERE state = 'ready'",
    ),
}
"""Tables whose rows' content lies in the data directory, as `<folder>/<tenant>/<id>`, and what stands for it; older
schemas lack some."""

REBASED = "UPDATE models SET {column} = :new || substr({column}, length(:old) + 1) WHERE starts_with({column}, :old)"


@dataclass(frozen=True, slots=True)
class Dumped:
    """What a dump holds: the schema's revision, and the contents that its rows need beside it."""

    revision: str
    contents: Mapping[str, str]  # digests, by paths below the data directory


def superuser_url(data_dir: Path) -> str:
    """Of the running embedded server, past row-level security: for backups alone."""
    cluster = clusters.locate(data_dir.resolve())
    return url_of(cluster, "postgres", cluster.passwords.superuser)


def dump(url: str, target: Path) -> Dumped:
    """Writes all tables as they are at one moment, while others go on writing.

    Raises DatabaseRefused for a role below row-level security and DumpFailed with pg_dump's own words.
    """
    with _connected(url) as connection:
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"))
        _refuse_plain_role(connection)
        snapshot = connection.scalar(text("SELECT pg_export_snapshot()"))
        revision = connection.scalar(text("SELECT version_num FROM alembic_version"))
        found = dict(_contents(connection))
        _run("pg_dump", url, "--format=custom", f"--snapshot={snapshot}", f"--file={target}")
    return Dumped(str(revision), found)


def restore(url: str, source: Path, moved: Mapping[str, str]) -> None:
    """Fills a database without tables from a dump, wholly or not at all.

    `moved` names folders that lie elsewhere now: paths of models below the first are rewritten to the second. Raises
    DatabaseRefused for a role below row-level security or a database that has tables, DumpFailed with pg_restore's own
    words.
    """
    with _connected(url) as connection:
        _refuse_plain_role(connection)
        if connection.scalar(text("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")):
            raise DatabaseRefused("the database has tables already: restore into an empty one")
    _run("pg_restore", url, "--single-transaction", "--exit-on-error", str(source))
    with _connected(url) as connection:
        for old, new in moved.items():
            for column in ("path", "base_path"):
                connection.execute(text(REBASED.format(column=column)), {"old": old, "new": new})


@contextmanager
def _connected(url: str) -> Iterator[Connection]:
    """One transaction, its errors our own."""
    engine = create_engine(
        postgres_url(url), poolclass=NullPool, hide_parameters=True, connect_args={"connect_timeout": CONNECT_TIMEOUT_S}
    )
    with translated_errors(), engine.begin() as connection:
        yield connection


def _refuse_plain_role(connection: Connection) -> None:
    above = text("SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user")
    if not connection.scalar(above):
        raise DatabaseRefused(
            "this role is below row-level security and sees no tenant's rows: use a superuser, or a role with BYPASSRLS"
        )


def _contents(connection: Connection) -> Iterator[tuple[str, str]]:
    for folder, (table, rows) in KEPT.items():
        if connection.scalar(text("SELECT to_regclass(:table) IS NOT NULL"), {"table": table}):
            for tenant, id, digest in connection.execute(text(rows)):
                yield f"{folder}/{tenant}/{id}", digest


def _run(program: str, url: str, *arguments: str) -> None:
    parts = postgres_url(url)
    query = {name: str(value) for name, value in parts.query.items()}
    places = {
        "PGHOST": parts.host or query.pop("host", None),
        "PGPORT": str(parts.port or query.pop("port", 5432)),
        "PGUSER": parts.username,
        "PGPASSWORD": str(parts.password) if parts.password is not None else None,
        "PGDATABASE": parts.database,
        "PGSSLMODE": query.get("sslmode"),
    }
    binary = clusters.binaries(Account(os.geteuid(), os.getegid(), switched=False)) / program
    target = [f"--dbname={parts.database}"] if program == "pg_restore" else []
    done = subprocess.run(  # noqa: S603 - the wheel's own binaries; the password goes in the environment, not the command
        [str(binary), "--no-password", *target, *arguments],
        env={name: value for name, value in places.items() if value is not None},
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    if done.returncode:
        raise DumpFailed(f"{program}: {done.stderr.strip().splitlines()[0] if done.stderr.strip() else 'failed'}")
