"""The audit log: who did what, with which key, and what came of it.

Context: a log that loses rows when a server is killed proves nothing, and one that costs a round trip to the database
slows every answer. Decision: a change is written down before it begins, on the disk, and is refused where that fails;
its outcome is written before its answer is sent, that of everything else when it has been sent. Outcomes of the
same moment are one statement. Consequence: no change without a row, whatever kills the server, and a killed change
stands as `unanswered`; a computation waits for nothing, and only those that were answered in the last moment before a
kill (TOGETHER_SECONDS) may lack their rows. Who has no key belongs to no
tenant: a 401 is in the access log alone. Rows of the last seven days cannot be removed; the owner of the tables could
still take the trigger away, so where operators are not trusted, ship the access log elsewhere too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

from app.meters import Meters
from storage import audit as rows
from storage import tenants
from storage.audit import Entry, Kind, Page
from storage.database import Database
from storage.errors import DatabaseUnavailable, StorageError

log = logging.getLogger(__name__)

TOGETHER_SECONDS = 0.008
"""Soon enough to be done before the model has answered the next request of the same client."""

Level: TypeAlias = Literal["off", "changes", "computations", "all"]
KEPT: Mapping[Level, tuple[Kind, ...]] = {
    "off": (),
    "changes": ("change",),
    "computations": ("change", "computation"),
    "all": ("change", "computation", "read"),
}


class Audit:
    """The log as one server writes it; rows that could not be written are counted and told of."""

    def __init__(self, database: Database, level: Level, meters: Meters) -> None:
        self.database = database
        self.level = level
        self.meters = meters
        self.due: list[tuple[str, Entry, int]] = []
        self.flushing: asyncio.Task[None] | None = None
        self.writing = asyncio.Lock()

    def keeps(self, kind: Kind, status: int) -> bool:
        """Whether such an outcome is written; what was refused or failed always is."""
        return self.level != "off" and (kind in KEPT[self.level] or status >= 400)

    async def begin(self, tenant: str, entry: Entry) -> None:
        """Writes that a change is about to begin. Raises DatabaseUnavailable: then it must not."""
        if self.level == "off":
            return
        await self.flush()  # what came before stands before it
        try:
            await rows.write(self.database, tenant, entry)
        except StorageError as error:
            self.tell(entry, "begun", error)
            raise DatabaseUnavailable("the audit log cannot be written, so nothing was changed") from None

    async def conclude(self, tenant: str, entry: Entry, status: int) -> None:
        """Writes what came of it: of a change now, else within TOGETHER_SECONDS.

        An answer that is there is given, written or not; the log of the server tells.
        """
        if not self.keeps(entry.kind, status):
            return
        self.due.append((tenant, entry, status))
        if entry.kind == "change":
            await self.flush()
        elif self.flushing is None or self.flushing.done():
            self.flushing = asyncio.create_task(self.flush_soon())

    async def flush_soon(self) -> None:
        await asyncio.sleep(TOGETHER_SECONDS)
        await self.write_due()

    async def flush(self) -> None:
        """Writes all outcomes that are known, and does so to the end, whatever becomes of who asked."""
        await asyncio.shield(asyncio.create_task(self.write_due()))

    async def write_due(self) -> None:
        async with self.writing:
            while self.due:  # more may come while these are written, and rely on this
                due, self.due = self.due, []
                outcomes: dict[str, list[tuple[Entry, int]]] = {}
                for tenant, entry, status in due:
                    outcomes.setdefault(tenant, []).append((entry, status))
                for tenant, theirs in outcomes.items():
                    await self.write(tenant, theirs)

    async def write(self, tenant: str, outcomes: Sequence[tuple[Entry, int]]) -> None:
        try:
            await rows.write_all(self.database, tenant, outcomes)
        except StorageError as error:
            for entry, status in outcomes:
                self.tell(entry, str(status), error)

    async def close(self) -> None:
        """Writes what is left."""
        if self.flushing is not None:
            await self.flushing
        await self.flush()

    async def entries(self, tenant: str, **filters: Any) -> Page:
        """One page of the tenant's entries, newest first."""
        await self.flush()
        async with self.database.transaction(tenant=tenant) as session:
            return await rows.page(session, **filters)

    def tell(self, entry: Entry, outcome: str, error: StorageError) -> None:
        self.meters.audit_lost.inc()
        log.error("not audited: %s %s %s: %s", entry.method, entry.route, outcome, error)


def command(route: str, **object: str) -> Entry:
    """An entry for a command of the operator, who needs no key."""
    return Entry("command", "CLI", f"whence {route}", object)


DONE = 200
"""What stands for the success of a command."""


async def prune(database: Database, before: datetime) -> int:
    """Removes the entries of all tenants of before that time, and leaves one that says so; their number."""
    removed = 0
    for tenant in await tenants.names(database):
        async with database.transaction(tenant=tenant) as session:
            gone = await rows.prune(session, before)
            if gone:
                told = {"before": before.astimezone(UTC).isoformat(), "rows": str(gone)}
                await rows.add(session, command("audit prune", **told), DONE)
            removed += gone
    return removed
