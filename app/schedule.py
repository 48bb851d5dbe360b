"""Who has the device next: the order of pieces of work, without threads and without a clock.

Context: how long a piece will hold the device is known after the fact, if at all, and a giant in front of small ones
makes all of them wait. Decision: pieces take turns of a quantum. Of the device's time

- most goes to the piece that has used least of it, in levels that double, so that new and small pieces overtake giants;
  of one level first to the tenant and the key that have used least, then in order of arrival;
- FAIR_SHARE goes to the tenant and key that have used least, there to the piece that has waited longest for its turn:
  a giant goes on, however many small pieces come;
- NICE_SHARE goes to nice pieces, which otherwise wait behind all normal ones: they are slow under load, never starved.

Shares are kept as debts in seconds, which grow only while somebody waits for them. A predicted cost, where there is
one, counts as used from the start. Consequence: with a small piece of at most a quantum, nobody waits for more than one
quantum of a giant and one in four of what other small ones take.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

QUANTUM = 0.1
"""Seconds of a turn, as far as passes can be cut; a piece that took no longer is small."""
FAIR_SHARE = 0.25
"""Of the time of normal pieces."""
NICE_SHARE = 0.05
LONGEST = 1e9
"""Seconds; longer predictions are as good as this."""

Owner: TypeAlias = tuple[str, ...]
"""Who asks, from the outside in: tenant, key. Nobody: ()."""


class Urgency(Protocol):
    """What may change while a piece waits; `cost` is predicted, in seconds."""

    nice: bool
    cost: float | None


@dataclass(eq=False)
class Piece:
    """A piece of work as the schedule sees it."""

    priority: Urgency
    owner: Owner
    number: int  # in order of arrival
    since: float  # when it came, or last had the device
    attained: float = 0.0  # seconds on the device

    @property
    def nice(self) -> bool:
        return self.priority.nice

    @property
    def level(self) -> int:
        """0 for small ones, then one more with every doubling."""
        seconds = min(max(self.attained, self.priority.cost or 0.0), LONGEST)
        return 0 if seconds < QUANTUM else 1 + int(math.log2(seconds / QUANTUM))

    @property
    def rank(self) -> tuple[bool, int]:
        """Pieces of lower rank go first, also in the middle of a turn."""
        return self.nice, self.level


Some = TypeVar("Some", bound=Piece)


class Schedule:
    """Seconds used by those who have pieces, and seconds owed to those who are passed over."""

    def __init__(self) -> None:
        self.used: dict[Owner, float] = {}
        self.owed_fair = self.owed_nice = 0.0
        self._pieces: Counter[Owner] = Counter()

    def arrive(self, piece: Piece) -> None:
        """Whoever comes anew has used as much as the least served of those who are there: rest saves nothing up."""
        for owner in _within(piece.owner):
            if not self._pieces[owner]:
                here = (self.used[other] for other in self._pieces if other[:-1] == owner[:-1])
                self.used[owner] = max(self.used.get(owner, 0.0), min(here, default=0.0))
            self._pieces[owner] += 1

    def leave(self, piece: Piece) -> None:
        for owner in _within(piece.owner):
            self._pieces[owner] -= 1
            if not self._pieces[owner]:
                del self._pieces[owner]
        self._forget()

    def charge(self, piece: Piece, seconds: float, waiting: Sequence[Piece], *, granted: bool) -> None:
        """Counts device time of the running piece; a turn that was `granted` pays what was owed."""
        piece.attained += seconds
        for owner in _within(piece.owner):
            self.used[owner] += seconds
        normal, nice = any(not other.nice for other in waiting), any(other.nice for other in waiting)
        if piece.nice:
            self.owed_nice = self.owed_nice - seconds if normal else 0.0
            return
        self.owed_nice = _grown(self.owed_nice, seconds, NICE_SHARE) if nice else 0.0
        if not normal:
            self.owed_fair = 0.0
        elif granted:
            self.owed_fair -= seconds
        else:
            self.owed_fair = _grown(self.owed_fair, seconds, FAIR_SHARE)

    def next(self, pieces: Iterable[Some]) -> tuple[Some, bool] | None:
        """Whose turn it is, and whether the turn is granted: then no piece of lower rank cuts it short."""
        ready = list(pieces)
        normal, nice = [piece for piece in ready if not piece.nice], [piece for piece in ready if piece.nice]
        if nice and (not normal or self.owed_nice >= QUANTUM):
            return min(nice, key=self._fair), bool(normal)
        if normal and self.owed_fair >= QUANTUM:
            return min(normal, key=self._fair), True
        return (min(normal, key=self._shortest), False) if normal else None

    def overtaking(self, running: Piece, pieces: Iterable[Some]) -> Some | None:
        """Who need not wait until the turn of the running piece is over."""
        rank = running.rank
        return min((piece for piece in pieces if piece.rank < rank), key=self._shortest, default=None)

    def _shortest(self, piece: Piece) -> tuple[bool, int, list[float], int]:
        return piece.nice, piece.level, self._used_by(piece), piece.number

    def _fair(self, piece: Piece) -> tuple[list[float], float, int]:
        return self._used_by(piece), piece.since, piece.number

    def _used_by(self, piece: Piece) -> list[float]:
        return [self.used[owner] for owner in _within(piece.owner)]

    def _forget(self) -> None:
        """Those who are gone and would have to catch up anyway."""
        gone = self.used.keys() - self._pieces.keys()
        least: dict[Owner, float] = {}
        for owner in self._pieces if gone else ():
            least[owner[:-1]] = min(self.used[owner], least.get(owner[:-1], math.inf))
        for owner in gone:
            if self.used[owner] <= least.get(owner[:-1], math.inf):
                del self.used[owner]


def _within(owner: Owner) -> Iterator[Owner]:
    """The tenant, then the key of the tenant; all who are nobody together."""
    return (owner[:length] for length in range(1, len(owner) + 1))


def _grown(owed: float, seconds: float, share: float) -> float:
    """At most one turn is owed at a time: nobody saves up for a long one."""
    return min(owed + seconds * share / (1 - share), max(owed, QUANTUM))
