"""Registered models: rows that say where a model's files lie and how to load them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, delete, func, select
from sqlalchemy.dialects.postgresql import aggregate_order_by, insert
from sqlalchemy.ext.asyncio import AsyncSession

from storage.database import Database, compiled
from storage.errors import AlreadyExists, InUse, NotFound
from storage.tables import Model
from storage.values import plain

NAMED = select(Model).where(Model.name == bindparam("name"))
FIND = compiled(NAMED)
NAMES = compiled(select(func.array_agg(aggregate_order_by(Model.name, Model.name)).label("names")))


async def add(
    session: AsyncSession,
    *,
    name: str,
    kind: str,
    path: str,
    base: str | None = None,
    digest: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    description: str = "",
    facts: dict[str, Any] | None = None,
    scaling: dict[str, Any] | None = None,
) -> Model:
    """Registers a model. Raises AlreadyExists for a taken name, NotFound for an unknown base model."""
    base_path = None if base is None else (await get(session, base)).path
    values = {
        "name": name,
        "kind": kind,
        "path": path,
        "base": base,
        "base_path": base_path,
        "digest": digest,
        "dtype": dtype,
        "device": device,
        "description": description,
        "facts": facts or {},
        "scaling": scaling,
    }
    model: Model | None = await session.scalar(insert(Model).values(values).on_conflict_do_nothing().returning(Model))
    if model is None:
        raise AlreadyExists("a model with that name is registered")
    return model


async def find(database: Database, tenant: str, name: str) -> Any | None:
    """The row of the tenant's model of that name, in a transaction of its own."""
    return await database.ask(FIND, {"name": plain(name)}, tenant=tenant)


async def names(database: Database, tenant: str) -> list[str]:
    """Of the tenant's models, in order, in a transaction of its own."""
    row = await database.ask(NAMES, {}, tenant=tenant)
    return [] if row is None else row.names or []


async def get(session: AsyncSession, name: str) -> Model:
    """The tenant's model of that name. Raises NotFound."""
    model: Model | None = await session.scalar(NAMED, {"name": name})
    if model is None:
        raise NotFound("no such model")
    return model


async def list_all(session: AsyncSession) -> list[Model]:
    """The tenant's models by name."""
    return list(await session.scalars(select(Model).order_by(Model.name)))


async def remove(session: AsyncSession, name: str) -> None:
    """Forgets a model; its files and explanations stay. Raises NotFound, or InUse while it is another model's base."""
    if await session.scalar(select(Model.name).where(Model.base == name).limit(1)) is not None:
        raise InUse("other registered models are based on that model")
    if await session.scalar(delete(Model).where(Model.name == name).returning(Model.name)) is None:
        raise NotFound("no such model")
