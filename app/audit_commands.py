"""`whence audit`: the audit log on the command line, beside a running server or without one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import typer
from sqlalchemy.ext.asyncio import AsyncSession

from app.audit import prune
from app.console import AsJson, DataDir, Row, Tenant, in_tenant, show, with_database
from app.start import DEFAULT_TENANT
from storage import audit
from storage.audit import BEGUN, Listed, Outcome

audit_commands = typer.Typer(help="The audit log: read it, remove its old entries.")

Since = Annotated[datetime | None, typer.Option(help="Only answered at or after this time, in UTC.")]
Key = Annotated[UUID | None, typer.Option(help="Only with the key of this id.")]
Route = Annotated[str | None, typer.Option(help="Only of this route, as the entries have it.")]
OfOutcome = Annotated[Outcome | None, typer.Option(help="Only with this outcome.")]
Limit = Annotated[int, typer.Option(min=1, help="Most entries.")]


@audit_commands.callback(invoke_without_command=True)
def read(
    context: typer.Context,
    since: Since = None,
    key: Key = None,
    route: Route = None,
    outcome: OfOutcome = None,
    limit: Limit = 50,
    tenant: Tenant = DEFAULT_TENANT,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Show what was done with the keys of a tenant, and by commands, newest first."""
    if context.invoked_subcommand is not None:
        return
    since = None if since is None else since.replace(tzinfo=UTC)

    async def entries(session: AsyncSession) -> list[Listed]:
        found: list[Listed] = []
        cursor = None
        while len(found) < limit:
            most = min(limit - len(found), audit.MAX_PAGE)
            page = await audit.page(
                session, since=since, key=key, route=route, outcome=outcome, cursor=cursor, limit=most
            )
            found += page.rows
            cursor = page.next_cursor
            if cursor is None:
                break
        return found

    show([record(row, as_json=as_json) for row in in_tenant(data_dir, tenant, entries)], as_json=as_json)


@audit_commands.command("prune")
def remove_old(
    before: Annotated[datetime, typer.Option(help="Remove entries of before this time, in UTC; at least a week ago.")],
    data_dir: DataDir = None,
) -> None:
    """Remove the old entries of all tenants. An entry that says so stays in each."""
    removed = with_database(data_dir, lambda database: prune(database, before.replace(tzinfo=UTC)))
    typer.echo(f"removed {removed} entries of before {before.isoformat(sep=' ', timespec='minutes')}")


def record(row: Listed, *, as_json: bool) -> Row:
    return {
        "id": str(row.id),
        "created_at": row.created_at,
        "outcome": row.outcome,
        "status": None if row.status == BEGUN else row.status,
        "kind": row.kind,
        "method": row.method,
        "route": row.route,
        "object": dict(row.object) if as_json else " ".join(f"{name}={value}" for name, value in row.object.items()),
        "key": None if row.key_id is None else str(row.key_id),
        "key_name": row.key_name,
        "request_id": row.request_id,
    }
