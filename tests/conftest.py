"""Fixtures that several rooms share."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch  # noqa: F401 - brings the OpenMP runtime that LightGBM's wheel leaves to others
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from storage import tenants
from storage.database import Database
from storage.migrations import migrate
from tests.demo_server import Demo, running_demo
from tests.postgres import Server, reachable_folder, running_server

settings.register_profile(
    "repeatable", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("searching", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeatable")
# The same examples each time, however long one takes: what fails here fails everywhere, and on slow machines alike.
# `--hypothesis-profile=searching` looks for others.

ROOT = Path(__file__).parent
TOGETHER = {"explorer": "demo", "test_running_demo.py": "demo", "clients": "clients"}
"""Folders and files whose tests use one server: one process runs them, so that it is started once."""
FIRST = ("demo", "contract", "clients")
"""What takes longest."""


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: some tests wait while others compute."""
    return (os.cpu_count() or 1) + 1


class Groups(LoadScopeScheduling):
    """Hands out tests by what one process runs."""

    def _split_scope(self, nodeid: str) -> str:
        return group(ROOT.parent / nodeid.partition("::")[0])


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Groups:
    return Groups(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long ones first, then those that start servers of their own and wait for them, so that nobody waits last."""
    items.sort(key=lambda item: place(item.path))


def group(path: Path) -> str:
    """What one process runs: a file, or several."""
    first, *_ = parts = path.relative_to(ROOT).parts
    return TOGETHER.get(first, "/".join(parts))


def place(path: Path) -> int:
    first, *within = path.relative_to(ROOT).parts
    name = TOGETHER.get(first, first)
    return FIRST.index(name) if name in FIRST else len(FIRST) + bool(within)


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
def demo() -> Iterator[Demo]:
    """The one demo server of this run."""
    with running_demo() as demo:
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
