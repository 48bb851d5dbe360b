"""What keys have used of their limits: counters of windows, and places that are held for a while.

Context: several servers may share one database, and a limit must hold for all of them together. Decision: `Counters` is
a storage of the library `limits`, and every hit of it one statement: Postgres locks the row, so that of two hits at
once the second sees the first; the time is that of the database, so that servers need not agree on it. A place has an
end, which its holder puts off while it works: what a killed server held is free again when that has passed.
Consequence: no server admits more than the limit, and none needs to know of another. The tables are unlogged, so a
crash of Postgres (not a restart) forgets what was used.

The window slides as in the library's own storages: what was counted in the window before weighs as much as of it still
lies within the last `expiry` seconds, as if it had come evenly.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from math import floor
from typing import Any
from uuid import UUID

from limits.aio.storage.base import SlidingWindowCounterSupport, Storage
from sqlalchemy import delete, func, select, text

from storage.database import Database, compiled
from storage.errors import StorageError
from storage.ids import time_ordered
from storage.tables import LimitCounter, LimitPlaces, Tenant

PLACE_SECONDS = 30.0
"""How long a place is held for a server that was killed; one that works puts its end off three times as often."""

NOW = "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"
NEW = "(CAST(:name AS text), CAST(:seconds AS integer), " + NOW + ", CAST(:amount AS bigint))"
THEN, SLOT = "floor(c.at / excluded.seconds)", "floor(greatest(c.at, excluded.at) / excluded.seconds)"
# Of two hits at once the later one to get the row may have looked at the clock first: it counts as of then.
BEFORE = f"(CASE {THEN} WHEN {SLOT} THEN c.previous WHEN {SLOT} - 1 THEN c.current ELSE 0 END)"
DURING = f"(CASE {THEN} WHEN {SLOT} THEN c.current ELSE 0 END)"
WEIGHT = f"(1 - greatest(0, excluded.at / excluded.seconds - {SLOT}))"

HIT = compiled(
    text(f"""
    INSERT INTO limit_counters AS c (name, seconds, at, current) VALUES {NEW}
    ON CONFLICT (tenant_id, name) DO UPDATE SET
        seconds = excluded.seconds, at = greatest(c.at, excluded.at),
        previous = {BEFORE}, current = {DURING} + excluded.current
    WHERE floor({BEFORE} * {WEIGHT}) + {DURING} + excluded.current <= CAST(:most AS bigint)
    RETURNING c.current""")  # noqa: S608 - our own words
)
COUNT = compiled(
    text(f"""
    INSERT INTO limit_counters AS c (name, seconds, at, current) VALUES {NEW}
    ON CONFLICT (tenant_id, name) DO UPDATE SET
        seconds = excluded.seconds,
        current = excluded.current + CASE WHEN c.at + c.seconds > excluded.at THEN c.current ELSE 0 END,
        at = CASE WHEN c.at + c.seconds > excluded.at THEN c.at ELSE excluded.at END
    RETURNING c.current""")  # noqa: S608 - our own words
)
READ = compiled(
    text(f"""
    SELECT at, seconds, current, previous, {NOW} AS now
    FROM limit_counters WHERE name = CAST(:name AS text)""")  # noqa: S608 - our own words
)
CORRECT = compiled(
    text(f"""
    UPDATE limit_counters AS c SET
        current = greatest(0, c.current - CASE WHEN floor(c.at / c.seconds) = t.slot THEN t.amount ELSE 0 END),
        previous = greatest(0, c.previous - CASE WHEN floor(c.at / c.seconds) = t.slot + 1 THEN t.amount ELSE 0 END)
    FROM (SELECT CAST(:amount AS bigint) AS amount,
          floor(({NOW} - CAST(:age AS double precision)) / CAST(:seconds AS integer)) AS slot) AS t
    WHERE c.name = CAST(:name AS text)""")  # noqa: S608 - our own words
)

LIVE = f"FROM jsonb_each(p.holders) AS h(holder, until) WHERE CAST(h.until AS double precision) > {NOW}"
TAKE = compiled(
    text(f"""
    INSERT INTO limit_places AS p (name, holders, until)
    SELECT CAST(:name AS text), jsonb_build_object(CAST(:holder AS text), t.until), t.until
    FROM (SELECT {NOW} + CAST(:seconds AS double precision) AS until) AS t
    ON CONFLICT (tenant_id, name) DO UPDATE SET
        until = greatest(p.until, excluded.until),
        holders = excluded.holders || coalesce((SELECT jsonb_object_agg(h.holder, h.until) {LIVE}
                                                AND h.holder <> CAST(:holder AS text)), '{{}}')
    WHERE (SELECT count(*) {LIVE} AND h.holder <> CAST(:holder AS text)) < CAST(:most AS integer)
    RETURNING 1 AS taken""")  # noqa: S608 - our own words
)
LEAVE = compiled(
    text("UPDATE limit_places SET holders = holders - CAST(:holder AS text) WHERE name = CAST(:name AS text)")
)


class Counters(Storage, SlidingWindowCounterSupport):
    """The counters of one tenant, for the strategies of `limits.aio`: fixed windows and sliding ones.

    Raises the errors of `storage.errors`. A hit whose answer was lost with its connection may count twice.
    """

    STORAGE_SCHEME = None  # made of a database, never of a URL

    def __init__(self, database: Database, tenant: str) -> None:
        super().__init__()
        self._database, self._tenant = database, tenant

    @property
    def base_exceptions(self) -> type[Exception]:
        return StorageError

    async def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Counts `amount` unless the window would hold more than `limit` then."""
        if amount > limit:
            return False
        values = {"name": key, "seconds": expiry, "amount": amount, "most": limit}
        return await self._ask(HIT, values) is not None

    async def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """Count and remaining seconds of the window before, and those of the present one."""
        row = await self._ask(READ, {"name": key})
        if row is None:
            return 0, 0.0, 0, 0.0
        slot, then = floor(row.now / expiry), floor(row.at / expiry)
        left = (slot + 1) * expiry - row.now
        current = row.current if then >= slot else 0
        previous = {0: row.previous, 1: row.current}.get(max(0, slot - then), 0)
        return previous, left if previous else 0.0, current, left + expiry

    async def clear_sliding_window(self, key: str, expiry: int) -> None:
        await self.clear(key)

    async def correct(self, key: str, expiry: int, amount: int, age: float) -> None:
        """Takes `amount` off what was counted `age` seconds ago, as long as it counts; below 0 it adds."""
        await self._ask(CORRECT, {"name": key, "seconds": expiry, "amount": amount, "age": age})

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Counts in a window that begins with its first hit; what it holds then."""
        row = await self._ask(COUNT, {"name": key, "seconds": expiry, "amount": amount})
        return int(row.current) if row is not None else amount

    async def get(self, key: str) -> int:
        row = await self._ask(READ, {"name": key})
        return int(row.current) if row is not None and row.at + row.seconds > row.now else 0

    async def get_expiry(self, key: str) -> float:
        """When a window that began with its first hit ends, in seconds since 1970 by this machine's clock."""
        row = await self._ask(READ, {"name": key})
        return time.time() + (max(0.0, row.at + row.seconds - row.now) if row is not None else 0.0)

    async def check(self) -> bool:
        with suppress(StorageError):
            await self._database.ping()
            return True
        return False

    async def reset(self) -> int | None:
        """Forgets all counters of the tenant; how many there were."""
        return await self._delete(delete(LimitCounter))

    async def clear(self, key: str) -> None:
        await self._delete(delete(LimitCounter).where(LimitCounter.name == key))

    async def _ask(self, statement: Any, values: dict[str, Any]) -> Any | None:
        return await self._database.ask(statement, values, tenant=self._tenant)

    async def _delete(self, statement: Any) -> int:
        async with self._database.transaction(tenant=self._tenant) as session:
            return len((await session.execute(statement.returning(LimitCounter.name))).all())


