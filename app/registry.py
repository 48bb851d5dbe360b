"""`whence keys` and `whence models`: what is registered, each command beside a running server or without one."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from app.audit import DONE, command
from app.console import AsJson, DataDir, Name, Row, Tenant, in_tenant, opened, settings_from, show, with_database
from app.refusals import Refusal
from app.settings import Settings
from app.shelf import open_shelf
from app.start import DEFAULT_TENANT
from storage import api_keys, audit, models, tenants
from storage.database import Database

if TYPE_CHECKING:
    from app.definitions import Definition
    from app.explain import Explainer
    from app.models import NewModel

UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

key_commands = typer.Typer(no_args_is_help=True, help="API keys: create, list, revoke.")
model_commands = typer.Typer(no_args_is_help=True, help="Models: add, list, remove.")


KeyId = Annotated[UUID, typer.Argument(metavar="ID", help="As `whence keys list` shows it.")]
Rate = Annotated[int | None, typer.Option(min=0, help="Requests that compute, in a minute.")]
Budget = Annotated[float | None, typer.Option(min=0, help="Seconds of the device, in a minute.")]
Concurrency = Annotated[int | None, typer.Option(min=0, help="Requests under way at a time.")]
Largest = Annotated[float | None, typer.Option(min=0, help="Seconds of the device that one request may take.")]


class Scope(StrEnum):
    read = "read"
    explain = "explain"
    ingest = "ingest"
    admin = "admin"


# -- keys --------------------------------------------------------------------------------------------------------------


@key_commands.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    tenant: Tenant = DEFAULT_TENANT,
    scope: Annotated[
        list[Scope] | None, typer.Option(help="What it may do; repeatable. Default: read and explain.")
    ] = None,
    expires: Annotated[str | None, typer.Option(help="Time until it expires: 90d, 12h, 4w. Default: never.")] = None,
    rate: Rate = None,
    budget: Budget = None,
    concurrency: Concurrency = None,
    largest: Largest = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Create an API key and show its secret, this once. Limits that are not given are the server's; 0: none."""
    limits = limits_from(rate, budget, concurrency, largest)
    scopes = [str(chosen) for chosen in scope or (Scope.read, Scope.explain)]
    until = None if expires is None else datetime.now(UTC) + duration(expires)

    async def create(database: Database) -> Row:
        async with database.transaction(tenant=tenant) as session:
            await tenants.ensure(session, tenant)
            row, secret = await api_keys.create(
                session, tenant=tenant, name=name, scopes=scopes, expires_at=until, limits=limits
            )
            made = {"id": str(row.id), "scopes": ",".join(row.scopes)}
            await audit.add(session, command("keys create", **made), DONE)
            return key_record(row) | {"secret": secret}

    record = with_database(data_dir, create)
    if as_json:
        show([record], as_json=True)
    else:
        typer.echo(
            f"{record['secret']}\n\nThis is shown only now. Key {record['id']}, tenant {tenant}: {', '.join(scopes)}."
        )


