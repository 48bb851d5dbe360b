"""Models whose inferences are kept, and the slots of their attributes."""

from __future__ import annotations

import pytest

from storage import monitored_models
from storage.database import Database
from storage.errors import AlreadyExists, InvalidValue, NotFound
from storage.ids import time_ordered
from storage.monitored_models import Attribute
from tests.storage.monitored import ATTRIBUTES, registered, registration


async def test_attributes_get_slots_of_their_kind_in_order(database: Database, tenant: str) -> None:
    _, attributes = await registered(database, tenant)
    assert [(each.name, each.slot_kind, each.slot) for each in attributes] == [
        ("income", "number", 1),
        ("note", "text", 1),
        ("member", "number", 2),
        ("since", "number", 3),
        ("tags", "text", 2),
        ("yes", "number", 4),
        ("not_yes", "number", 5),
        ("gt_yes", "number", 6),
    ]
    for row, declared in zip(attributes, ATTRIBUTES, strict=True):
        for name in Attribute.__dataclass_fields__:
            assert getattr(row, name) == getattr(declared, name)


async def test_a_name_belongs_to_one_active_model(database: Database, tenant: str, other_tenant: str) -> None:
    first, _ = await registered(database, tenant)
    await registered(database, other_tenant)
    async with database.transaction(tenant) as session:
        with pytest.raises(AlreadyExists):
            await monitored_models.create(session, **registration())
        assert (await monitored_models.archive(session, first)).status == "Archived"
        assert (await monitored_models.get_by_partner_id(session, "churn-7")).id == first
    second, _ = await registered(database, tenant)
    async with database.transaction(tenant) as session:
        assert (await monitored_models.get_by_partner_id(session, "churn-7")).id == second
        assert [model.id for model in await monitored_models.list_all(session)] == [second]
        assert [model.id for model in await monitored_models.list_all(session, archived=True)] == [first, second]
        assert (await monitored_models.get(session, first)).archived_at is not None
        for gone in (monitored_models.archive(session, first), monitored_models.change(session, first, status="Ready")):
            with pytest.raises(NotFound):
                await gone


async def test_unknown_models_are_not_found(database: Database, tenant: str) -> None:
    async with database.transaction(tenant) as session:
        with pytest.raises(NotFound):
            await monitored_models.get(session, time_ordered())
        with pytest.raises(NotFound):
            await monitored_models.get_by_partner_id(session, "none")
        assert await monitored_models.list_attributes(session, time_ordered()) == []


async def test_descriptions_change_but_not_the_set_of_attributes(database: Database, tenant: str) -> None:
    id, _ = await registered(database, tenant)
    moved = Attribute("income", "PIPELINE_INPUT", "FLOAT", 7, definition={"label": "Income"}, attribute_link="yes")
    async with database.transaction(tenant) as session:
        model = await monitored_models.change(session, id, status="Failed", definition={"tags": [1]})
        assert (model.status, model.definition, model.is_batch) == ("Failed", {"tags": [1]}, False)
        assert (await monitored_models.change(session, id, is_batch=True, attributes=[moved])).is_batch
    async with database.transaction(tenant) as session:
        first, *others = await monitored_models.list_attributes(session, id)
        assert (first.position, first.definition, first.attribute_link) == (7, {"label": "Income"}, "yes")
        assert (first.slot_kind, first.slot, len(others)) == ("number", 1, 7)
        for wrong in (
            Attribute("new", "PIPELINE_INPUT", "FLOAT", 0),
            Attribute("income", "PIPELINE_INPUT", "STRING", 0),
            Attribute("income", "GROUND_TRUTH", "FLOAT", 0),
        ):
            with pytest.raises(InvalidValue):
                await monitored_models.change(session, id, attributes=[wrong])


async def test_an_attribute_is_declared_once(database: Database, tenant: str) -> None:
    async with database.transaction(tenant) as session:
        with pytest.raises(InvalidValue):
            await monitored_models.create(session, **registration(attributes=[ATTRIBUTES[0], ATTRIBUTES[0]]))
        assert (await monitored_models.create(session, **registration(attributes=[]))).id
