"""A whole server in this process: embedded Postgres, a tiny random model on disk, an HTTP client without a network."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text

from app.admission import MINUTE
from app.dependencies import Server
from app.main import create_app
from app.models import NewModel
from app.predictors import add_predictor
from app.settings import Settings
from storage import api_keys, tenants
from tests import tiny_models
from tests.postgres import Server as Postgres

ADMIN_KEY = "an-admin-key-for-tests"
PROMPT = "Anna lives in Oslo. Ben lives in Rome. Anna lives in"
TARGET = " Oslo"
CHAT_TEMPLATE = """{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content }}
{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""

Start = Callable[..., AbstractAsyncContextManager["Running"]]


@dataclass(frozen=True)
class Running:
    """A running application, its parts, and a client with the admin key."""

    app: FastAPI
    client: httpx.AsyncClient

    @property
    def server(self) -> Server:
        server: Server = self.app.state.server
        return server

    async def key(self, *scopes: str, tenant: str = "default", **limits: float) -> dict[str, str]:
        """Headers with a new key, and its own limits."""
        if any(name.endswith("_per_minute") for name in limits):
            await clear_of_a_minutes_end()
        async with self.server.explainer.database.transaction(tenant=tenant) as session:
            await tenants.ensure(session, tenant)
            _, secret = await api_keys.create(session, tenant=tenant, name="test", scopes=scopes, limits=limits)
        return {"Authorization": f"Bearer {secret}"}

    async def add(self, folder: Path, name: str = "tiny-lm", tenant: str = "default") -> None:
        """Registers a model folder, as the command line does."""
        new = NewModel(name, "causal-lm", folder.name, description="a tiny model")
        await add_predictor(self.server.explainer, folder.parent, tenant, new)

    async def explain(self, **changes: Any) -> httpx.Response:
        body = {"model": "tiny-lm", "prompt": PROMPT, "target": TARGET, **changes}
        return await self.client.post("/explain", json=body)


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def tiny_lm(models_dir: Path) -> Path:
    folder = tiny_models.save(models_dir / "tiny-lm")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def start(data_dir: Path, models_dir: Path) -> Start:
    """Starts an application; settings may be changed by keyword."""

    @asynccontextmanager
    async def started(**changes: Any) -> AsyncIterator[Running]:
        if any(name.endswith("_per_minute") for name in changes):
            await clear_of_a_minutes_end()
        settings = Settings(
            **{"data_dir": data_dir, "api_key": ADMIN_KEY, "models_dir": models_dir, "device": "cpu", **changes}
        )
        app = create_app(settings)
        transport = httpx.ASGITransport(app)
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        client = httpx.AsyncClient(transport=transport, base_url="http://whence", headers=headers)
        async with app.router.lifespan_context(app), client:
            yield Running(app, client)

    return started


@pytest.fixture(scope="session")
def data_dir(postgres: Postgres) -> Path:
    """One database for the whole run, shared by every application started here."""
    return postgres.data_dir


@pytest.fixture(scope="module")
async def running(start: Start, tiny_lm: Path) -> AsyncIterator[Running]:
    """An application with the model `tiny-lm`, and nothing else in its database."""
    async with start() as running:
        await empty(running)
        await running.add(tiny_lm)
        yield running


async def until(condition: Callable[[], bool]) -> None:
    """Waits, a minute at most, until something has come about in another thread or task."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        await asyncio.sleep(0.01)


async def ready(running: Running) -> None:
    """Waits until all models are loaded, those that other tests have left in the database too."""
    async with asyncio.timeout(120):
        while (await running.client.get("/readyz")).status_code != 200:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.02)


async def clear_of_a_minutes_end(seconds: float = 12.0) -> None:
    """Waits where the minute ends within so many seconds: of what is counted before, the next takes a part off."""
    left = MINUTE - time.time() % MINUTE
    if left < seconds:
        await asyncio.sleep(left)


async def empty(running: Running) -> None:
    database = running.server.explainer.database
    async with database.transaction(tenant="default") as session:
        for table in ("jobs", "explanations", "models"):
            await session.execute(text(f"DELETE FROM {table}"))  # noqa: S608 - fixed names
    runtime = running.server.explainer.runtime
    runtime.keep_only([], runtime.known())
