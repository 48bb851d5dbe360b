"""Brings a database to the schema of this program (the scripts lie in `alembic/`)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, NullPool, create_engine, select, text

from storage import monitored_tables, tables, training_tables
from storage.database import CONNECT_TIMEOUT_S, Database, postgres_url, translated_errors
from storage.embedded import embedded_postgres
from storage.errors import DatabaseRefused

SCRIPTS = Path(__file__).resolve().parent.parent / "alembic"
LOCK = 0x7768656E6365  # "whence": the advisory lock of whoever migrates


def _ours(_object: object, name: str | None, kind: str, reflected: bool, _counterpart: object) -> bool:
    """Whether alembic should look at a table: the job library brings and changes its own."""
    return not (kind == "table" and reflected and (name or "").startswith("procrastinate_"))


DECLARING = (tables, monitored_tables, training_tables)
SCHEMA: MetaData = tables.Table.metadata
"""Of all tables: it has those of every file that declares some, since these have been imported here."""
OPTIONS: dict[str, Any] = {"compare_type": True, "include_object": _ours}


def migrate(url: str) -> None:
    """Brings the database to this program's schema; of several programs that try, one works and the others wait.

    Raises DatabaseRefused when the role stands above row-level security or may not create tables, or when the schema is
    newer than this program; DatabaseUnavailable without a connection.
    """
    engine = create_engine(
        postgres_url(url), poolclass=NullPool, hide_parameters=True, connect_args={"connect_timeout": CONNECT_TIMEOUT_S}
    )
    with translated_errors(), engine.begin() as connection:
        _refuse_privileged_role(connection)
        _refuse_guest(connection)
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})  # ends with the transaction
        _refuse_newer_schema(connection)
        command.upgrade(_config(connection), "head")


def _refuse_privileged_role(connection: Connection) -> None:
    privileged = text("SELECT rolname FROM pg_roles WHERE rolname = current_user AND (rolsuper OR rolbypassrls)")
    role = connection.scalar(privileged)
    if role is not None:
        raise DatabaseRefused(
            f"the database role {role} is a superuser or bypasses row-level security, which keeps tenants apart: make "
            "a plain role and a database, and use them in the database URL:\n"
            "CREATE ROLE whence LOGIN PASSWORD '...';\n"
            "CREATE DATABASE whence OWNER whence;"
        )


def _refuse_guest(connection: Connection) -> None:
    if not connection.scalar(text("SELECT has_schema_privilege(coalesce(current_schema(), 'public'), 'CREATE')")):
        role, database = connection.execute(text("SELECT current_user, current_database()")).one()
        raise DatabaseRefused(
            f"the database role {role} may not create tables in the database {database}: let it own the database:\n"
            f"ALTER DATABASE {database} OWNER TO {role};"
        )


def _refuse_newer_schema(connection: Connection) -> None:
    found = MigrationContext.configure(connection).get_current_heads()
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    unknown = sorted(set(found) - known)
    if unknown:
        raise DatabaseRefused(
            f"the database was written by a newer version of whence (revision {', '.join(unknown)}): upgrade whence, "
            "or use another data directory or database"
        )


def _config(connection: Connection | None = None) -> Config:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


@cache
def _head() -> str | None:
    return ScriptDirectory.from_config(_config()).get_current_head()


async def migrated(database: Database) -> bool:
    """Whether the database has exactly this program's schema. Raises DatabaseUnavailable without a connection."""
    async with database.transaction() as session:
        if await session.scalar(select(text("to_regclass('alembic_version') IS NULL"))):
            return False
        return bool(await session.scalar(text("SELECT version_num FROM alembic_version")) == _head())


def draft(message: str) -> None:
    """For developers: writes a migration with the difference between the tables and the existing migrations."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)  # under root the server's user passes through
        with embedded_postgres(folder) as url:
            migrate(url)
            with create_engine(postgres_url(url), poolclass=NullPool).begin() as connection:
                command.revision(_config(connection), message, autogenerate=True)
