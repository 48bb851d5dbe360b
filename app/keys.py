"""The keys found good a moment ago: most requests come from few keys, and each look-up is a transaction of its own."""

from __future__ import annotations

import time

from storage import api_keys
from storage.database import Database
from storage.tables import ApiKey

TRUSTED_SECONDS = 1.0
"""How long a key that was good is taken to be good: the longest that a revoked or expired one still works."""
MOST_KEYS = 10_000


class KnownKeys:
    """Looks keys up in the database, at most once a second each. Bad keys are never remembered."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._found: dict[bytes, tuple[float, ApiKey]] = {}

    async def find(self, secret: str) -> ApiKey | None:
        """The usable key with this secret, of whatever tenant."""
        name, now = api_keys.digest(secret), time.monotonic()
        since, known = self._found.get(name, (0.0, None))
        if known is not None and now - since < TRUSTED_SECONDS:
            return known
        key = await api_keys.find_by_secret(self._database, secret)
        if len(self._found) >= MOST_KEYS:
            self._found.clear()
        if key is None:
            self._found.pop(name, None)
        else:
            self._found[name] = (now, key)
        return key
