"""What docs/scaling.md says of a large Postgres: keys that every table can be cut along, and which of them by time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from storage.migrations import SCHEMA, migrate
from tests.postgres import Server, connection

WHOLE = {"tenants", "api_keys"}
"""Small, and asked before a tenant is known: a secret is unique among all tenants'."""
OURS = sorted(set(SCHEMA.tables) - WHOLE)
BY_TIME = {"explanations": "id", "jobs": "id", "audit": "id", "inference_scores": "seq", "inference_tokens": "seq"}
"""Tables whose keys grow with time, and by which column."""
CUT = SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL) PARTITION BY {}")


@pytest.fixture(scope="module")
def database(postgres: Server) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    with postgres.empty_database() as url:
        migrate(url)
        with connection(url) as opened:
            yield opened


def test_all_keys_begin_with_the_tenant() -> None:
    for name in OURS:
        table = SCHEMA.tables[name]
        uniques = [index.columns for index in table.indexes if index.unique]
        for key in (table.primary_key.columns, *uniques):
            assert next(iter(key)).name == "tenant_id", name
        for reference in table.foreign_key_constraints:
            assert reference.column_keys[0] == "tenant_id", name


def test_every_table_can_be_cut_by_tenant(database: psycopg.Connection[tuple[Any, ...]]) -> None:
    """Postgres refuses a key, or anything unique, that lacks the column that a table is cut by."""
    for name in OURS:
        database.execute(CUT.format(Identifier(f"{name}_cut"), Identifier(name), SQL("HASH (tenant_id)")))
    with pytest.raises(psycopg.errors.FeatureNotSupported):
        database.execute(CUT.format(Identifier("refused"), Identifier("api_keys"), SQL("HASH (tenant_id)")))


def test_what_grows_can_be_cut_by_time_too(database: psycopg.Connection[tuple[Any, ...]]) -> None:
    for name, column in BY_TIME.items():
        by = SQL("RANGE ({})").format(Identifier(column))
        database.execute(CUT.format(Identifier(f"{name}_dated"), Identifier(name), by))
    by = SQL("HASH (tenant_id, model_id)")
    database.execute(CUT.format(Identifier("inferences_dated"), Identifier("inferences"), by))
    with pytest.raises(psycopg.errors.FeatureNotSupported):  # the id that its owner gave is unique at all times
        database.execute(CUT.format(Identifier("refused"), Identifier("inferences"), SQL("RANGE (seq)")))
