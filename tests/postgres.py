"""A real Postgres for tests: the embedded one, in a temporary folder that the server's user can reach."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg.sql import SQL, Identifier
from sqlalchemy import make_url

from storage.embedded import embedded_postgres


@dataclass(frozen=True)
class Server:
    """A running embedded server; `url` is that of the plain role and its database."""

    data_dir: Path
    url: str

    @property
    def superuser_url(self) -> str:
        password = (self.data_dir / "postgres.superuser-password").read_text().strip()
        url = make_url(self.url).set(username="postgres", password=password, database="postgres")
        return url.render_as_string(hide_password=False)

    @contextmanager
    def empty_database(self) -> Iterator[str]:
        """The URL of a new database without tables, owned by the plain role."""
        name = Identifier(f"empty_{uuid.uuid4().hex}")
        with connection(self.superuser_url) as superuser:
            superuser.execute(SQL("CREATE DATABASE {} OWNER whence").format(name))
            yield make_url(self.url).set(database=name._obj[0]).render_as_string(hide_password=False)
            superuser.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(name))


@contextmanager
def running_server() -> Iterator[Server]:
    with reachable_folder() as folder, embedded_postgres(folder) as url:
        yield Server(folder, url)


@contextmanager
def reachable_folder() -> Iterator[Path]:
    """A temporary folder; where the tests run as root, one that the server's user can pass through."""
    with tempfile.TemporaryDirectory(prefix="whence-test-") as name:
        folder = Path(name)
        if os.geteuid() == 0:
            folder.chmod(0o711)
        yield folder


@contextmanager
def connection(url: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """A plain autocommit connection, past the program's own."""
    parts = make_url(url)
    host, port = str(parts.query["host"]), str(parts.query["port"])
    with psycopg.connect(
        host=host,
        port=port,
        user=parts.username,
        password=parts.password,
        dbname=parts.database,
        autocommit=True,
    ) as opened:
        yield opened
