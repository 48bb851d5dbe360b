"""Rows of monitored models on one pooled connection: a transaction sees its own tenant's, and no others."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import delete, func, select, table, text, update

from storage import inferences, monitored_models, reference, scores, staging, tenants
from storage.database import Database
from storage.errors import NotFound, StorageError
from storage.monitored_tables import (
    Inference,
    InferenceScores,
    InferenceTokens,
    MonitoredAttribute,
    MonitoredModel,
    ReferenceRow,
)
from tests.storage.monitored import filled, rows_of
from tests.storage.test_inferences import some_cells
from tests.storage.test_scores import some_scores, some_tokens

OWNED = (MonitoredModel, MonitoredAttribute, Inference, ReferenceRow, InferenceScores, InferenceTokens)


async def fill(database: Database, tenant: str) -> tuple[UUID, list[MonitoredAttribute], list[Inference]]:
    """Rows in each table."""
    model_id, attributes, rows = await filled(database, tenant, ["a", "b"])
    async with database.transaction(tenant) as session:
        await reference.append(session, model_id, iter([some_cells(attributes, 0, 1)]))
        await scores.add(session, model_id, "lime", some_scores(rows))
        await scores.add_tokens(session, model_id, "lime", some_tokens(rows))
    return model_id, attributes, rows


@pytest.mark.parametrize("owned", OWNED)
async def test_other_tenants_rows_are_out_of_reach(
    database: Database, tenant: str, other_tenant: str, owned: type[Any]
) -> None:
    await fill(database, tenant)
    count = select(func.count()).select_from(owned)
    async with database.transaction(tenant) as session:
        before = await session.scalar(count)
        assert before
    for who in (other_tenant, None):
        async with database.transaction(who) as session:
            assert await session.scalar(count) == 0
            changed = await session.execute(update(owned).values(tenant_id=owned.tenant_id).returning(owned.tenant_id))
            assert changed.all() == []
            assert (await session.execute(delete(owned).returning(owned.tenant_id))).all() == []
    async with database.transaction(tenant) as session:
        assert await session.scalar(count) == before
    with pytest.raises(StorageError, match="InsufficientPrivilege"):
        async with database.transaction(tenant) as session:
            await session.execute(update(owned).values(tenant_id=other_tenant))


async def test_another_tenants_model_takes_no_rows(database: Database, tenant: str, other_tenant: str) -> None:
    model_id, attributes, rows = await fill(database, tenant)
    with pytest.raises(StorageError, match="ForeignKeyViolation"):
        async with database.transaction(other_tenant) as session:
            await inferences.add(session, model_id, rows_of(attributes, ["c"]))
    with pytest.raises(StorageError, match="ForeignKeyViolation"):
        async with database.transaction(other_tenant) as session:
            await scores.add(session, model_id, "shap", some_scores(rows))
    async with database.transaction(other_tenant) as session:
        for refused in (
            reference.append(session, model_id, iter([some_cells(attributes, 0, 1)])),
            monitored_models.get(session, model_id),
            monitored_models.archive(session, model_id),
        ):
            with pytest.raises(NotFound):
                await refused
        assert await inferences.read(session, model_id) == []
        assert await scores.find(session, model_id, "lime", rows[0].seq) is None
        assert await scores.lacking(session, scores.Wanted(model_id, "shap", 7)) == []


async def test_rows_on_their_way_are_gone_for_the_next_tenant(
    database: Database, tenant: str, other_tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "FEW", 0)
    await fill(database, tenant)
    async with database.transaction(other_tenant) as session:
        for name in ("new_inferences", "new_reference_rows", "new_scores", "new_tokens"):
            staged = table(name, schema="pg_temp")
            assert await session.scalar(select(func.count()).select_from(staged)) == 0


async def test_two_tenants_use_the_same_ids(database: Database, tenant: str, other_tenant: str) -> None:
    await fill(database, tenant)
    model_id, _, rows = await fill(database, other_tenant)
    async with database.transaction(other_tenant) as session:
        found = await scores.find_by_partner_id(session, model_id, "lime", "b")
        assert found is not None
        assert (found.seq, found.tenant_id) == (rows[1].seq, other_tenant)
        assert np.array_equal(found.scores, some_scores(rows).scores[1])


async def test_a_removed_tenant_takes_its_rows_along(database: Database, tenant: str) -> None:
    await fill(database, tenant)
    async with database.transaction(tenant) as session:
        await session.execute(text("DELETE FROM tenants"))
        await tenants.ensure(session, tenant)
        for owned in OWNED:
            assert await session.scalar(select(func.count()).select_from(owned)) == 0
