"""Migrations: once whoever comes, never over a newer schema, never as a role that sees all tenants."""

from __future__ import annotations

import os
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import NullPool, create_engine

from storage import migrations
from storage.database import Database, postgres_url
from storage.errors import DatabaseRefused, DatabaseUnavailable
from storage.migrations import OPTIONS, SCHEMA, migrate, migrated
from tests.postgres import Server, connection


def in_processes(count: int, work: Callable[[int], None]) -> list[int]:
    """Does the work in that many forks at once; their exit statuses."""
    children = []
    for number in range(count):
        child = os.fork()
        if not child:
            status = 1
            try:
                work(number)
                status = 0
            except BaseException:  # noqa: BLE001 - the fork must not run the rest of the tests
                traceback.print_exc()
            os._exit(status)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


async def test_only_a_migrated_database_is_ready(postgres: Server) -> None:
    with postgres.empty_database() as url:
        database = Database.connect(url, pool_size=1)
        assert not await migrated(database)
        migrate(url)
        migrate(url)
        assert await migrated(database)
        await database.close()


def test_servers_that_start_at_once_migrate_once(postgres: Server) -> None:
    with postgres.empty_database() as url:
        assert in_processes(4, lambda _number: migrate(url)) == [0] * 4
        with connection(url) as plain:
            assert plain.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)


def test_the_migrations_make_the_tables_as_declared(postgres: Server) -> None:
    engine = create_engine(postgres_url(postgres.url), poolclass=NullPool)
    with engine.connect() as plain:
        assert compare_metadata(MigrationContext.configure(plain, opts=OPTIONS), SCHEMA) == []


async def test_a_newer_schema_is_refused(postgres: Server) -> None:
    with postgres.empty_database() as url:
        migrate(url)
        with connection(url) as plain:
            plain.execute("UPDATE alembic_version SET version_num = '9999'")
        with pytest.raises(DatabaseRefused, match=r"newer version of whence \(revision 9999\): upgrade whence"):
            migrate(url)
        database = Database.connect(url, pool_size=1)
        assert not await migrated(database)
        await database.close()


def test_a_superuser_is_refused(postgres: Server) -> None:
    with pytest.raises(DatabaseRefused, match="CREATE ROLE whence LOGIN PASSWORD"):
        migrate(postgres.superuser_url)


def test_a_role_above_row_level_security_is_refused(postgres: Server) -> None:
    with connection(postgres.superuser_url) as superuser:
        superuser.execute("CREATE ROLE passer LOGIN BYPASSRLS PASSWORD 'passer'")
        url = postgres_url(postgres.superuser_url).set(username="passer", password="passer")
        with pytest.raises(DatabaseRefused, match="role passer is a superuser or bypasses"):
            migrate(url.render_as_string(hide_password=False))
        superuser.execute("DROP ROLE passer")


def test_a_guest_is_refused(postgres: Server) -> None:
    with connection(postgres.superuser_url) as superuser:
        superuser.execute("CREATE ROLE guest LOGIN PASSWORD 'guest'")
        url = postgres_url(postgres.superuser_url).set(username="guest", password="guest")
        with pytest.raises(DatabaseRefused, match="ALTER DATABASE postgres OWNER TO guest"):
            migrate(url.render_as_string(hide_password=False))
        superuser.execute("DROP ROLE guest")


def test_a_draft_finds_nothing_left_to_migrate(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "embedded_postgres", lambda _folder: postgres.empty_database())
    scripts = shutil.copytree(migrations.SCRIPTS, tmp_path / "alembic", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(migrations, "SCRIPTS", scripts)
    migrations.draft("a change")
    (drafted,) = scripts.glob("versions/*_a_change.py")
    assert drafted.read_text().count("    pass\n") == 2


def test_no_database_there() -> None:
    with pytest.raises(DatabaseUnavailable):
        migrate("postgresql://u:p@/d?host=/nonexistent")
