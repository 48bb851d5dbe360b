"""What happens before the first request: the database, its tables, and the first key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress

from pydantic import SecretStr

from app.refusals import Refusal
from app.settings import Settings
from storage import api_keys, audit, tenants
from storage.audit import Entry
from storage.database import Database, with_password
from storage.embedded import embedded_postgres
from storage.errors import AlreadyExists
from storage.migrations import migrate

DEFAULT_TENANT = "default"
UNFINISHED_RESTORE = "restore-unfinished"
"""A file in the data directory while it is filled from a backup."""


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    """The migrated database of these settings, its own embedded server running as long as the context is open.

    Must be entered from the main thread: the embedded server ends with the thread that started it.
    """
    if (settings.data_dir / UNFINISHED_RESTORE).exists():
        raise Refusal(f"a backup was not wholly restored into {settings.data_dir}: empty it and restore again")
    with ExitStack() as running:
        if settings.database_url is not None:
            url = external_url(settings.database_url, settings.database_password)
        else:
            url = running.enter_context(embedded_postgres(settings.data_dir))
        await asyncio.to_thread(migrate, url)
        database = Database.connect(url)
        try:
            async with database.transaction(tenant=DEFAULT_TENANT) as session:
                await tenants.ensure(session, DEFAULT_TENANT)
            yield database
        finally:
            await database.close()


def external_url(url: SecretStr, password: SecretStr | None) -> str:
    """The URL with its password; raises DatabaseRefused for one that cannot be read."""
    return with_password(url.get_secret_value(), password.get_secret_value() if password else None)


async def first_key(database: Database, settings: Settings) -> str | None:
    """Makes sure that somebody can come in: the secret of a key made just now, to be shown once, or None.

    WHENCE_API_KEY becomes an admin key unless it is one already. Without it, a key is made when there is none at all.
    """
    if settings.api_key is not None:
        secret = settings.api_key.get_secret_value()
        if await api_keys.find_by_secret(database, secret) is None:
            with suppress(AlreadyExists):  # it has been revoked: it stays so
                await make_key(database, "WHENCE_API_KEY", secret)
        return None
    async with database.transaction(tenant=DEFAULT_TENANT) as session:
        if await api_keys.list_all(session):
            return None
    return await make_key(database, "first", None)


async def make_key(database: Database, name: str, secret: str | None) -> str:
    async with database.transaction(tenant=DEFAULT_TENANT) as session:
        row, made = await api_keys.create(session, tenant=DEFAULT_TENANT, name=name, scopes=["admin"], secret=secret)
        told = {"id": str(row.id), "scopes": "admin"}
        await audit.add(session, Entry("command", "CLI", "whence serve", told), 200)
    return made