class NoPlace(Exception):
    """All places of that name are held."""


@asynccontextmanager
async def place(
    database: Database, tenant: str, name: str, most: int, seconds: float = PLACE_SECONDS
) -> AsyncIterator[None]:
    """One of `most` places, held as long as the block runs; raises `NoPlace` at once when there is none."""
    holder = time_ordered()
    if not await take(database, tenant, name, holder, most, seconds):
        raise NoPlace
    renewing = asyncio.create_task(_renew(database, tenant, name, holder, seconds))
    try:
        yield
    finally:
        renewing.cancel()
        await asyncio.wait({renewing})
        with suppress(StorageError):  # the place ends by itself
            await asyncio.shield(leave(database, tenant, name, holder))


async def take(database: Database, tenant: str, name: str, holder: UUID, most: int, seconds: float) -> bool:
    """Whether the holder has a place for so many seconds from now; one that it has already is put off."""
    values = {"name": name, "holder": str(holder), "most": most, "seconds": seconds}
    return await database.ask(TAKE, values, tenant=tenant) is not None


async def leave(database: Database, tenant: str, name: str, holder: UUID) -> None:
    await database.ask(LEAVE, {"name": name, "holder": str(holder)}, tenant=tenant)


async def _renew(database: Database, tenant: str, name: str, holder: UUID, seconds: float) -> None:
    """Puts the end off until cancelled, whatever the limit is now. A database that is away is asked again."""
    while True:
        await asyncio.sleep(seconds / 3)
        with suppress(StorageError):
            await take(database, tenant, name, holder, 2**31 - 1, seconds)


async def sweep(database: Database) -> None:
    """Removes counters and places of all tenants that count no more."""
    now = func.extract("epoch", func.clock_timestamp())
    async with database.transaction() as session:
        names = list(await session.scalars(select(Tenant.id)))
    for name in names:
        async with database.transaction(tenant=name) as session:
            await session.execute(delete(LimitCounter).where(LimitCounter.at + 2 * LimitCounter.seconds < now))
            await session.execute(delete(LimitPlaces).where(LimitPlaces.until < now))
