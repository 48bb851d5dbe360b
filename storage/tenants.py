"""Tenants: groups of users who see only their own rows."""

from __future__ import annotations

import re

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from storage.database import Database
from storage.errors import InvalidValue
from storage.tables import Tenant

SLUG = re.compile("[a-z0-9][a-z0-9_-]{0,62}")


async def ensure(session: AsyncSession, tenant: str) -> None:
    """Makes the tenant unless it exists; the transaction must be that tenant's. Raises InvalidValue for a bad name."""
    if not SLUG.fullmatch(tenant):
        raise InvalidValue("a tenant's name has 1 to 63 characters of a-z, 0-9, - and _, and starts with a-z or 0-9")
    await session.execute(insert(Tenant).values(id=tenant).on_conflict_do_nothing())


async def list_all(session: AsyncSession) -> list[Tenant]:
    """All tenants by name, whoever asks."""
    return list(await session.scalars(select(Tenant).order_by(Tenant.id)))


async def names(database: Database) -> list[str]:
    """Of all tenants, for what is done tenant by tenant."""
    async with database.transaction() as session:
        return list(await session.scalars(select(Tenant.id).order_by(Tenant.id)))
