"""Rounds: load, one fault, repair, drain, audit; on the same data from the first to the last."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.faults.audit import Audit, Findings, shared_memory
from tests.faults.load import Books, Load
from tests.faults.strokes import Stroke, possible
from tests.faults.world import World, world

AFTER_SECONDS = 1.0
"""For which the load goes on once the server is back."""


def run(
    rounds: int,
    seed: int,
    only: Sequence[str] | None = None,
    logs: Path | None = None,
    minutes: float = math.inf,
) -> dict[str, Any]:
    """The report of so many rounds, or as many as begin in so many minutes; its `violations` must never be."""
    began = time.monotonic()
    with world(logs) as made:
        season = Season(made, seed, only)
        for number in range(rounds):
            if time.monotonic() - began < 60 * minutes:
                season.round(number)
        season.finish()
        report = season.report()
    report["violations"] += left_in_memory(season.segments)
    return report | {"seconds": round(time.monotonic() - began, 1)}


class Season:
    def __init__(self, made: World, seed: int, only: Sequence[str] | None) -> None:
        self.world, self.seed = made, seed
        self.books, self.dice = Books(), random.Random(seed)
        self.struck: Counter[str] = Counter()
        self.sizes: dict[str, int] = {}
        self.recovery: dict[str, list[float]] = {}
        self.segments: set[str] = set()
        self.lost: list[str] = []
        self.doubled: list[str] = []
        self.wrong: list[str] = []
        self.kinds = self.endless([each for each in possible(made) if only is None or each.__name__ in only])

    def endless(self, strokes: list[Any]) -> Iterator[Any]:
        """All in some order, then all in another one, so that each comes as often as any."""
        while True:
            yield from self.dice.sample(strokes, len(strokes))

    def round(self, number: int) -> None:
        strike = next(self.kinds)
        began = time.monotonic()
        load = Load(self.world, self.books, self.seed * 1_000_000 + number)
        load.start()
        try:
            time.sleep(self.dice.uniform(0.3, 3.0))
            strike(Stroke(self.world, self.books, self.dice))
            over = time.monotonic()
            self.world.mend()
            self.recovery.setdefault(strike.__name__, []).append(time.monotonic() - over)
            time.sleep(AFTER_SECONDS)
        finally:
            load.stop()
        self.books.lenient = False
        self.struck[strike.__name__] += 1
        found = self.audit(f"round {number}, {strike.__name__}", thorough=False)
        print(
            f"round {number}: {strike.__name__}, back after {self.recovery[strike.__name__][-1]:.1f} s, "
            f"{len(found.all)} violations, {time.monotonic() - began:.1f} s in all; {self.books.acknowledged()}",
            flush=True,
        )
        for each in found.all:
            print(f"  {each}", flush=True)

    def audit(self, when: str, *, thorough: bool) -> Findings:
        self.segments |= shared_memory(self.world)
        found = Audit(self.world, self.books, self.dice, thorough=thorough).run()
        found.wrong += self.books.surprises
        self.books.surprises = []
        self.lost += [f"{when}: {each}" for each in found.lost]
        self.doubled += [f"{when}: {each}" for each in found.doubled]
        self.wrong += [f"{when}: {each}" for each in found.wrong]
        return found

    def finish(self) -> None:
        """Once more from the start, and everything is read back."""
        self.sizes = self.world.sizes()
        self.world.stop()
        self.world.mend()
        self.audit("at the end", thorough=True)

    def report(self) -> dict[str, Any]:
        seconds = sorted(value for values in self.recovery.values() for value in values)
        return {
            "rounds": self.struck.total(),
            "seed": self.seed,
            "own_disk": self.world.disk,
            "bytes": self.sizes,
            "faults": dict(sorted(self.struck.items())),
            "acknowledged": self.books.acknowledged(),
            "answers": dict(sorted(self.books.counts.items())),
            "lost": len(self.lost),
            "doubled": len(self.doubled),
            "recovery_seconds": {"median": round(statistics.median(seconds), 2), "max": round(seconds[-1], 2)},
            "recovery_seconds_max": {name: round(max(each), 2) for name, each in sorted(self.recovery.items())},
            "violations": [*self.lost, *self.doubled, *self.wrong],
        }


def left_in_memory(segments: set[str]) -> list[str]:
    """Segments that Postgres had once and that are there although it is gone."""
    return [f"left in shared memory: {name}" for name in sorted(segments) if Path(name).exists()]
