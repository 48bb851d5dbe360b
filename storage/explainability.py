"""How models are explained: one row each, from the moment it was first asked for."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from storage.tables import Explainability, MonitoredModel


async def find(session: AsyncSession, model_id: UUID, *, keep: bool = False) -> Explainability | None:
    """None for a model that was never to be explained. With `keep` it cannot change until the transaction ends."""
    query = select(Explainability).where(Explainability.model_id == model_id)
    return await session.scalar(query.with_for_update(read=True) if keep else query)


async def put(session: AsyncSession, model_id: UUID, **values: Any) -> None:
    """Everything that is said of how a model is explained; `values` are all other columns.

    Waits for those who are storing inferences of the model, and lets no one begin until the transaction ends.
    """
    await session.execute(select(MonitoredModel.id).where(MonitoredModel.id == model_id).with_for_update())
    given = {"model_id": model_id, **values}
    added = insert(Explainability).values(given)
    await session.execute(added.on_conflict_do_update(index_elements=["tenant_id", "model_id"], set_=values))


async def frontier(session: AsyncSession) -> int:
    """A `seq` that is smaller than that of every inference stored from now on in this transaction."""
    return int(await session.scalar(text("SELECT nextval(pg_get_serial_sequence('inferences', 'seq'))")) or 0)
