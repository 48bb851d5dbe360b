"""A part of a model's rows for all of them: what its explanations are prepared with.

The part is drawn by a hash of each row's place, so that it is even over a set of any order, and the same each time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ARRAY, BigInteger, any_, func, literal, select
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.ext.asyncio import AsyncSession

from storage.cells import Cells, count_of
from storage.monitored_models import list_attributes
from storage.monitored_tables import Inference, ReferenceRow

BLOCK_CELLS = 20_000
"""Values that are read at once: whoever reads shares the event loop with requests."""


async def sample(
    session: AsyncSession, table: type[Inference] | type[ReferenceRow], model_id: UUID, most: int
) -> Cells:
    """All rows of the model in that table, or `most` of them where there are more, in their order."""
    attributes = await list_attributes(session, model_id)
    width = max(1, len(attributes))
    seqs = await _chosen(session, table, model_id, most)
    step = max(1, BLOCK_CELLS // width)
    numbers: list[NDArray[np.float64]] = [np.zeros((0, count_of(attributes, "number")))]
    texts: list[list[str | None]] = [[] for _ in range(count_of(attributes, "text"))]
    for start in range(0, len(seqs), step):
        wanted = table.seq == any_(literal(seqs[start : start + step], ARRAY(BigInteger)))
        block = select(table.numbers, table.texts).where(table.model_id == model_id, wanted).order_by(table.seq)
        found = (await session.execute(block)).all()
        numbers.append(await asyncio.to_thread(_numbers, found, numbers[0].shape[1]))
        for slot in range(len(texts)):
            texts[slot] += (row.texts[slot] for row in found)
    return Cells(np.concatenate(numbers), tuple(texts))


async def _chosen(
    session: AsyncSession, table: type[Inference] | type[ReferenceRow], model_id: UUID, most: int
) -> list[int]:
    place = func.row_number().over(order_by=table.seq).label("place")
    placed = select(table.seq, place).where(table.model_id == model_id).subquery()
    drawn = select(placed.c.seq).order_by(func.hashint8extended(placed.c.place, 0), placed.c.place).limit(most)
    chosen = drawn.subquery()
    return await session.scalar(select(func.array_agg(aggregate_order_by(chosen.c.seq, chosen.c.seq)))) or []


def _numbers(rows: Sequence[Any], width: int) -> NDArray[np.float64]:  # (n, width)
    return np.array([row.numbers for row in rows], dtype=np.float64).reshape(len(rows), width)
