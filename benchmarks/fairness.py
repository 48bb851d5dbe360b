"""Do giants keep small requests waiting? 200 clients at once, ten of whom ask for nothing but giants.

    python -m benchmarks.fairness [--seconds 20] [--rounds 2] [--former FOLDER]

A real server process on its own embedded database. In turns, 190 clients ask small questions one after the other, each
on a connection of its own and without a pause; then the same beside ten that ask giants: long prompts by the word, with
a removal test, thousands of times the arithmetic. No prompt comes twice, so that nothing is served from the store. Who
is told to come back later does so when told, and the wait counts. `--former` measures another checkout of the program
too, such as one that takes requests in order of arrival. Writes benchmarks/results/fairness.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.clients.server import objects, running, spawned, whence

SMALL, GIANTS = 190, 10
SETTLE_SECONDS = 3.0
SECRET = "benchmark-secret-0123456789"
MODEL = Path(__file__).parents[1] / "demo" / "models" / "demo-lm"
RESULT = Path(__file__).parent / "results" / "fairness.json"
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Frank")
PLACES = ("Oslo", "Rome", "Paris", "Berlin", "Madrid", "London")


@dataclass
class Load:
    """What the clients of one kind were answered between `start` and `end`."""

    start: float
    end: float
    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)

    def note(self, begun: float, status: str) -> None:
        if self.start <= time.perf_counter() <= self.end:
            self.statuses[status] += 1
            if status == "200":
                self.seconds.append(time.perf_counter() - begun)


class Client:
    """Sends one request after the other on one connection."""

    def __init__(self, url: str, load: Load, body: Callable[[], dict[str, Any]]) -> None:
        self.address = urlsplit(url)
        self.load, self.body = load, body

    async def run(self) -> None:
        self.reader, self.writer = await asyncio.open_connection(self.address.hostname, self.address.port)
        try:
            while True:
                await self.ask(json.dumps(self.body()).encode())
        finally:
            self.writer.close()

    async def ask(self, body: bytes) -> None:
        """Until it is answered."""
        begun, wait = time.perf_counter(), 0.0
        while wait is not None:
            await asyncio.sleep(wait)
            status, headers = await self.send(body)
            wait = float(headers["retry-after"]) if status[:3] == "503" else None  # type: ignore[assignment]
            self.load.note(begun, status)

    async def send(self, body: bytes) -> tuple[str, dict[str, str]]:
        """The status, that of a refusal with its code, and the headers."""
        head = f"POST /explain HTTP/1.1\r\nHost: whence\r\nAuthorization: Bearer {SECRET}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)
        first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        headers = dict(line.lower().split(": ", 1) for line in lines if line)
        answer, status = await self.reader.readexactly(int(headers["content-length"])), first.split()[1]
        return status if status == "200" else f"{status} {json.loads(answer)['code']}", headers


def small(numbers: Iterator[int]) -> dict[str, Any]:
    prompt = f"Anna lives in Oslo. Ben lives in Rome. The code for the red door is {next(numbers):07d}. Anna lives in"
    return asked(prompt, {"prompt_granularity": {"type": "sentence"}})


def giant(numbers: Iterator[int]) -> dict[str, Any]:
    facts = [f"{NAMES[place % 6]} lives in {PLACES[place // 6 % 6]}." for place in range(36)]
    prompt = f"The code for the red door is {next(numbers):07d}. {' '.join(facts)} Anna lives in"
    return asked(prompt, {"prompt_granularity": {"type": "word"}, "evaluate": True, "uncertainty": True})


def asked(prompt: str, more: dict[str, Any]) -> dict[str, Any]:
    return {"model": "demo-lm", "prompt": prompt, "target": " Oslo"} | more


async def measured(url: str, seconds: float, giants: int, numbers: Iterator[int]) -> tuple[Load, Load]:
    """The small ones' load and the giants', once all have settled."""
    start = time.perf_counter() + SETTLE_SECONDS
    loads = Load(start, start + seconds), Load(start, start + seconds)
    clients = [Client(url, loads[0], lambda: small(numbers)) for _ in range(SMALL)]
    clients += [Client(url, loads[1], lambda: giant(numbers)) for _ in range(giants)]
    tasks = [asyncio.create_task(client.run()) for client in clients]
    done, pending = await asyncio.wait(tasks, timeout=SETTLE_SECONDS + seconds)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    for task in done:
        task.result()  # a client ends only by failing
    return loads


async def compared(url: str, seconds: float, rounds: int) -> dict[str, Any]:
    numbers = count()
    lone = await alone(url, numbers)
    phases: dict[str, list[tuple[Load, Load]]] = {"without giants": [], "with giants": []}
    for _ in range(rounds):
        phases["without giants"].append(await measured(url, seconds, 0, numbers))
        phases["with giants"].append(await measured(url, seconds, GIANTS, numbers))
    found: dict[str, Any] = {"seconds of one request on an idle server": lone}
    for name, loads in phases.items():
        found[name] = {"small": told([one for one, _ in loads]), "giants": told([other for _, other in loads])}
    small_p95 = [found[name]["small"]["p95"] for name in phases]
    return found | {"p95 of small requests, with over without giants": round(small_p95[1] / small_p95[0], 2)}


async def alone(url: str, numbers: Iterator[int]) -> dict[str, float]:
    """Of a small request, the third one, and of a giant."""
    found = {}
    kinds: dict[str, tuple[Callable[[Iterator[int]], dict[str, Any]], int]] = {"small": (small, 3), "giant": (giant, 1)}
    for name, (make, times) in kinds.items():
        load = Load(0, float("inf"))
        client = Client(url, load, lambda make=make: make(numbers))  # type: ignore[misc]
        task = asyncio.create_task(client.run())
        while len(load.seconds) < times:
            await asyncio.sleep(0.01)
            if task.done():
                await task  # a client ends only by failing
        task.cancel()
        await asyncio.wait({task})
        found[name] = round(load.seconds[times - 1], 4)
    return found


def told(loads: list[Load]) -> dict[str, Any]:
    seconds = sorted(second for load in loads for second in load.seconds)
    statuses = sum((load.statuses for load in loads), Counter[str]())
    cuts = statistics.quantiles(seconds, n=100) if len(seconds) > 1 else None
    spread = {f"p{p}": None if cuts is None else round(cuts[p - 1], 3) for p in (50, 95, 99)}
    return {"answered": len(seconds), **spread, "statuses": dict(statuses)}


def serve(measure: Callable[[str], Coroutine[Any, Any, dict[str, Any]]], settings: Mapping[str, str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder) / "data"
        objects(whence(data_dir, "models", "add", "demo-lm", str(MODEL), "--kind", "causal-lm", "--json", **settings))
        own: dict[str, Any] = {"WHENCE_API_KEY": SECRET, "WHENCE_QUEUE_LIMIT": "256", **settings}
        with running(data_dir, start=spawned, **own) as server:
            return asyncio.run(measure(server.url))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--former", type=Path, help="folder of another checkout")
    arguments = parser.parse_args()

    async def measure(url: str) -> dict[str, Any]:
        return await compared(url, arguments.seconds, arguments.rounds)

    result: dict[str, Any] = {
        "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "versions": {name: version(name) for name in ("torch", "uvicorn", "sqlalchemy")},
        "clients": {"small": SMALL, "giants": GIANTS},
        "fair queue": serve(measure, {}),
    }
    if arguments.former is not None:
        result["former code"] = serve(measure, {"PYTHONPATH": str(arguments.former.resolve())})
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
