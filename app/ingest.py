"""Inferences, ground truth and reference sets on their way in: every record is checked, the bad ones are named, the
good ones kept, all of one request in one transaction.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any, TypeAlias

import numpy as np
from sqlalchemy.ext.asyncio import AsyncSession

from app.explain import Explainer
from app.explainability import followed_up, renew
from app.monitored import Monitored, find_active
from app.rows import Layout, Row, moment
from explainers.errors import InvalidRequest
from storage import inferences, reference
from storage.cells import Cells
from storage.database import Database
from storage.inferences import Rows, Truths
from storage.monitored_models import list_attributes
from storage.values import UNSTORABLE

LONGEST_ID = 1_000
NO_TIME = np.datetime64("NaT", "us")


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one record; `status` as in HTTP."""

    status: int
    message: str
    id: str | None = None


SUCCESS = Result(200, "success")


@dataclass(frozen=True, slots=True)
class Arrival:
    """A record that has been found good."""

    id: str
    at: np.datetime64  # when it was inferred, or its truth became known
    row: Row
    batch: str | None = None
    truth_at: np.datetime64 = NO_TIME
    told: frozenset[str] = frozenset()
    """The attributes that a ground truth says something of."""


Read: TypeAlias = Callable[[Layout, Any], Arrival]


async def add_inferences(database: Database, tenant: str, name: str, records: Sequence[Any]) -> list[Result]:
    """One result per record, in their order; raises `UnknownModel`."""

    async def store(session: AsyncSession, model: Monitored, good: Sequence[Arrival]) -> Mapping[int, Result]:
        async with followed_up(session, model):
            existing = await inferences.add(session, model.id, rows_of(model.layout, good))
        return {place: Result(409, "an inference with this partner_inference_id exists already") for place in existing}

    return await _take(database, tenant, name, records, read_inference, store)


async def set_truths(database: Database, tenant: str, name: str, records: Sequence[Any]) -> list[Result]:
    """Ground truth of stored inferences, in place of any before; one result per record. Raises `UnknownModel`."""

    async def store(session: AsyncSession, model: Monitored, good: Sequence[Arrival]) -> Mapping[int, Result]:
        unknown = await store_truths(session, model, good)
        return {place: Result(404, "there is no inference with this partner_inference_id") for place in unknown}

    return await _take(database, tenant, name, records, read_truth, store)


async def store_truths(session: AsyncSession, model: Monitored, good: Sequence[Arrival]) -> list[int]:
    """Replaces what each record says something of, and nothing else; the places of the unknown inferences.

    Records follow one another in their order, in runs that tell of the same attributes.
    """
    attributes = await list_attributes(session, model.id)
    unknown: list[int] = []
    start = 0
    for told, run in groupby(good, key=lambda arrival: arrival.told):
        arrivals = list(run)
        replaced = [attribute for attribute in attributes if attribute.name in told]
        missing = await inferences.set_truths(session, model.id, truths_of(model.layout, arrivals), replaced)
        unknown += [start + place for place in missing]
        start += len(arrivals)
    return unknown


async def close_reference(explainer: Explainer, tenant: str, name: str, expected: int) -> None:
    """Ends the reference set, which must have so many rows: explanations are prepared anew with it.

    Raises `UnknownModel`, InvalidValue.
    """
    async with explainer.database.transaction(tenant=tenant) as session:
        model = await find_active(session, name)
        await reference.close(session, model.id, expected)
    await renew(explainer, tenant, model, background=True)


Store: TypeAlias = Callable[[AsyncSession, Monitored, Sequence[Arrival]], Any]


async def _take(
    database: Database, tenant: str, name: str, records: Sequence[Any], read: Read, store: Store
) -> list[Result]:
    async with database.transaction(tenant=tenant) as session:
        model = await find_active(session, name)
    results, good = await asyncio.to_thread(sorted_out, model.layout, records, read)
    if good:
        async with database.transaction(tenant=tenant) as session:
            failed = await store(session, model, [arrival for _, arrival in good])
        for index, result in failed.items():
            place, arrival = good[index]
            results[place] = Result(result.status, result.message, arrival.id)
    return results


def sorted_out(layout: Layout, records: Sequence[Any], read: Read) -> tuple[list[Result], list[tuple[int, Arrival]]]:
    """A result for every record, and the good records with their places."""
    results, good = [SUCCESS] * len(records), []
    for place, record in enumerate(records):
        try:
            good.append((place, read(layout, record)))
        except InvalidRequest as error:
            results[place] = Result(400, str(error), id_of(record))
    return results, good


def read_inference(layout: Layout, record: Any) -> Arrival:
    """Raises InvalidRequest."""
    record = an_object(record)
    truth, batch = record.get("ground_truth_data"), record.get("batch_id")
    if batch is not None and (not isinstance(batch, str) or UNSTORABLE.search(batch)):
        raise InvalidRequest("batch_id must be a string")
    truth_at = NO_TIME if truth is None else time_of(record, "ground_truth_timestamp")
    at = time_of(record, "inference_timestamp")
    return Arrival(a_name(record), at, layout.inference(record.get("inference_data"), truth), batch or None, truth_at)


def read_truth(layout: Layout, record: Any) -> Arrival:
    """Raises InvalidRequest."""
    record = an_object(record)
    at = time_of(record, "ground_truth_timestamp")
    data = record.get("ground_truth_data")
    return Arrival(a_name(record), at, layout.truth(data), told=layout.told_by(data))


def an_object(record: Any) -> Mapping[str, Any]:
    if not isinstance(record, dict):
        raise InvalidRequest("a record must be a JSON object")
    return record


def a_name(record: Mapping[str, Any]) -> str:
    name = record.get("partner_inference_id")
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_ID or UNSTORABLE.search(name):
        raise InvalidRequest(f"partner_inference_id must be a string of 1 to {LONGEST_ID} characters")
    return name


def id_of(record: Any) -> str | None:
    """The name that a bad record gives itself, if it is one."""
    try:
        return a_name(an_object(record))
    except InvalidRequest:
        return None


def time_of(record: Mapping[str, Any], name: str) -> np.datetime64:
    try:
        found: datetime = moment(record.get(name))
    except (TypeError, ValueError, OverflowError):
        raise InvalidRequest(f"{name} must be an ISO 8601 time") from None
    return np.datetime64(found.replace(tzinfo=None), "us")


def without_nan(value: Any) -> Any:
    """The same JSON value with null for every number that is none."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: without_nan(entry) for name, entry in value.items()}
    return [without_nan(entry) for entry in value] if isinstance(value, list) else value


def rows_of(layout: Layout, good: Sequence[Arrival]) -> Rows:
    return Rows(
        [arrival.id for arrival in good],
        times(arrival.at for arrival in good),
        cells_of(layout, [arrival.row for arrival in good]),
        [arrival.batch for arrival in good],
        times(arrival.truth_at for arrival in good),
    )


def truths_of(layout: Layout, good: Sequence[Arrival]) -> Truths:
    return Truths(
        [arrival.id for arrival in good],
        times(arrival.at for arrival in good),
        cells_of(layout, [arrival.row for arrival in good]),
    )


def times(moments: Iterable[np.datetime64]) -> np.ndarray[Any, np.dtype[np.datetime64]]:  # (n,)
    return np.array(list(moments), dtype="datetime64[us]")


def cells_of(layout: Layout, rows: Sequence[Row]) -> Cells:
    numbers = np.array([row.numbers for row in rows], dtype=np.float64).reshape(len(rows), layout.numbers)
    return Cells(numbers, tuple([row.texts[slot] for row in rows] for slot in range(layout.texts)))
