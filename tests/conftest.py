"""Fixtures that several rooms share."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import torch  # noqa: F401 - brings the OpenMP runtime that LightGBM's wheel leaves to others

from storage import tenants
from storage.database import Database
from storage.migrations import migrate
from tests.postgres import Server, reachable_folder, running_server


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """The embedded Postgres, migrated, shared by the whole test run: tests keep apart by tenant."""
    with running_server() as server:
        migrate(server.url)
        yield server


@pytest.fixture
def new_data_dir() -> Iterator[Path]:
    """A folder for the data of a server of this test's own, removed with everything in it."""
    with reachable_folder() as folder:
        yield folder


@pytest.fixture
async def database(postgres: Server) -> AsyncIterator[Database]:
    """A pool of a single connection, so that anything left on it would show in the next transaction."""
    database = Database.connect(postgres.url, pool_size=1)
    yield database
    await database.close()


@pytest.fixture
async def tenant(database: Database) -> str:
    """A tenant of this test alone."""
    return await new_tenant(database)


@pytest.fixture
async def other_tenant(database: Database) -> str:
    return await new_tenant(database)


async def new_tenant(database: Database) -> str:
    name = f"t-{uuid.uuid4().hex}"
    async with database.transaction(name) as session:
        await tenants.ensure(session, name)
    return name
