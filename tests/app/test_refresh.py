"""The look after the registry and the database that goes on behind all requests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest

from app import main
from app.runtime import Registration, Runtime
from app.worker import end
from tests.app.conftest import Running

pytestmark = pytest.mark.anyio


class Short(Runtime):
    """A runtime that has no memory the first few times."""

    looks = 0

    def keep_only(self, registrations: Iterable[Registration]) -> None:
        self.looks += 1
        if self.looks < 3:
            raise MemoryError
        super().keep_only(registrations)


async def test_it_outlives_any_error(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended for good once, and with it the help for a database that was killed."""
    monkeypatch.setattr(main, "REFRESH_SECONDS", 0.01)
    runtime, server = Short(queue_limit=1), running.server
    looking = asyncio.create_task(main.refresh(server.settings, server.explainer.database, runtime))
    async with asyncio.timeout(60):
        while runtime.looks < 4:
            await asyncio.sleep(0.01)
            assert not looking.done()
    await end(looking)
    await runtime.close()
