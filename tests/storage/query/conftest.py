"""A database with the tables that queries read, and a model with rows of random data, nulls among them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeAlias

import pytest

from storage.database import Database
from storage.query.answers import run
from storage.query.compiler import compile_query
from storage.query.grammar import parse
from storage.query.schema import QueryModel
from tests.postgres import Server, connection
from tests.storage.query.rows import Rows, boxed, fill, listed, tabular, text_rows

Ask: TypeAlias = Callable[..., Awaitable[list[dict[str, Any]]]]

PLACE = (
    """tenant_id text NOT NULL DEFAULT current_setting('whence.tenant'), model_id uuid NOT NULL, seq bigint NOT NULL"""
)
TABLES = f"""
CREATE TABLE inferences ({PLACE}, id uuid NOT NULL, partner_inference_id text NOT NULL,
  inference_timestamp timestamptz NOT NULL, received_timestamp timestamptz NOT NULL, batch_id text,
  ground_truth_timestamp timestamptz, numbers float8[] NOT NULL, texts text[] NOT NULL,
  PRIMARY KEY (tenant_id, model_id, seq));
CREATE TABLE reference_rows ({PLACE}, numbers float8[] NOT NULL, texts text[] NOT NULL,
  PRIMARY KEY (tenant_id, model_id, seq));
CREATE TABLE inference_scores ({PLACE}, algorithm text NOT NULL,
  fingerprint bigint NOT NULL DEFAULT 0, scores float8[], errors float8[],
  base_values float8[], fit float8[], facts json, reason text, PRIMARY KEY (tenant_id, model_id, algorithm, seq));
CREATE TABLE inference_tokens ({PLACE}, algorithm text NOT NULL,
  fingerprint bigint NOT NULL DEFAULT 0, attribute text NOT NULL, tokens text[] NOT NULL,
  positions int[] NOT NULL, scores float8[], errors float8[],
  PRIMARY KEY (tenant_id, model_id, algorithm, seq, attribute));
"""
OWNED = ("inferences", "reference_rows", "inference_scores", "inference_tokens")


@pytest.fixture(scope="package")
def queried(postgres: Server) -> Iterator[str]:
    """The URL of a database with the tables alone, tenants kept apart as everywhere."""
    with postgres.empty_database() as url:
        with connection(url) as opened:
            opened.execute(TABLES)
            for table in OWNED:
                opened.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
                opened.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
                opened.execute(
                    f"CREATE POLICY own ON {table} USING (tenant_id = current_setting('whence.tenant', true))"
                )
            fill(opened, tabular())
            fill(opened, text_rows())
            fill(opened, listed())
            fill(opened, boxed())
        yield url


@pytest.fixture
async def store(queried: str) -> AsyncIterator[Database]:
    database = Database.connect(queried, pool_size=1)
    yield database
    await database.close()


@pytest.fixture
def rows() -> Rows:
    """What is stored of the tabular model."""
    return tabular()


@pytest.fixture
def ask(store: Database) -> Ask:
    """The rows that answer a request."""

    async def answered(
        body: Mapping[str, Any], model: QueryModel | None = None, tenant: str = "t", **options: Any
    ) -> list[dict[str, Any]]:
        compiled = compile_query(parse(body), model or tabular().model)
        async with store.transaction(tenant) as session:
            return await run(session, compiled, **options)

    return answered
