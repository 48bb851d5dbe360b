"""Files of many rows, Parquet or JSON: read block by block, checked like records, stored in one transaction."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from pydantic_core import from_json

from app.definitions import TRUTHS
from app.explainability import followed_up
from app.ingest import (
    NO_TIME,
    Arrival,
    Read,
    Result,
    cells_of,
    read_inference,
    read_truth,
    rows_of,
    sorted_out,
    store_truths,
)
from app.monitored import find_active
from app.rows import Layout
from explainers.errors import InvalidRequest
from explainers.predictors.parquet_file import rows_of as rows_of_parquet
from storage import inferences, reference
from storage.cells import Cells
from storage.database import Database
from storage.inferences import MOST_NAMED, Outcome, Rows

BLOCK = 5_000
LARGEST_JSON = 64 * 2**20
"""Bytes of a JSON file, which is read whole; larger sets come as Parquet."""
MAGIC = b"PAR1"
OWN = ("partner_inference_id", "inference_timestamp", "ground_truth_timestamp", "batch_id")


@dataclass(slots=True)
class Report:
    """How many rows were stored and how many not, with what was wrong with the first of those."""

    success: int = 0
    failure: int = 0
    failures: list[Result] = field(default_factory=list)

    def refuse(self, results: Iterable[Result]) -> None:
        for result in results:
            if result.status >= 300:
                self.failure += 1
                if len(self.failures) < MOST_NAMED:
                    self.failures.append(result)

    def settle(self, outcome: Outcome, status: int, message: str) -> None:
        """Adds what the store did with the good ones."""
        self.success += outcome.done
        self.failure += outcome.failed
        room = MOST_NAMED - len(self.failures)
        self.failures += [Result(status, message, id) for id in outcome.named[:room]]


async def add_inference_file(database: Database, tenant: str, name: str, file: BinaryIO, batch: str | None) -> Report:
    """Raises `UnknownModel`, and InvalidRequest for a file that cannot be read."""
    report = Report()
    async with database.transaction(tenant=tenant) as session:
        model = await find_active(session, name)
        records = (nested(model.layout, row, batch) for row in rows_in(file))

        def blocks() -> Iterator[Rows]:
            for good in checked(model.layout, records, read_inference, report):
                yield rows_of(model.layout, good)

        async with followed_up(session, model):
            outcome = await inferences.add_all(session, model.id, blocks())
    report.settle(outcome, 409, "an inference with this partner_inference_id exists already")
    return report


async def set_truth_file(database: Database, tenant: str, name: str, file: BinaryIO) -> Report:
    """Raises `UnknownModel`, and InvalidRequest for a file that cannot be read."""
    report = Report()
    async with database.transaction(tenant=tenant) as session:
        model = await find_active(session, name)
        records = (nested(model.layout, row, None) for row in rows_in(file))
        blocks, outcome = checked(model.layout, records, read_truth, report), Outcome()
        while (good := await asyncio.to_thread(next, blocks, None)) is not None:
            unknown = await store_truths(session, model, good)
            outcome = outcome.plus([arrival.id for arrival in good], unknown)
    report.settle(outcome, 404, "there is no inference with this partner_inference_id")
    return report


async def add_reference_file(database: Database, tenant: str, name: str, file: BinaryIO) -> Report:
    """Raises `UnknownModel`, AlreadyExists for a closed set, and InvalidRequest for a file that cannot be read."""
    report = Report()
    async with database.transaction(tenant=tenant) as session:
        model = await find_active(session, name)

        def read(layout: Layout, row: Any) -> Arrival:
            inner = row.get("reference_data", row) if isinstance(row, dict) else row
            return Arrival("", NO_TIME, layout.reference(inner))

        def blocks() -> Iterator[Cells]:
            for good in checked(model.layout, rows_in(file), read, report):
                yield cells_of(model.layout, [arrival.row for arrival in good])

        report.success = await reference.append(session, model.id, blocks())
    return report


def checked(layout: Layout, records: Iterable[Any], read: Read, report: Report) -> Iterator[list[Arrival]]:
    """The good records block by block; the others go into the report."""
    for block in in_blocks(records):
        results, good = sorted_out(layout, block, read)
        report.refuse(results)
        if good:
            yield [arrival for _, arrival in good]


def in_blocks(records: Iterable[Any]) -> Iterator[list[Any]]:
    block: list[Any] = []
    for record in records:
        block.append(record)
        if len(block) == BLOCK:
            yield block
            block = []
    if block:
        yield block


def rows_in(file: BinaryIO) -> Iterator[Any]:
    """The rows of a file, which says itself what it is: its name and type are the caller's. Raises InvalidRequest."""
    file.seek(0)
    magic = file.read(len(MAGIC))
    file.seek(0)
    return parquet_rows(file) if magic == MAGIC else json_rows(file)


def parquet_rows(file: BinaryIO) -> Iterator[Any]:
    file.seek(0)
    return map(nulls_for_nan, rows_of_parquet(file.read(), BLOCK))


def nulls_for_nan(row: dict[str, Any]) -> dict[str, Any]:
    """Files of columns write NaN for what is missing; an infinity is a value, and a wrong one."""
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}


def json_rows(file: BinaryIO) -> Iterator[Any]:
    content = file.read(LARGEST_JSON + 1)
    if len(content) > LARGEST_JSON:
        raise InvalidRequest(f"a JSON file may have {LARGEST_JSON} bytes: send Parquet")
    try:
        rows = from_json(content, allow_inf_nan=False)
    except ValueError:
        raise InvalidRequest("the file is neither Parquet nor JSON") from None
    if not isinstance(rows, list):
        raise InvalidRequest("the file must hold an array of rows")
    yield from rows


def nested(layout: Layout, row: Any, batch: str | None) -> Any:
    """A flat row as the record it stands for; one that is nested already as it is."""
    if not isinstance(row, dict):
        return row
    batch = batch or row.get("batch_id")
    if "inference_data" in row or "ground_truth_data" in row:
        return row | {"batch_id": batch}
    own = {name: row[name] for name in OWN if name in row} | {"batch_id": batch}
    return own | by_stage(layout, {name: value for name, value in row.items() if name not in OWN})


def by_stage(layout: Layout, values: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs and outputs apart from ground truth; what is derived anyway is left out."""
    data: dict[str, Any] = {}
    truth: dict[str, Any] = {}
    for name, value in values.items():
        place = layout.places.get(name)
        if place is None or not place.attribute.implicit:
            (truth if place is not None and place.attribute.stage in TRUTHS else data)[name] = value
    return {"inference_data": data} | ({"ground_truth_data": truth} if truth else {})