@key_commands.command("list")
def list_keys(tenant: Tenant = DEFAULT_TENANT, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List the keys of a tenant, never their secrets."""
    show([key_record(row) for row in in_tenant(data_dir, tenant, api_keys.list_all)], as_json=as_json)


@key_commands.command("limit")
def limit_key(
    key_id: KeyId,
    rate: Rate = None,
    budget: Budget = None,
    concurrency: Concurrency = None,
    largest: Largest = None,
    tenant: Tenant = DEFAULT_TENANT,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Change the limits of a key, from its next request on; those not given stay. 0: no limit."""
    limits = limits_from(rate, budget, concurrency, largest)
    row = in_tenant(data_dir, tenant, lambda session: api_keys.change_limits(session, key_id, limits))
    show([key_record(row)], as_json=as_json)


def limits_from(
    rate: int | None, budget: float | None, concurrency: int | None, largest: float | None
) -> dict[str, float | None]:
    """Those that are given, by the names of their columns."""
    given = {
        "requests_per_minute": rate,
        "seconds_per_minute": budget,
        "concurrency": concurrency,
        "request_seconds": largest,
    }
    return {name: limit for name, limit in given.items() if limit is not None}


@key_commands.command("revoke")
def revoke_key(
    key_id: KeyId,
    tenant: Tenant = DEFAULT_TENANT,
    data_dir: DataDir = None,
) -> None:
    """Revoke a key: it stops working at once."""

    async def revoke(session: AsyncSession) -> None:
        await api_keys.revoke(session, key_id)
        await audit.add(session, command("keys revoke", id=str(key_id)), DONE)

    in_tenant(data_dir, tenant, revoke)
    typer.echo(f"revoked {key_id}")


def key_record(row: Any) -> dict[str, Any]:
    return {
        "id": str(row.id),
        "name": row.name,
        "tenant": row.tenant_id,
        "scopes": list(row.scopes),
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "revoked_at": row.revoked_at,
        **{name: getattr(row, name) for name in api_keys.LIMITS},
    }


def duration(text: str) -> timedelta:
    """`90d` as a length of time."""
    match = re.fullmatch(r"([1-9]\d{0,4})([mhdw])", text)
    if match is None:
        raise Refusal(f"--expires must be a number and one of {', '.join(UNITS)}, such as 90d")
    return timedelta(**{UNITS[match[2]]: int(match[1])})


# -- models ------------------------------------------------------------------------------------------------------------


@model_commands.command("add")
def add_model(
    name: Name,
    path: Annotated[Path, typer.Argument(help="Folder as saved by save_pretrained, or file of a predictor.")],
    kind: Annotated[str, typer.Option(help="causal-lm, image-text-lm, tabular or text-classifier.")],
    training_data: Annotated[
        list[Path] | None,
        typer.Option(help="JSONL or Parquet it was fine-tuned on; repeatable. Also builds its influence index."),
    ] = None,
    schema: Annotated[
        Path | None, typer.Option(help="Of a predictor: JSON file with its attributes, as POST /api/v3/models has it.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Of a fine-tune: the registered model it was trained from; PATH may be an adapter."),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16. Default: float32 on a CPU.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda:0. Default: WHENCE_DEVICE, else the best.")] = None,
    description: Annotated[str, typer.Option(help="One line for the list of models.")] = "",
    tenant: Tenant = DEFAULT_TENANT,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Load a model once to see that it can be explained exactly, then register it. Nothing is copied."""
    settings, place = settings_from(data_dir=data_dir), path.resolve()
    if not place.exists():
        raise Refusal(f"there is no file or folder {path}")

    async def add(database: Database) -> Row:
        async with database.transaction(tenant=tenant) as session:
            await tenants.ensure(session, tenant)
        from app.models import NewModel  # noqa: PLC0415 - brings PyTorch

        new = NewModel(name, kind, place.name, dtype, device, description, base)
        entry = command("models add", name=name)
        await audit.write(database, tenant, entry)
        if training_data:
            await register_tuned(database, settings, tenant, new, place.parent, training_data)
        else:
            await register(database, settings, tenant, new, place.parent, schema)
        await audit.write(database, tenant, entry, DONE)
        return model_record(await find(database, tenant, name))

    record = asyncio.run(opened(settings, add))
    if as_json:
        show([record], as_json=True)
    else:
        typer.echo(f"registered {name}, {record['digest']}")


@model_commands.command("list")
def list_models(tenant: Tenant = DEFAULT_TENANT, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List the models of a tenant."""
    show([model_record(row) for row in in_tenant(data_dir, tenant, models.list_all)], as_json=as_json)


@model_commands.command("remove")
def remove_model(name: Name, tenant: Tenant = DEFAULT_TENANT, data_dir: DataDir = None) -> None:
    """Stop serving a model. Its files and the stored explanations stay."""
    settings = settings_from(data_dir=data_dir)

    async def remove(database: Database) -> None:
        async with database.transaction(tenant=tenant) as session:
            await models.remove(session, name)
            await audit.add(session, command("models remove", name=name), DONE)
        from app.explainability import renew_named  # noqa: PLC0415 - brings PyTorch

        async with explainer_of(database, settings) as explainer:
            await renew_named(explainer, tenant, name)

    asyncio.run(opened(settings, remove))
    typer.echo(f"removed {name}")


async def register(
    database: Database, settings: Settings, tenant: str, new: NewModel, folder: Path, schema: Path | None = None
) -> None:
    """Loads what lies in the folder and registers it."""
    from app.predictors import add_predictor  # noqa: PLC0415 - brings PyTorch

    definition = None if schema is None else definition_in(schema)
    async with explainer_of(database, settings) as explainer:
        await add_predictor(explainer, folder, tenant, new, definition)


async def register_tuned(
    database: Database, settings: Settings, tenant: str, new: NewModel, folder: Path, training_data: Sequence[Path]
) -> None:
    """The same, of a model that was fine-tuned on these files; builds its influence index."""
    from app.indexing import add_and_index, training_files_in  # noqa: PLC0415 - brings PyTorch

    files = training_files_in(training_data)
    async with explainer_of(database, settings) as explainer:
        await add_and_index(explainer, tenant, new, folder, files)


@asynccontextmanager
async def explainer_of(database: Database, settings: Settings) -> AsyncIterator[Explainer]:
    """What a server answers with, for one command."""
    from app.explain import Explainer  # noqa: PLC0415 - brings PyTorch
    from app.flights import SingleFlight  # noqa: PLC0415 - brings PyTorch
    from app.runtime import Runtime  # noqa: PLC0415 - brings PyTorch
    from explainers.loaders import use_cores  # noqa: PLC0415 - brings PyTorch

    use_cores(settings.threads)
    runtime = Runtime(queue_limit=1, device=settings.device)
    try:
        shelf = await open_shelf(settings, database)
        runtime.locate = shelf.model_path
        yield Explainer(database, runtime, SingleFlight(), None, shelf)
    finally:
        await runtime.close()


def definition_in(schema: Path) -> Definition:
    """The attributes in a file; raises a refusal that names what is wrong with it."""
    from app.model_body import ModelBody  # noqa: PLC0415 - as late as the others

    if not schema.is_file():
        raise Refusal(f"there is no file {schema}: --schema names the JSON body of POST /api/v3/models")
    try:
        return ModelBody.model_validate_json(schema.read_bytes()).to_domain()
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        place = "/".join(str(part) for part in problem["loc"])
        raise Refusal(f"{schema}: /{place}: {problem['msg']}") from None


async def find(database: Database, tenant: str, name: str) -> Any:
    async with database.transaction(tenant=tenant) as session:
        return await models.get(session, name)


def model_record(row: Any) -> dict[str, Any]:
    return {
        "name": row.name,
        "kind": row.kind,
        "base": row.base,
        "tenant": row.tenant_id,
        "dtype": row.dtype,
        "device": row.device,
        "path": row.path,
        "digest": row.digest,
        "description": row.description or "",
        "created_at": row.created_at,
    }
