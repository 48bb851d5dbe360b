"""Models whose inferences are kept: registered, found, changed and archived."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.definitions import Attribute, Definition, Stage, definition_from, definition_record, in_places
from app.refusals import Conflict, UnknownModel
from app.rows import Layout
from explainers.errors import InvalidRequest
from storage import errors as storage_errors
from storage import explainability, scores
from storage import monitored_models as rows
from storage.database import Database
from storage.values import plain

READY = "Ready"
SCORED: tuple[Stage, ...] = ("PIPELINE_INPUT", "PREDICTED_VALUE")
"""Stored scores are arrays with a place for each pair of these, by position."""


@dataclass(frozen=True)
class Monitored:
    """`status` is in the vendor's words."""

    id: UUID
    definition: Definition
    status: str
    archived: bool

    @cached_property
    def layout(self) -> Layout:
        return Layout(self.definition)


async def register(database: Database, tenant: str, definition: Definition) -> Monitored:
    """A new model, ready at once; raises `Conflict` for the name of one in use.

    One that came with a predictor, and that nobody has registered yet, is handed out if it has the same attributes.
    """
    offered = await accept(database, tenant, definition)
    return offered or await create(database, tenant, definition)


async def accept(database: Database, tenant: str, definition: Definition) -> Monitored | None:
    async with database.transaction(tenant=tenant) as session:
        model = next((each for each in await list_in_use(session) if same_columns(each.definition, definition)), None)
        if model is None or not model.definition.offered or definition.offered:
            return None
        return monitored_from(await rows.change(session, model.id, definition=definition_record(definition)))


def same_columns(one: Definition, other: Definition) -> bool:
    """Whether two definitions of one name have the same attributes, whatever else is said of them."""
    kinds = (
        (each.partner_model_id, each.input_type, each.output_type, {column_key(a) for a in each.attributes})
        for each in (one, other)
    )
    return next(kinds) == next(kinds)


def column_key(attribute: Attribute) -> tuple[str, str, str, int, str | None]:
    return attribute.name, attribute.stage, attribute.value_type, attribute.position, attribute.gt_class_link


async def create(database: Database, tenant: str, definition: Definition) -> Monitored:
    try:
        async with database.transaction(tenant=tenant) as session:
            row = await rows.create(
                session,
                partner_model_id=definition.partner_model_id,
                input_type=definition.input_type,
                output_type=definition.output_type,
                status=READY,
                is_batch=definition.is_batch,
                definition=definition_record(definition),
                attributes=[stored(attribute) for attribute in definition.attributes],
            )
            return monitored_from(row)
    except storage_errors.AlreadyExists:
        raise Conflict("a model with this partner_model_id is in use: archive it first, or choose another") from None


async def find(database: Database, tenant: str, name: str, *, by_partner_id: bool = False) -> Monitored:
    """A model by its id, or by its owner's name for it, also an archived one; raises `UnknownModel`."""
    async with database.transaction(tenant=tenant) as session:
        return await found(session, name, by_partner_id=by_partner_id)


async def find_in_use(database: Database, tenant: str, name: str) -> Monitored:
    """A model in use, by its id; raises `UnknownModel`."""
    async with database.transaction(tenant=tenant) as session:
        return await find_active(session, name)


async def find_active(session: AsyncSession, name: str) -> Monitored:
    """A model in use, by its id; raises `UnknownModel`."""
    model = await found(session, name)
    if model.archived:
        raise UnknownModel(name)
    return model


async def found(session: AsyncSession, name: str, *, by_partner_id: bool = False) -> Monitored:
    with suppress(storage_errors.NotFound, storage_errors.InvalidValue, ValueError):
        if by_partner_id:
            return monitored_from(await rows.get_by_partner_id(session, plain(name)))
        return monitored_from(await rows.get(session, UUID(name)))
    raise UnknownModel(name)


async def find_named(database: Database, tenant: str, partner_model_id: str) -> Monitored | None:
    """The model in use to which its owner gave that name."""
    with suppress(UnknownModel):
        model = await find(database, tenant, partner_model_id, by_partner_id=True)
        return None if model.archived else model
    return None


async def list_active(database: Database, tenant: str) -> list[Monitored]:
    async with database.transaction(tenant=tenant) as session:
        return await list_in_use(session)


async def list_in_use(session: AsyncSession) -> list[Monitored]:
    """In the order they were registered, without the archived ones."""
    return [monitored_from(row) for row in await rows.list_all(session)]


async def change(
    database: Database,
    tenant: str,
    name: str,
    details: Mapping[str, Any],
    attributes: Sequence[tuple[Attribute, int | None]],
) -> Monitored:
    """Other details of a model and of its attributes, whose set, stages and types are fixed.

    Raises `UnknownModel`, InvalidRequest for an attribute that would be another one, and `Conflict` for positions that
    stored scores depend on.
    """
    async with database.transaction(tenant=tenant) as session:
        model = await find_active(session, name)
        old = model.definition
        changed = merged(old, attributes)
        new = replace(old, details={**old.details, **details}, attributes=changed)
        row = await rows.change(
            session,
            model.id,
            definition=definition_record(new),
            attributes=[stored(attribute) for attribute in changed],
        )
        if moved(old, new):
            await explainability.outdate(session, model.id)  # waits for scores that are being stored
        if moved(old, new) and await scores.exist(session, model.id):
            raise Conflict(f"the positions of {' and '.join(SCORED)} attributes are fixed once explanations are stored")
        return monitored_from(row)


def moved(old: Definition, new: Definition) -> bool:
    """Whether an attribute has another position that scores are kept by."""
    return any(
        before.position != after.position and before.stage in SCORED
        for before, after in zip(old.attributes, new.attributes, strict=True)
    )


def merged(old: Definition, given: Sequence[tuple[Attribute, int | None]]) -> tuple[Attribute, ...]:
    """The attributes of a model with what is said anew of some of them, and their new positions, if they get any."""
    changed = {attribute.name: attribute for attribute in old.attributes}
    for index, (attribute, position) in enumerate(given):
        before = changed.get(attribute.name)
        if before is None:
            raise InvalidRequest("names no attribute of this model: the set is fixed", f"/attributes/{index}/name")
        if (before.stage, before.value_type) != (attribute.stage, attribute.value_type):
            raise InvalidRequest("the stage and type of an attribute are fixed", f"/attributes/{index}")
        for fixed, said in ((before.link, attribute.link), (before.gt_class_link, attribute.gt_class_link)):
            if said not in (None, fixed):
                raise InvalidRequest("the links of an attribute are fixed", f"/attributes/{index}")
        changed[attribute.name] = replace(
            before,
            position=before.position if position is None else position,
            positive=before.positive or attribute.positive,
            details={**before.details, **attribute.details},
        )
    whole = [changed[attribute.name] for attribute in old.attributes]
    return in_places(whole, [attribute.position for attribute in whole])


def monitored_from(row: Any) -> Monitored:
    return Monitored(row.id, definition_from(row.definition), row.status, row.archived_at is not None)


def stored(attribute: Attribute) -> rows.Attribute:
    """As the store keeps it, beside the definition that holds everything."""
    return rows.Attribute(
        attribute.name,
        attribute.stage,
        attribute.value_type,
        attribute.position,
        attribute.implicit,
        attribute.link,
        {"gt_class_link": attribute.gt_class_link, "is_positive_predicted_attribute": attribute.positive},
    )
