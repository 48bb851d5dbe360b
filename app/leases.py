"""Holding the lease of a shard, from when a worker has it until the shard is done or the worker gives up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TypeAlias

from sqlalchemy.ext.asyncio import AsyncSession

from storage.errors import StorageError

Change: TypeAlias = Callable[[AsyncSession], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Hold:
    """Of a lease that `renew` lets go on and `release` ends, each in a `transaction` of its own."""

    transaction: Callable[[], AbstractAsyncContextManager[AsyncSession]]
    renew: Change
    release: Change

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Lets the lease go when what is done inside fails or is cut off: the next worker need not wait for its end."""
        try:
            yield
        except BaseException:
            await self._say(self.release)
            raise

    @asynccontextmanager
    async def renewed(self, seconds: float) -> AsyncIterator[None]:
        """Inside, the lease is renewed every so many seconds."""
        renewing = asyncio.create_task(self._renew(seconds))
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.wait({renewing})

    async def _renew(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            await self._say(self.renew)

    async def _say(self, change: Change) -> None:
        with suppress(StorageError):  # a lease that runs out costs time, nothing else
            async with self.transaction() as session:
                await change(session)
