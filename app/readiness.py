"""Which part of the server is ready? Asked often and by strangers: looked up twice a second at most, without names."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from app.explain import Explainer
from app.jobs import Jobs
from app.models import all_registrations
from app.traffic import Traffic
from storage.errors import StorageError
from storage.migrations import migrated

FRESH_SECONDS = 0.5
LEAST_DISK_BYTES = 64 * 2**20
"""With less free where data lie, the embedded database and uploads are about to fail."""

PARTS = ("database", "migrations", "models", "disk", "store", "worker", "accepting")


@dataclass(frozen=True, slots=True)
class Ready:
    """`worker` is None where jobs are left to others, `store` where there is none; `counts` are models by state."""

    database: bool
    migrations: bool
    models: bool
    disk: bool
    store: bool | None
    worker: bool | None
    accepting: bool
    counts: dict[str, int]

    @property
    def missing(self) -> list[str]:
        return [part for part in PARTS if getattr(self, part) is False]


class Readiness:
    """`working`: whether this process is to work on jobs."""

    def __init__(self, explainer: Explainer, jobs: Jobs, traffic: Traffic, *, working: bool) -> None:
        self.explainer, self.jobs, self.traffic = explainer, jobs, traffic
        self.working = working
        self._looking = asyncio.Lock()
        self._stored: tuple[float, tuple[bool, bool, Counter[str]]] | None = None

    async def now(self) -> Ready:
        async with self._looking:
            if self._stored is None or time.monotonic() - self._stored[0] > FRESH_SECONDS:
                self._stored = time.monotonic(), await look(self.explainer)
        database, tables, counts = self._stored[1]
        pending = counts["registered"] + counts["loading"]
        return Ready(
            database=database,
            migrations=tables,
            models=tables and pending == 0,
            disk=await asyncio.to_thread(has_room, self.explainer),
            store=await self.explainer.shelf.reachable(),
            worker=self.jobs.looking if self.working else None,
            accepting=not self.traffic.stopping,
            counts={"loaded": counts["loaded"], "loading": pending, "refused": counts["refused"]},
        )


async def look(explainer: Explainer) -> tuple[bool, bool, Counter[str]]:
    """Whether the database answers and has the tables of this release, and models by state."""
    database = tables = False
    counts: Counter[str] = Counter()
    try:
        await explainer.database.ping()
        database = True
        tables = await migrated(explainer.database)
        registrations: list[Any] = await all_registrations(explainer.database) if tables else []
        counts.update(explainer.runtime.state(registration)[0] for registration in registrations)
    except StorageError:
        return database, False, counts
    return database, tables, counts


def has_room(explainer: Explainer) -> bool:
    try:
        return shutil.disk_usage(explainer.shelf.folder).free >= LEAST_DISK_BYTES
    except OSError:
        return False
