"""Time-ordered identifiers."""

from __future__ import annotations

import secrets
import time
from uuid import UUID


def time_ordered() -> UUID:
    """A UUID of version 7 (RFC 9562, 6.2, method 3): 48 bits of milliseconds, 12 of their fraction, 62 random."""
    milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
    fraction = nanoseconds * 4096 // 1_000_000
    return UUID(int=milliseconds << 80 | 7 << 76 | fraction << 64 | 0b10 << 62 | secrets.randbits(62))
