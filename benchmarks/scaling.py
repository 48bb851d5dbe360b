"""What many devices would make of your load: throughput, waiting and cost for 1 to 1,000, by simulation.

    python -m benchmarks.scaling [--faster 1] [--load 0.8] [--price 2.5] [--database-cores 16] [--work explanations]

Takes the seconds that each piece of work took one worker in benchmarks/results/workers.json (measure your own machine
with `python -m benchmarks.workers`), and follows every arrival through two queues, first come first served: for one of
N devices, then for one of the database's cores. Prints a table, the assumptions it rests on, and how the same
simulation compares with what one and two real workers did when explanations arrived at random. Writes
benchmarks/results/scaling.json.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESULTS = Path(__file__).parent / "results"
DEVICES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
FEWEST, EACH = 20_000, 100
"""Arrivals of a simulation, and more for each device."""
SETTLING = 0.2
"""The share of arrivals that nothing is counted of: the queues are empty when they come."""
ASSUMPTIONS = (
    "Arrivals come at random, each independent of the others (Poisson).",
    "A piece of work takes what one of those that were measured took, drawn evenly, divided by `faster`; devices do "
    "not slow one another, and none is lost.",
    "One piece at a time on a device, first come first served: no priorities, no batching across requests, no work "
    "shared or found in the store.",
    "A free device takes the next piece at once: the models are loaded and the queue costs nothing.",
    "Each piece takes the same CPU time of the database, on one of its cores; the API processes are enough.",
    "Cost is the price of the devices alone, for all of the time, whether busy or not.",
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one simulation: a second's answers, the seconds that arrivals wait for device and database, and use."""

    answered: float
    wait_mean: float
    wait_p50: float
    wait_p95: float
    devices_busy: float
    database_busy: float


def simulate(
    services: NDArray[np.float64],  # (n,), seconds
    arrivals: NDArray[np.float64],  # (n,), seconds, ascending
    devices: int,
    database_seconds: float = 0.0,
    database_cores: int = 1,
) -> Outcome:
    """Each arrival takes the device that is free first, then the core of the database that is."""
    begun, left = queue(arrivals, services, devices)
    order = np.argsort(left, kind="stable")
    stored_begun, stored = queue(left[order], np.full(len(left), database_seconds), database_cores)
    waits = begun - arrivals
    waits[order] += stored_begun - left[order]
    counted = waits[int(SETTLING * len(waits)) :]
    whole = float(stored[-1] - arrivals[0])
    p50, p95 = (float(np.quantile(counted, share)) for share in (0.5, 0.95))
    busy = float(services.sum()) / (whole * devices)
    return Outcome(
        len(services) / whole,
        float(counted.mean()),
        p50,
        p95,
        busy,
        len(services) * database_seconds / (whole * database_cores),
    )


