"""The look after the registry and the database that goes on behind all requests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from app import main, models
from app.runtime import Registration, Runtime
from app.worker import end
from storage.database import Database
from tests.app.conftest import Running

pytestmark = pytest.mark.anyio


class Short(Runtime):
    """A runtime that has no memory the first few times."""

    looks = 0

    def keep_only(self, registrations: Iterable[Registration], among: frozenset[tuple[str, str]]) -> None:
        self.looks += 1
        if self.looks < 3:
            raise MemoryError
        super().keep_only(registrations, among)


async def test_it_outlives_any_error(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended for good once, and with it the help for a database that was killed."""
    monkeypatch.setattr(main, "REFRESH_SECONDS", 0.01)
    runtime, server = Short(queue_limit=1), running.server
    looking = asyncio.create_task(main.refresh(server.settings, replace(server.explainer, runtime=runtime)))
    async with asyncio.timeout(60):
        while runtime.looks < 4:
            await asyncio.sleep(0.01)
            assert not looking.done()
    await end(looking)
    await runtime.close()


async def test_what_is_loaded_while_the_registry_is_read_stays(
    running: Running, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explainer, read, mine = running.server.explainer, models.all_registrations, asyncio.current_task()

    async def read_long(database: Database) -> list[Registration]:
        found = await read(database)
        if asyncio.current_task() is not mine:  # but the server's, which looks now and then
            return found
        await running.add(tiny_lm, name="newcomer")
        (newcomer,) = [each for each in await read(database) if each.name == "newcomer"]
        await explainer.runtime.model(newcomer)
        return found

    monkeypatch.setattr(models, "all_registrations", read_long)
    await models.keep_loaded(explainer.database, explainer.runtime)
    assert ("default", "newcomer") in explainer.runtime.known()
