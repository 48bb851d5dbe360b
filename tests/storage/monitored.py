"""A model with one attribute of each kind, and rows of it, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import numpy as np

from storage import inferences, monitored_models
from storage.cells import cells_of
from storage.database import Database
from storage.inferences import Rows
from storage.monitored_models import Attribute
from storage.monitored_tables import Inference, MonitoredAttribute

ATTRIBUTES = (
    Attribute("income", "PIPELINE_INPUT", "FLOAT", 0, definition={"min_range": 0}),
    Attribute("note", "PIPELINE_INPUT", "UNSTRUCTURED_TEXT", 1),
    Attribute("member", "PIPELINE_INPUT", "BOOLEAN", 2),
    Attribute("since", "NON_INPUT_DATA", "TIMESTAMP", 0),
    Attribute("tags", "NON_INPUT_DATA", "ARRAY(STRING)", 1),
    Attribute("yes", "PREDICTED_VALUE", "FLOAT", 0, attribute_link="gt_yes"),
    Attribute("not_yes", "PREDICTED_VALUE", "FLOAT", 1, implicit=True),
    Attribute("gt_yes", "GROUND_TRUTH", "INTEGER", 0, implicit=True, attribute_link="yes"),
)
START = np.datetime64("2026-03-01T08:00:00", "us")
HOUR = np.timedelta64(1, "h")


def registration(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "partner_model_id": "churn-7",
        "input_type": "TABULAR",
        "output_type": "MULTICLASS",
        "status": "Ready",
        "is_batch": False,
        "definition": {"attributes": [attribute.name for attribute in ATTRIBUTES]},
        "attributes": ATTRIBUTES,
    }
    return fields | changes


async def registered(database: Database, tenant: str, **changes: Any) -> tuple[UUID, list[MonitoredAttribute]]:
    """A new model of the tenant, and its attributes."""
    async with database.transaction(tenant) as session:
        model = await monitored_models.create(session, **registration(**changes))
        return model.id, await monitored_models.list_attributes(session, model.id)


def rows_of(attributes: Sequence[MonitoredAttribute], ids: Sequence[str], **columns: Any) -> Rows:
    """Inferences one hour apart with these columns."""
    times = START + np.arange(len(ids)) * HOUR
    return Rows(list(ids), times, cells_of(attributes, columns, len(ids)))


async def stored(database: Database, tenant: str, model_id: UUID) -> list[Inference]:
    async with database.transaction(tenant) as session:
        return await inferences.read(session, model_id)


async def filled(
    database: Database, tenant: str, ids: Sequence[str], **columns: Any
) -> tuple[UUID, list[MonitoredAttribute], list[Inference]]:
    """A new model with inferences: its id, its attributes and its rows."""
    model_id, attributes = await registered(database, tenant)
    async with database.transaction(tenant) as session:
        assert await inferences.add(session, model_id, rows_of(attributes, ids, **columns)) == []
    return model_id, attributes, await stored(database, tenant, model_id)
