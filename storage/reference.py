"""Reference sets: what a model's inferences are compared with and explained against. Appended to until closed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from uuid import UUID

import numpy as np
from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from storage.cells import Cells, count_of
from storage.errors import AlreadyExists, InvalidValue, NotFound
from storage.monitored_models import list_attributes
from storage.monitored_tables import MonitoredModel, ReferenceRow
from storage.staging import BIGINT, Column, stage

BLOCK = 5_000


async def append(session: AsyncSession, model_id: UUID, blocks: Iterable[Cells]) -> int:
    """Adds any number of rows to a set that is still open, all or none; how many. Each block is asked for in a thread.

    Raises NotFound for an unknown model, AlreadyExists for a closed set, InvalidValue for what Postgres cannot hold.
    """
    await _open(session, model_id)
    added = 0
    waiting = iter(blocks)
    while (rows := await asyncio.to_thread(next, waiting, None)) is not None:
        for part in _parts(rows):
            await _add(session, model_id, part)
        added += len(rows)
    return added


async def _add(session: AsyncSession, model_id: UUID, rows: Cells) -> None:
    columns = {"place": Column(BIGINT, np.arange(len(rows))), **rows.columns()}
    source, staged = await stage(session, "new_reference_rows", columns, len(rows))
    added = text(f"""
        INSERT INTO reference_rows (model_id, numbers, texts)
        SELECT :model_id, numbers, texts FROM {source} ORDER BY place
    """)  # noqa: S608 - names of ours
    await session.execute(added, {"model_id": model_id, **staged})


def _parts(rows: Cells) -> Iterator[Cells]:
    return (rows.take(slice(start, start + BLOCK)) for start in range(0, len(rows), BLOCK))


async def _open(session: AsyncSession, model_id: UUID) -> None:
    """Keeps the set from being closed until the transaction ends."""
    if await _closed(session, model_id, read=True):
        raise AlreadyExists("the reference set of that model is complete")


async def _closed(session: AsyncSession, model_id: UUID, *, read: bool) -> bool:
    query = select(MonitoredModel.reference_closed_at).where(MonitoredModel.id == model_id)
    # Neither lock keeps inferences from referring to the model.
    row = (await session.execute(query.with_for_update(read=read, key_share=not read))).one_or_none()
    if row is None:
        raise NotFound("no such model")
    return row.reference_closed_at is not None


async def count(session: AsyncSession, model_id: UUID) -> int:
    """How many rows the set has."""
    query = select(func.count()).select_from(ReferenceRow).where(ReferenceRow.model_id == model_id)
    return int(await session.scalar(query) or 0)


async def close(session: AsyncSession, model_id: UUID, expected: int) -> None:
    """Ends the set, which must have so many rows; a second time changes nothing.

    Raises NotFound for an unknown model, InvalidValue for another number of rows.
    """
    closed = await _closed(session, model_id, read=False)
    if (found := await count(session, model_id)) != expected:
        raise InvalidValue(f"the reference set has {found} rows")
    if not closed:
        changed = update(MonitoredModel).where(MonitoredModel.id == model_id)
        await session.execute(changed.values(reference_closed_at=func.now()))


async def read(session: AsyncSession, model_id: UUID, *, most: int | None = None) -> Cells:
    """The rows of the set in their order, all or the first `most`; none of an unknown model."""
    attributes = await list_attributes(session, model_id)
    numbers: list[list[float | None]] = []
    texts: list[list[str | None]] = []
    after = 0
    while block := await _block(session, model_id, after, BLOCK if most is None else min(BLOCK, most - len(numbers))):
        after = block[-1].seq
        numbers += [row.numbers for row in block]
        texts += [row.texts for row in block]
    cells = np.array(numbers, dtype=np.float64).reshape(len(numbers), count_of(attributes, "number"))
    return Cells(cells, tuple([row[slot] for row in texts] for slot in range(count_of(attributes, "text"))))


async def _block(session: AsyncSession, model_id: UUID, after: int, limit: int) -> list[ReferenceRow]:
    query = select(ReferenceRow).where(ReferenceRow.model_id == model_id, ReferenceRow.seq > after)
    return list(await session.scalars(query.order_by(ReferenceRow.seq).limit(limit)))
