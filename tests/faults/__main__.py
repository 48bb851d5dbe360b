"""Rounds of faults, and what came of them: `python -m tests.faults --rounds 100 --seed 0`."""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
from pathlib import Path

from tests.faults.rounds import run

RESULT = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "faults.json"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=None, help="Names of faults; all of them unless given.")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--minutes", type=float, default=math.inf, help="No round begins after so many.")
    parser.add_argument("--logs", type=Path, default=None, help="Folder for what the processes have said.")
    given = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(130))
    report = run(given.rounds, given.seed, given.only, given.logs, given.minutes)
    text = json.dumps(report, indent=1) + "\n"
    given.result.write_text(text, encoding="utf-8")
    print(text)
    return 1 if report["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
