"""How fast inferences are stored: rows per second of `storage.inferences` and `storage.scores`.

    python -m benchmarks.ingest

On an embedded Postgres of its own: single inferences of 20 attributes (16 numbers and 4 short texts), each in a
transaction of its own, as a model in use sends them; then many given as columns, as a file brings them; the same rows
again, which are all there already; their ground truth; and scores of 20 inputs x 2 classes. Writes
benchmarks/results/ingest.json.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from storage import inferences, monitored_models, scores, tenants
from storage.cells import cells_of
from storage.database import Database
from storage.embedded import embedded_postgres
from storage.inferences import Rows, Truths
from storage.migrations import migrate
from storage.monitored_models import Attribute
from storage.monitored_tables import MonitoredAttribute
from storage.scores import Scores, Wanted

ROWS, BLOCK, SINGLE = 100_000, 10_000, 300
INPUTS, CLASSES = 20, 2
RESULT = Path(__file__).parent / "results" / "ingest.json"
PACKAGES = ("numpy", "psycopg", "sqlalchemy")
TENANT = "bench"
ATTRIBUTES = (
    *(Attribute(f"number_{place}", "PIPELINE_INPUT", "FLOAT", place) for place in range(14)),
    *(Attribute(f"label_{place}", "PIPELINE_INPUT", "STRING", 14 + place) for place in range(4)),
    Attribute("predicted", "PREDICTED_VALUE", "FLOAT", 0),
    Attribute("truth", "GROUND_TRUTH", "INTEGER", 0),
)
LABELS = ["north", "south", "east", "west", None]
START = np.datetime64("2026-03-01", "us")


def main() -> None:
    busy = round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)  # under root the server's user passes through
        with embedded_postgres(folder) as url:
            migrate(url)
            figures = asyncio.run(measured(url))
    result = {
        "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "load average before": busy,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "rows": ROWS,
        "attributes": len(ATTRIBUTES),
        **figures,
        "peak memory of this process, MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


async def measured(url: str) -> dict[str, Any]:
    database = Database.connect(url, pool_size=1)
    try:
        async with database.transaction(TENANT) as session:
            await tenants.ensure(session, TENANT)
            model = await monitored_models.create(
                session,
                partner_model_id="bench",
                input_type="TABULAR",
                output_type="REGRESSION",
                status="Ready",
                is_batch=False,
                definition={},
                attributes=ATTRIBUTES,
            )
            attributes = await monitored_models.list_attributes(session, model.id)
        alone = await single(database, model.id, attributes)
        seconds = {
            "inferences, new": await adding(database, model.id, attributes, ROWS),
            "inferences, all there already": await adding(database, model.id, attributes, 0),
            "ground truth": await truths(database, model.id, attributes),
            "scores of 20 inputs x 2 classes": await scoring(database, model.id),
        }
        return {
            "rows per second": {name: round(ROWS / value) for name, value in seconds.items()},
            "milliseconds of a transaction with one new inference": alone,
        }
    finally:
        await database.close()


async def adding(database: Database, model_id: UUID, attributes: list[MonitoredAttribute], new: int) -> float:
    """Seconds of one transaction, with the time that making the columns takes."""
    started = time.perf_counter()
    async with database.transaction(TENANT) as session:
        outcome = await inferences.add_all(session, model_id, blocks(attributes))
    assert (outcome.done, outcome.failed) == (new, ROWS - new)
    return time.perf_counter() - started


def blocks(attributes: list[MonitoredAttribute]) -> Iterator[Rows]:
    for start in range(0, ROWS, BLOCK):
        yield block(attributes, start, BLOCK)


def block(attributes: list[MonitoredAttribute], start: int, count: int) -> Rows:
    random = np.random.default_rng(start)
    columns: dict[str, Any] = {f"number_{place}": random.normal(size=count) for place in range(14)}
    columns["number_3"][::10] = np.nan
    for place in range(4):
        columns[f"label_{place}"] = [LABELS[pick] for pick in random.integers(0, len(LABELS), count).tolist()]
    columns["predicted"] = random.random(count)
    times = START + np.arange(start, start + count) * np.timedelta64(1, "s")
    return Rows(ids(start, count), times, cells_of(attributes, columns, count))


def ids(start: int, count: int) -> list[str]:
    return [f"order-{(start + place) * 7919 % 1_000_003:07d}" for place in range(count)]


async def truths(database: Database, model_id: UUID, attributes: list[MonitoredAttribute]) -> float:
    def given() -> Iterator[Truths]:
        for start in range(0, ROWS, BLOCK):
            times = np.full(BLOCK, START)
            yield Truths(ids(start, BLOCK), times, cells_of(attributes, {"truth": np.ones(BLOCK)}, BLOCK))

    started = time.perf_counter()
    async with database.transaction(TENANT) as session:
        truth = [attribute for attribute in attributes if attribute.name == "truth"]
        unknown = [await inferences.set_truths(session, model_id, block, truth) for block in given()]
    assert not any(unknown)
    return time.perf_counter() - started


async def scoring(database: Database, model_id: UUID) -> float:
    """Seconds in which all inferences are read and given scores, a thousand in each transaction, as in a backfill."""
    random, after, seconds = np.random.default_rng(0), 0, time.perf_counter()
    while True:
        async with database.transaction(TENANT) as session:
            rows = await scores.lacking(session, Wanted(model_id, "lime", 0, after=after))
            if not rows:
                return time.perf_counter() - seconds
            after = rows[-1].seq
            values = random.normal(size=(len(rows), INPUTS * CLASSES))
            seqs = np.array([row.seq for row in rows])
            facts: list[dict[str, Any]] = [{"n_samples": 2000}] * len(rows)
            given = Scores(0, seqs, values, facts, base_values=values[:, :CLASSES])
            await scores.add(session, model_id, "lime", given)


async def single(database: Database, model_id: UUID, attributes: list[MonitoredAttribute]) -> dict[str, float]:
    seconds = []
    for place in range(SINGLE):
        started = time.perf_counter()
        async with database.transaction(TENANT) as session:
            assert await inferences.add(session, model_id, block(attributes, ROWS + place, 1)) == []
        seconds.append(time.perf_counter() - started)
    cuts = statistics.quantiles(seconds, n=100)
    return {f"p{p}": round(cuts[p - 1] * 1000, 2) for p in (5, 50, 95)}


if __name__ == "__main__":
    main()
