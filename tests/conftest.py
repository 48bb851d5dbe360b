"""Fixtures that several rooms share."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import torch  # noqa: F401 - brings the OpenMP runtime that LightGBM's wheel leaves to others

from storage import tenants
from storage.database import Database
from storage.migrations import migrate
from tests.postgres import Server, reachable_folder, running_server
from tests.shared_demo import Demo, shared_demo

ROOT = Path(__file__).parent
WAITING = ("explorer", "contract", "clients", ".")
"""Folders of tests that start servers of their own, and wait for them. They come first, so that nobody waits last."""


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: some tests wait while others compute."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: place(item.path))


def place(path: Path) -> int:
    folder = str(path.parent.relative_to(ROOT))
    return WAITING.index(folder) if folder in WAITING else len(WAITING)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """The embedded Postgres, migrated, shared by the whole test run: tests keep apart by tenant."""
    with running_server() as server:
        migrate(server.url)
        yield server


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[Demo]:
    """The one demo server of this run."""
    folder = tmp_path_factory.getbasetemp()
    with shared_demo(folder if worker_id == "master" else folder.parent) as demo:
        yield demo


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
