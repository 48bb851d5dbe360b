"""How often logins may fail: counted by address and by name, and forgotten with time.

Context: passwords are tried by programs, from one address or from many; whoever refuses a name after so many failures
hands strangers a way to keep its owner out. Decision: an address has a stock of failures that fills up again with time.
Where a name has failed too often from everywhere, an address that has just failed waits, but one that has not is
heard: its owner, who knows the password, always gets in, and a stranger has one guess for each address. An attempt is
counted before it is checked, and given back when it was right, so that many at once are no way around. Consequence:
counts are those of this process and bounded in number; those that have been quiet longest are forgotten first.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from app.refusals import TooManyFailures

MOST_REMEMBERED = 50_000


@dataclass(slots=True)
class Failures:
    """Counts by key, which shrink by one every `seconds`."""

    seconds: float
    counts: OrderedDict[bytes, tuple[float, float]] = field(default_factory=OrderedDict)  # count, when

    def count(self, key: bytes, now: float) -> float:
        count, then = self.counts.get(key, (0.0, now))
        return max(0.0, count - (now - then) / self.seconds)

    def add(self, key: bytes, now: float, change: float = 1.0) -> None:
        self.counts[key] = (max(0.0, self.count(key, now) + change), now)
        self.counts.move_to_end(key)
        while len(self.counts) > MOST_REMEMBERED:
            self.counts.popitem(last=False)


class Throttle:
    """`of_address` failures at once, and one more every ten seconds; a name with `of_name` of them is watched."""

    def __init__(
        self,
        of_address: int = 20,
        of_name: int = 50,
        clock: Callable[[], float] = time.monotonic,
        seconds: float = 10.0,
    ) -> None:
        self._of_address, self._of_name, self._clock = of_address, of_name, clock
        self._addresses, self._names = Failures(seconds), Failures(seconds)

    def begin(self, address: str, name: str) -> None:
        """Counts an attempt; raises TooManyFailures, with the seconds until the next one is heard."""
        now, place, whose = self._clock(), key_of_address(address), digest(name)
        failed = self._addresses.count(place, now)
        most = 1 if self._names.count(whose, now) >= self._of_name else self._of_address
        if failed > most - 1:
            raise TooManyFailures(math.ceil((failed - most + 1) * self._addresses.seconds))
        self._addresses.add(place, now)
        self._names.add(whose, now)

    def forgive(self, address: str, name: str) -> None:
        """The attempt was right, or could not be judged."""
        now = self._clock()
        self._addresses.add(key_of_address(address), now, -1.0)
        self._names.add(digest(name), now, -1.0)


def key_of_address(address: str) -> bytes:
    """An IPv6 network of 64 bits is one household."""
    try:
        known = ipaddress.ip_address(address)
    except ValueError:
        return digest(address)
    if isinstance(known, ipaddress.IPv6Address):
        return known.ipv4_mapped.packed if known.ipv4_mapped else known.packed[:8]
    return known.packed


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()
