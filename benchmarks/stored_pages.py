"""How long pages of stored explanations take: listed and searched, by the API and by the explorer.

    python -m benchmarks.stored_pages [rows]

A real server process on its own embedded database, one client on one kept-alive connection over loopback, 10,000 rows
(unless said otherwise) with prompts of 1,000 characters. A search that finds nothing reads the words of all rows it
may look at; one with filters those that these leave. Writes benchmarks/results/stored_pages.json.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from app.settings import Settings
from app.start import DEFAULT_TENANT, open_database
from storage import explanations
from tests.clients.server import running

ROWS, ROUNDS, CHARACTERS = 10_000, 40, 1_000
SECRET = "benchmark-secret-0123456789"
RESULT = Path(__file__).parent / "results" / "stored_pages.json"
WORDS = ("Anna", "lives", "in", "Oslo", "Ben", "keeps", "the", "mill", "door", "red", "bakery", "Thursday", "lantern")
ASKED = {
    "the first page": {},
    "a page of one kind": {"kind": "influence"},
    "a search that finds all": {"search": "anna"},
    "a search that finds one": {"search": "number 00017."},
    "a search that finds nothing": {"search": "nowhere"},
    "a search of one model": {"search": "nowhere", "model": "demo-qa"},
}


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)  # the database's user passes through
        data_dir = Path(folder) / "data"
        asyncio.run(fill(data_dir, count))
        with running(data_dir, WHENCE_API_KEY=SECRET) as server:
            address = urlsplit(server.url)
            connection = http.client.HTTPConnection(str(address.hostname), address.port)
            found = {name: measured(connection, asked) for name, asked in ASKED.items()}
            deep = {"cursor": cursor_at(connection, count // 2)}
            found["a page in the middle"] = measured(connection, deep)
    result = {
        "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("fastapi", "sqlalchemy")},
        },
        "rows": count,
        "characters": CHARACTERS,
        "milliseconds": found,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    for name, figures in found.items():
        told = "  ".join(f"{way} p50 {each['p50']:6.1f} p95 {each['p95']:6.1f}" for way, each in figures.items())
        print(f"{name:<30}{told}")


async def fill(data_dir: Path, count: int) -> None:
    chance = random.Random(7)  # noqa: S311 - filling
    async with open_database(Settings(data_dir=data_dir)) as database:
        for number in range(count):
            filling = " ".join(chance.choices(WORDS, k=CHARACTERS // 5))[:CHARACTERS]
            prompt, kind = f"Number {number:05d}. {filling}", ("completion", "influence")[number % 10 == 0]
            await explanations.add(
                database,
                DEFAULT_TENANT,
                id=explanations.new_id(),
                kind=kind,
                model="demo-qa" if kind == "influence" else "demo-lm",
                model_digest="sha256:0",
                request_key=number.to_bytes(32),
                request={"prompt": [{"type": "text", "data": prompt, "controls": []}], "target": " Oslo"},
                attribution={"values": [chance.random() for _ in range(200)]},
                seconds=0.1,
                forwards=3,
                prompt=prompt,
                target=" Oslo",
            )


def cursor_at(connection: http.client.HTTPConnection, place: int) -> str:
    cursor = ""
    for _ in range(max(1, place // 500)):
        query = urlencode({"limit": 500} | ({"cursor": cursor} if cursor else {}))
        cursor = json.loads(get(connection, f"/explanations?{query}")[1])["next_cursor"]
    return cursor


def measured(connection: http.client.HTTPConnection, asked: dict[str, str]) -> dict[str, dict[str, float]]:
    """By the API and by the page."""
    places = {"API": "/explanations", "page": "/explorer/stored"}
    return {name: spread(connection, f"{place}?{urlencode(asked)}") for name, place in places.items()}


def spread(connection: http.client.HTTPConnection, place: str) -> dict[str, float]:
    times = [get(connection, place)[0] for _ in range(ROUNDS + 3)][3:]
    cuts = statistics.quantiles(times, n=100)
    return {f"p{p}": round(cuts[p - 1] * 1000, 2) for p in (50, 95)}


def get(connection: http.client.HTTPConnection, place: str) -> tuple[float, bytes]:
    started = time.perf_counter()
    connection.request("GET", place, headers={"Authorization": f"Bearer {SECRET}"})
    response = connection.getresponse()
    content = response.read()
    assert response.status == 200, content
    return time.perf_counter() - started, content


if __name__ == "__main__":
    main()
