"""Inferences of monitored models: added once, never changed but for their ground truth, read in order of ingestion."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from storage.cells import Cells
from storage.errors import InvalidValue
from storage.ids import time_ordered
from storage.monitored_tables import Inference, MonitoredAttribute
from storage.staging import BIGINT, TEXT, TIMESTAMPTZ, Column, stage
from storage.staging import UUID as UUID_

BLOCK = 5_000
"""Rows that go to Postgres at once: enough to make its round trips cheap, few enough to stay small in memory."""
MOST_NAMED = 1_000

GIVEN = "id, partner_inference_id, inference_timestamp, batch_id, ground_truth_timestamp, numbers, texts"


@dataclass(frozen=True, slots=True)
class Rows:
    """n inferences; a time is in microseconds, in UTC."""

    partner_inference_ids: Sequence[str]  # n
    inference_timestamps: NDArray[np.datetime64]  # (n,)
    cells: Cells
    batch_ids: Sequence[str | None] | None = None  # n
    ground_truth_timestamps: NDArray[np.datetime64] | None = None  # (n,); NaT is null

    def __len__(self) -> int:
        return len(self.partner_inference_ids)


@dataclass(frozen=True, slots=True)
class Truths:
    """Ground truth of n inferences."""

    partner_inference_ids: Sequence[str]  # n
    ground_truth_timestamps: NDArray[np.datetime64]  # (n,)
    cells: Cells

    def __len__(self) -> int:
        return len(self.partner_inference_ids)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many rows of a large set were stored, how many could not be, and the first `MOST_NAMED` ids of those."""

    done: int = 0
    failed: int = 0
    named: tuple[str, ...] = ()

    def plus(self, ids: Sequence[str], failed: Sequence[int]) -> Outcome:
        named = [ids[place] for place in failed[: MOST_NAMED - len(self.named)]]
        return Outcome(self.done + len(ids) - len(failed), self.failed + len(failed), (*self.named, *named))


async def add(session: AsyncSession, model_id: UUID, rows: Rows) -> list[int]:
    """Stores inferences in their order; the places of those that exist already, which stay as they are.

    Of several rows with one id the first counts. Raises InvalidValue for what Postgres cannot hold, and then stores
    nothing.
    """
    if np.isnat(rows.inference_timestamps).any():
        raise InvalidValue("a timestamp is missing")
    source, staged = await stage(session, "new_inferences", _columns(rows), len(rows))
    present = text(f"""
        WITH new AS MATERIALIZED (
            SELECT * FROM {source}
        ), added AS (
            INSERT INTO inferences (model_id, {GIVEN}) SELECT :model_id, {GIVEN} FROM new ORDER BY place
            ON CONFLICT (tenant_id, model_id, partner_inference_id) DO NOTHING
            RETURNING id
        )
        SELECT place FROM new WHERE id NOT IN (SELECT id FROM added) ORDER BY place
    """)  # noqa: S608 - names of ours
    return list(await session.scalars(present, {"model_id": model_id, **staged}))


def _columns(rows: Rows) -> dict[str, Column]:
    return {
        "place": Column(BIGINT, np.arange(len(rows))),
        "id": Column(UUID_, [time_ordered() for _ in range(len(rows))]),
        "partner_inference_id": Column(TEXT, rows.partner_inference_ids),
        "inference_timestamp": Column(TIMESTAMPTZ, rows.inference_timestamps),
        "batch_id": Column(TEXT, rows.batch_ids),
        "ground_truth_timestamp": Column(TIMESTAMPTZ, rows.ground_truth_timestamps),
        **rows.cells.columns(),
    }


async def add_all(session: AsyncSession, model_id: UUID, blocks: Iterable[Rows]) -> Outcome:
    """Stores any number of inferences block by block, all or, when the transaction fails, none; each block is asked
    for in a thread, when the one before is stored. Rows that exist already are counted as failed. Raises as `add`.
    """
    outcome = Outcome()
    waiting = iter(blocks)
    while (rows := await asyncio.to_thread(next, waiting, None)) is not None:
        for part in _parts(rows):
            outcome = outcome.plus(part.partner_inference_ids, await add(session, model_id, part))
    return outcome


def _parts(rows: Rows) -> Iterator[Rows]:
    for start in range(0, len(rows), BLOCK):
        here = slice(start, start + BLOCK)
        yield Rows(
            rows.partner_inference_ids[here],
            rows.inference_timestamps[here],
            rows.cells.take(here),
            rows.batch_ids and rows.batch_ids[here],
            None if rows.ground_truth_timestamps is None else rows.ground_truth_timestamps[here],
        )


async def set_truths(
    session: AsyncSession, model_id: UUID, truths: Truths, attributes: Sequence[MonitoredAttribute]
) -> list[int]:
    """Replaces the values of these attributes, and the time of the ground truth; the places of the unknown ids.

    Of several rows with one id the last counts. Raises InvalidValue for what Postgres cannot hold.
    """
    if np.isnat(truths.ground_truth_timestamps).any():
        raise InvalidValue("a timestamp is missing")
    columns = {
        "place": Column(BIGINT, np.arange(len(truths))),
        "partner_inference_id": Column(TEXT, truths.partner_inference_ids),
        "ground_truth_timestamp": Column(TIMESTAMPTZ, truths.ground_truth_timestamps),
        **truths.cells.columns(),
    }
    source, staged = await stage(session, "new_truths", columns, len(truths))
    slots = [f"{attribute.slot_kind}s[{attribute.slot:d}]" for attribute in attributes]
    changes = "".join(f", {slot} = last.{slot}" for slot in slots)
    unknown = text(f"""
        WITH new AS MATERIALIZED (
            SELECT * FROM {source}
        ), last AS (
            SELECT DISTINCT ON (partner_inference_id) * FROM new ORDER BY partner_inference_id, place DESC
        ), changed AS (
            UPDATE inferences SET ground_truth_timestamp = last.ground_truth_timestamp{changes}
            FROM last WHERE model_id = :model_id AND inferences.partner_inference_id = last.partner_inference_id
            RETURNING inferences.partner_inference_id
        )
        SELECT place FROM new
        WHERE partner_inference_id NOT IN (SELECT partner_inference_id FROM changed) ORDER BY place
    """)  # noqa: S608 - slots are of ours
    return list(await session.scalars(unknown, {"model_id": model_id, **staged}))


async def count(session: AsyncSession, model_id: UUID) -> int:
    """How many are stored."""
    query = select(func.count()).select_from(Inference).where(Inference.model_id == model_id)
    return int(await session.scalar(query) or 0)


async def find(session: AsyncSession, model_id: UUID, partner_inference_id: str) -> Inference | None:
    """The inference to which its owner gave that id."""
    query = select(Inference).where(
        Inference.model_id == model_id, Inference.partner_inference_id == partner_inference_id
    )
    return await session.scalar(query)


async def find_by_id(session: AsyncSession, model_id: UUID, id: UUID) -> Inference | None:
    """The inference to which we gave that id."""
    return await session.scalar(select(Inference).where(Inference.model_id == model_id, Inference.id == id))


async def read(session: AsyncSession, model_id: UUID, *, after: int = 0, limit: int = BLOCK) -> list[Inference]:
    """The inferences whose `seq` is greater than `after`, in that order, at most `limit`."""
    query = select(Inference).where(Inference.model_id == model_id, Inference.seq > after)
    return list(await session.scalars(query.order_by(Inference.seq).limit(limit)))
