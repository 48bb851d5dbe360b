"""Models whose inferences are kept: registered with all attributes, found by id or by their owner's name for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from storage.errors import AlreadyExists, InvalidValue, NotFound
from storage.ids import time_ordered
from storage.monitored_tables import MonitoredAttribute, MonitoredModel

SlotKind: TypeAlias = Literal["number", "text"]
NUMBERS = ("FLOAT", "INTEGER", "BOOLEAN", "TIMESTAMP")
ARCHIVED = "Archived"


@dataclass(frozen=True, slots=True)
class Attribute:
    """A declared attribute; `definition` is everything its owner said of it."""

    name: str
    stage: str
    value_type: str
    position: int
    implicit: bool = False
    attribute_link: str | None = None
    definition: Mapping[str, Any] = field(default_factory=dict)

    @property
    def slot_kind(self) -> SlotKind:
        return "number" if self.value_type in NUMBERS else "text"


async def create(
    session: AsyncSession,
    *,
    partner_model_id: str,
    input_type: str,
    output_type: str,
    status: str,
    is_batch: bool,
    definition: dict[str, Any],
    attributes: Sequence[Attribute],
) -> MonitoredModel:
    """Registers a model with all its attributes, the implicit ones too, which get their slots in that order.

    Raises AlreadyExists for the name of a model that is not archived, InvalidValue for an attribute declared twice.
    """
    if len({attribute.name for attribute in attributes}) < len(attributes):
        raise InvalidValue("an attribute is declared twice")
    values = {
        "id": time_ordered(),
        "partner_model_id": partner_model_id,
        "input_type": input_type,
        "output_type": output_type,
        "status": status,
        "is_batch": is_batch,
        "definition": definition,
    }
    added = insert(MonitoredModel).values(values).on_conflict_do_nothing().returning(MonitoredModel)
    model: MonitoredModel | None = await session.scalar(added)
    if model is None:
        raise AlreadyExists("a model with that name is registered")
    if attributes:
        await session.execute(insert(MonitoredAttribute), list(_rows(model.id, attributes)))
    return model


def _rows(model_id: UUID, attributes: Iterable[Attribute]) -> Iterator[dict[str, Any]]:
    slots: Counter[str] = Counter()
    for place, attribute in enumerate(attributes, start=1):
        slots[attribute.slot_kind] += 1
        yield {
            "model_id": model_id,
            "name": attribute.name,
            "place": place,
            "stage": attribute.stage,
            "value_type": attribute.value_type,
            "position": attribute.position,
            "slot_kind": attribute.slot_kind,
            "slot": slots[attribute.slot_kind],
            "implicit": attribute.implicit,
            "attribute_link": attribute.attribute_link,
            "definition": dict(attribute.definition),
        }


async def get(session: AsyncSession, id: UUID) -> MonitoredModel:
    """The tenant's model with that id, archived or not. Raises NotFound."""
    model = await session.scalar(select(MonitoredModel).where(MonitoredModel.id == id))
    if model is None:
        raise NotFound("no such model")
    return model


async def get_by_partner_id(session: AsyncSession, partner_model_id: str) -> MonitoredModel:
    """The active model of that name, or the one archived last. Raises NotFound."""
    named = select(MonitoredModel).where(MonitoredModel.partner_model_id == partner_model_id)
    newest = MonitoredModel.archived_at.desc().nulls_first()
    model = await session.scalar(named.order_by(newest, MonitoredModel.id.desc()).limit(1))
    if model is None:
        raise NotFound("no such model")
    return model


async def list_all(session: AsyncSession, *, archived: bool = False) -> list[MonitoredModel]:
    """The tenant's models in the order they were registered; with `archived` those too."""
    query = select(MonitoredModel).order_by(MonitoredModel.created_at, MonitoredModel.id)
    if not archived:
        query = query.where(MonitoredModel.archived_at.is_(None))
    return list(await session.scalars(query))


async def list_attributes(session: AsyncSession, id: UUID) -> list[MonitoredAttribute]:
    """A model's attributes in the order they were declared; none of an unknown model."""
    query = select(MonitoredAttribute).where(MonitoredAttribute.model_id == id)
    return list(await session.scalars(query.order_by(MonitoredAttribute.place)))


async def change(
    session: AsyncSession,
    id: UUID,
    *,
    status: str | None = None,
    is_batch: bool | None = None,
    definition: dict[str, Any] | None = None,
    attributes: Sequence[Attribute] = (),
) -> MonitoredModel:
    """Changes what is given of an active model, and of the named attributes position, link and definition.

    Raises NotFound, and InvalidValue for an attribute that the model lacks or that changes its stage or type: the set
    of attributes is fixed.
    """
    given: dict[str, Any] = {"status": status, "is_batch": is_batch, "definition": definition}
    values = {name: value for name, value in given.items() if value is not None}
    model = await _changed(session, id, values or {"status": MonitoredModel.status})
    for attribute in attributes:
        await _change_attribute(session, id, attribute)
    return model


async def archive(session: AsyncSession, id: UUID) -> MonitoredModel:
    """Ends the use of an active model and frees its name; its rows stay. Raises NotFound."""
    return await _changed(session, id, {"archived_at": func.now(), "status": ARCHIVED})


async def _changed(session: AsyncSession, id: UUID, values: dict[str, Any]) -> MonitoredModel:
    active = update(MonitoredModel).where(MonitoredModel.id == id, MonitoredModel.archived_at.is_(None))
    changed = active.values(values).returning(MonitoredModel).execution_options(populate_existing=True)
    model: MonitoredModel | None = await session.scalar(changed)
    if model is None:
        raise NotFound("no such model")
    return model


async def _change_attribute(session: AsyncSession, id: UUID, attribute: Attribute) -> None:
    row = MonitoredAttribute
    changed = (
        update(row)
        .where(row.model_id == id, row.name == attribute.name)
        .where(row.stage == attribute.stage, row.value_type == attribute.value_type)
        .values(
            position=attribute.position,
            attribute_link=attribute.attribute_link,
            definition=dict(attribute.definition),
        )
        .returning(row.name)
    )
    if await session.scalar(changed) is None:
        raise InvalidValue("a model's attributes, their stages and their types are fixed")
