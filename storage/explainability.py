"""How models are explained: one row each, from the moment it was first asked for."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from storage.monitored_tables import Explainability, MonitoredModel


async def find(session: AsyncSession, model_id: UUID, *, keep: bool = False) -> Explainability | None:
    """None for a model that was never to be explained. With `keep` it cannot change until the transaction ends."""
    query = select(Explainability).where(Explainability.model_id == model_id)
    return await session.scalar(query.with_for_update(read=True) if keep else query)


async def begin(session: AsyncSession, model_id: UUID) -> MonitoredModel | None:
    """The model, before what is said of it changes; None for one that is archived.

    Waits for those who are storing inferences of the model, and lets no one begin until the transaction ends.
    """
    active = (MonitoredModel.id == model_id, MonitoredModel.archived_at.is_(None))
    query = select(MonitoredModel).where(*active).with_for_update().execution_options(populate_existing=True)
    return await session.scalar(query)


async def put(session: AsyncSession, model_id: UUID, **values: Any) -> None:
    """Everything that is said of how a model is explained, after `begin`; `values` are all other columns."""
    given = {"model_id": model_id, **values}
    added = insert(Explainability).values(given)
    await session.execute(added.on_conflict_do_update(index_elements=["tenant_id", "model_id"], set_=values))


async def outdate(session: AsyncSession, model_id: UUID) -> None:
    """Scores of now are of former days from here on; waits for those who are storing some."""
    changed = update(Explainability).where(Explainability.model_id == model_id)
    await session.execute(changed.values(fingerprint=None))


async def frontier(session: AsyncSession) -> int:
    """A `seq` that is smaller than that of every inference stored from now on in this transaction."""
    return int(await session.scalar(text("SELECT nextval(pg_get_serial_sequence('inferences', 'seq'))")) or 0)
