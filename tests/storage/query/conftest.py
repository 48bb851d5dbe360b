"""A migrated database, and models with rows of random data, nulls among them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeAlias

import pytest

from storage.database import Database
from storage.migrations import migrate
from storage.query.answers import run
from storage.query.compiler import compile_query
from storage.query.grammar import parse
from storage.query.schema import QueryModel
from tests.postgres import Server, connection
from tests.storage.query.rows import Rows, boxed, fill, listed, register, tabular, text_rows

Ask: TypeAlias = Callable[..., Awaitable[list[dict[str, Any]]]]
Keep: TypeAlias = Callable[[str, QueryModel, list[str | None]], None]


@pytest.fixture(scope="package")
def queried(postgres: Server) -> Iterator[str]:
    """The URL of a database of these rows alone."""
    with postgres.empty_database() as url:
        migrate(url)
        with connection(url) as opened:
            fill(opened, tabular())
            fill(opened, text_rows())
            fill(opened, listed())
            fill(opened, boxed())
            opened.execute(
                "ANALYZE"
            )  # else it happens some time in the background, and plans change between two queries
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


@pytest.fixture
def keep(queried: str) -> Keep:
    """Makes one inference, with these texts, all that a tenant has."""

    def kept(tenant: str, model: QueryModel, texts: list[str | None]) -> None:
        with connection(queried) as opened:
            register(opened, model, tenant)
            opened.execute("DELETE FROM inferences")
            opened.execute(
                "INSERT INTO inferences (model_id, id, partner_inference_id, inference_timestamp, numbers, texts)"
                " VALUES (%s, %s, 'x', now(), '{}', %s)",
                [model.id, model.id, texts],
            )

    return kept