def queue(
    arrivals: NDArray[np.float64], services: NDArray[np.float64], servers: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """When each begins and when it ends: (n,), (n,)."""
    free = [0.0] * servers
    begun = np.empty(len(arrivals))
    for place, (arrival, service) in enumerate(zip(arrivals.tolist(), services.tolist(), strict=True)):
        begun[place] = max(arrival, free[0])
        heapq.heapreplace(free, begun[place] + service)
    return begun, begun + services


def random_load(
    measured: Sequence[float], rate: float, count: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Seconds of service as were measured, and times of arrival: (n,), (n,)."""
    random = np.random.default_rng(seed)
    return random.choice(np.asarray(measured), count), random.exponential(1 / rate, count).cumsum()


@dataclass(frozen=True, slots=True)
class Load:
    """`measured` seconds of one piece of work, of so many `units`, by one device, and its share of the database."""

    measured: Sequence[float]
    units: float
    database_seconds: float

    @property
    def mean(self) -> float:
        return statistics.mean(self.measured)


def predicted(load: Load, devices: int, share: float, cores: int, price: float) -> dict[str, Any]:
    """With arrivals that keep the devices, or the database where that is less, busy for that share of the time."""
    most = min(devices / load.mean, cores / load.database_seconds if load.database_seconds else math.inf)
    services, arrivals = random_load(load.measured, share * most, FEWEST + EACH * devices, devices)
    found = simulate(services, arrivals, devices, load.database_seconds, cores)
    told = {name: rounded(value) for name, value in asdict(found).items()}
    units = found.answered * load.units
    return {
        "devices": devices,
        "at most, units a second": rounded(most * load.units),
        "limit": "database" if most * load.mean < devices else "devices",
        "units a second": rounded(units),
        **told,
        "price of a million units": rounded(1e6 * devices * price / 3600 / units),
    }


def compared(measured: Sequence[float], devices: int, real: dict[str, Any]) -> dict[str, Any]:
    """The simulation beside what so many workers did with arrivals at that rate, over many runs as short as that."""
    runs = []
    for seed in range(200):
        services, arrivals = random_load(measured, real["asked for in a second"], real["arrivals"], seed)
        begun, left = queue(arrivals, services, devices)
        waits = begun - arrivals
        runs.append(
            (len(arrivals) / float(left.max() - arrivals[0]), float(waits.mean()), float(np.quantile(waits, 0.95)))
        )
    names = ("answered in a second", "wait, mean", "wait, p95")
    given = (real["answered in a second"], real["wait, seconds"]["mean"], real["wait, seconds"]["p95"])
    spans = [
        tuple(float(np.quantile(column, share)) for share in (0.05, 0.5, 0.95)) for column in zip(*runs, strict=True)
    ]
    return {
        name: {
            "measured": value,
            "simulated": rounded(span[1]),
            "nine of ten runs": [rounded(span[0]), rounded(span[2])],
        }
        for name, value, span in zip(names, given, spans, strict=True)
    }


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


def load_of(figures: dict[str, Any], faster: float) -> Load:
    """Of what `benchmarks.workers` measured of one kind of work."""
    units = figures["units"] / figures["shards"]
    seconds = [each / faster for each in figures["seconds of one, by one worker"]]
    return Load(seconds, units, units * figures["CPU seconds of the database for a unit"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=["explanations", "backfill", "index"], default="explanations")
    parser.add_argument("--faster", type=float, default=1.0, help="times that a device is faster than the one measured")
    parser.add_argument("--load", type=float, default=0.8, help="share of the most that is possible, which arrives")
    parser.add_argument("--price", type=float, default=2.5, help="of a device for an hour")
    parser.add_argument("--database-cores", type=int, default=16)
    parser.add_argument("--measured", type=Path, default=RESULTS / "workers.json")
    arguments = parser.parse_args()
    given = json.loads(arguments.measured.read_text())
    load = load_of(given["work"][arguments.work], arguments.faster)
    rows = [predicted(load, each, arguments.load, arguments.database_cores, arguments.price) for each in DEVICES]
    check = {
        count: {
            "services as measured alone": compared(
                given["work"]["explanations"]["seconds of one, by one worker"], int(count), real
            ),
            "services of the same run": compared(real["services"], int(count), real),
        }
        for count, real in given["arrivals"].items()
    }
    settings = {name: value for name, value in vars(arguments).items() if name != "measured"}
    result = {
        "measured on": given["machine"],
        "settings": settings,
        "unit": given["work"][arguments.work]["unit"],
        "seconds of one piece of work": rounded(load.mean),
        "assumptions": ASSUMPTIONS,
        "predicted": rows,
        "held against real workers": check,
    }
    (RESULTS / "scaling.json").write_text(json.dumps(result, indent=2) + "\n")
    show(result)


def show(result: dict[str, Any]) -> None:
    names = (
        "devices",
        "at most, units a second",
        "units a second",
        "wait_p50",
        "wait_p95",
        "price of a million units",
        "limit",
    )
    print("  ".join(f"{name:>12}" for name in names))
    for row in result["predicted"]:
        print("  ".join(f"{row[name]!s:>{max(12, len(name))}}" for name in names))
    print("\nunits are", result["unit"], "\n\nAssumed:")
    for assumption in result["assumptions"]:
        print("-", assumption)
    print("\nHeld against real workers:", json.dumps(result["held against real workers"], indent=2))


if __name__ == "__main__":
    main()
