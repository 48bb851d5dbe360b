"""The requests under way: how many there are, and how they come to an end with the server.

Told to end, the server goes on listening for a while: requests under way are finished, new ones get 503 with
Retry-After instead of a refused connection, `/readyz` says 503. What is not finished in time gets 503, too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

POLL_SECONDS = 0.02
REFUSED_SECONDS = 3.0
"""For the answers of those that were refused to get out."""


class Entry:
    """A request under way, in a task of its own."""

    def __init__(self, task: asyncio.Task[Any] | None) -> None:
        self.task = task
        self.refused = False

    def refuse(self) -> None:
        """Ends its work; whoever runs it then answers that the server is shutting down."""
        self.refused = True
        if self.task is not None:
            self.task.cancel()


class Traffic:
    """`stopping`: no new requests are taken."""

    def __init__(self) -> None:
        self.stopping = False
        self._entries: set[Entry] = set()

    def __len__(self) -> int:
        return len(self._entries)

    @contextmanager
    def under_way(self) -> Iterator[Entry]:
        entry = Entry(asyncio.current_task())
        self._entries.add(entry)
        try:
            yield entry
        finally:
            self._entries.discard(entry)

    async def end(self, seconds: float, hurried: Callable[[], bool] = lambda: False) -> int:
        """Takes no more, lets those under way finish for so many seconds, refuses the rest; the number of these."""
        self.stopping = True
        await self._emptied(seconds, hurried)
        left = list(self._entries)
        for entry in left:
            entry.refuse()
        await self._emptied(REFUSED_SECONDS, hurried)
        return len(left)

    async def _emptied(self, seconds: float, hurried: Callable[[], bool]) -> None:
        deadline = time.monotonic() + seconds
        while self._entries and time.monotonic() < deadline and not hurried():  # noqa: ASYNC110 - as signals come
            await asyncio.sleep(POLL_SECONDS)
