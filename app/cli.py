"""The `whence` command: serve, demo, keys, models, check.

Every command works beside a running server: it opens the same database (the embedded one is shared by all processes on
a data directory), writes, and leaves; the server sees a new key or model without a restart.

PyTorch takes seconds to import and the web server a good part of one, so both are imported inside the commands that
need them. Failures are one line on stderr and exit status 1 (2 for a misused option, as usual).
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar
from uuid import UUID

import typer
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from app.refusals import Refusal
from app.settings import Settings
from app.start import DEFAULT_TENANT, first_key, make_key, open_database
from explainers.errors import ExplainerError
from storage import api_keys, models, tenants
from storage.database import Database
from storage.errors import StorageError

Row: TypeAlias = Mapping[str, Any]
Result = TypeVar("Result")

DEMO_FOLDER = Path(__file__).resolve().parent.parent / "demo" / "models"
DEMO_MODELS = {"demo-lm": "causal-lm"}
"""Folder below DEMO_FOLDER -> kind."""

UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

program = typer.Typer(
    name="whence",
    help="Whence: a self-hosted explainability server. README.md lists the WHENCE_ variables it reads.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
key_commands = typer.Typer(no_args_is_help=True, help="API keys: create, list, revoke.")
model_commands = typer.Typer(no_args_is_help=True, help="Models: add, list, remove.")
program.add_typer(key_commands, name="keys")
program.add_typer(model_commands, name="models")


class Scope(StrEnum):
    read = "read"
    explain = "explain"
    ingest = "ingest"
    admin = "admin"


Host = Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")]
Port = Annotated[int | None, typer.Option(help="Port to listen on; 0: any free one.", show_default="8000")]
DataDir = Annotated[Path | None, typer.Option(help="Folder of everything kept on disk.", show_default="./.whence")]
Tenant = Annotated[str, typer.Option(help="Tenant that it belongs to.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object per line, for programs.")]
Name = Annotated[str, typer.Argument(help="Name under which the model is served.")]


def main() -> None:
    """Runs the command line."""
    try:
        program()
    except (Refusal, ExplainerError, StorageError, OSError) as error:
        place = (getattr(error, "pointer", None) or "").removeprefix("/")
        typer.echo(f"whence: {place} {error}" if str(error).startswith("must ") else f"whence: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


@program.command()
def version() -> None:
    """Print the version of Whence."""
    typer.echo(installed_version("whence"))


@program.command()
def serve(host: Host = None, port: Port = None, data_dir: DataDir = None) -> None:
    """Serve the API until stopped. The first start prints a key, once."""
    from app.serving import run_server  # noqa: PLC0415 - brings PyTorch and the web server

    run_server(settings_from(host=host, port=port, data_dir=data_dir), prepare)


@program.command()
def demo(host: Host = None, port: Port = None, data_dir: DataDir = None) -> None:
    """Serve the demo models, and print a key and requests that work when pasted."""
    from app.serving import run_server  # noqa: PLC0415 - brings PyTorch and the web server

    run_server(settings_from(host=host, port=port, data_dir=data_dir, open_docs=True), prepare_demo)


# -- keys --------------------------------------------------------------------------------------------------------------


@key_commands.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    tenant: Tenant = DEFAULT_TENANT,
    scope: Annotated[
        list[Scope] | None, typer.Option(help="What it may do; repeatable. Default: read and explain.")
    ] = None,
    expires: Annotated[str | None, typer.Option(help="Time until it expires: 90d, 12h, 4w. Default: never.")] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Create an API key and show its secret, this once."""
    scopes = [str(chosen) for chosen in scope or (Scope.read, Scope.explain)]
    until = None if expires is None else datetime.now(UTC) + duration(expires)

    async def create(database: Database) -> Row:
        async with database.transaction(tenant=tenant) as session:
            await tenants.ensure(session, tenant)
            row, secret = await api_keys.create(session, tenant=tenant, name=name, scopes=scopes, expires_at=until)
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


@key_commands.command("revoke")
def revoke_key(
    key_id: Annotated[UUID, typer.Argument(metavar="ID", help="As `whence keys list` shows it.")],
    tenant: Tenant = DEFAULT_TENANT,
    data_dir: DataDir = None,
) -> None:
    """Revoke a key: it stops working at once."""
    in_tenant(data_dir, tenant, lambda session: api_keys.revoke(session, key_id))
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
    path: Annotated[Path, typer.Argument(help="Folder of the model, as saved by save_pretrained.")],
    kind: Annotated[str, typer.Option(help="What it is: causal-lm.")],
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16. Default: float32 on a CPU.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda:0. Default: WHENCE_DEVICE, else the best.")] = None,
    description: Annotated[str, typer.Option(help="One line for the list of models.")] = "",
    tenant: Tenant = DEFAULT_TENANT,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Load a model once to see that it can be explained exactly, then register it. Nothing is copied."""
    settings, folder = settings_from(data_dir=data_dir), path.resolve()
    if not folder.is_dir():
        raise Refusal(f"{path} is not a folder")

    async def add(database: Database) -> Row:
        async with database.transaction(tenant=tenant) as session:
            await tenants.ensure(session, tenant)
        return await register(database, settings, tenant, name, folder, kind, dtype, device, description)

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
    in_tenant(data_dir, tenant, lambda session: models.remove(session, name))
    typer.echo(f"removed {name}")


@program.command()
def check(name: Name, tenant: Tenant = DEFAULT_TENANT, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Load a model and test that its attention is really under control; exit 1 where it is not."""
    from explainers.loaders import LOADERS  # noqa: PLC0415 - brings PyTorch

    settings = settings_from(data_dir=data_dir)
    row = asyncio.run(opened(settings, lambda database: find(database, tenant, name)))
    model = LOADERS[row.kind](Path(row.path), row.dtype, row.device or settings.device)
    if model.digest != row.digest:
        raise Refusal(f"the files of {name} have changed since it was registered: remove it and add it again")
    if not as_json:
        facts = [model.facts[fact] for fact in ("architecture", "dtype", "device")]
        typer.echo(f"{name}: {', '.join(facts)}, {model.facts['parameters']:,} parameters\n")
    show(model.facts["self_test"], as_json=as_json)
    if not all(line["passed"] for line in model.facts["self_test"]):
        raise typer.Exit(1)


async def register(
    database: Database,
    settings: Settings,
    tenant: str,
    name: str,
    folder: Path,
    kind: str,
    dtype: str | None = None,
    device: str | None = None,
    description: str = "",
) -> Row:
    """Loads the folder and registers it; the row as it then stands."""
    from app.models import NewModel, add_model  # noqa: PLC0415 - brings PyTorch
    from app.runtime import Runtime  # noqa: PLC0415 - brings PyTorch

    runtime = Runtime(queue_limit=1, device=settings.device)
    try:
        new = NewModel(name, kind, folder.name, dtype, device, description)
        await add_model(database, runtime, folder.parent, tenant, new)
    finally:
        await runtime.close()
    return model_record(await find(database, tenant, name))


async def find(database: Database, tenant: str, name: str) -> Any:
    async with database.transaction(tenant=tenant) as session:
        return await models.get(session, name)


def model_record(row: Any) -> dict[str, Any]:
    return {
        "name": row.name,
        "kind": row.kind,
        "tenant": row.tenant_id,
        "dtype": row.dtype,
        "device": row.device,
        "path": row.path,
        "digest": row.digest,
        "description": row.description or "",
        "created_at": row.created_at,
    }


# -- what serve and demo do first --------------------------------------------------------------------------------------


async def prepare(_: Database, __: Settings, url: str) -> str:
    """For `serve`: nothing; the application itself shows the first key, once."""
    return f"Whence is ready at {url}"


async def prepare_demo(database: Database, settings: Settings, url: str) -> str:
    """For `demo`: the models, a key that works, and what to paste."""
    secret = await demo_key(database, settings)
    for name, kind in DEMO_MODELS.items():
        await offer(database, settings, name, kind)
    return demo_greeting(url, secret)


async def demo_key(database: Database, settings: Settings) -> str:
    """WHENCE_API_KEY, or else the key kept in the data directory while it is valid, or else a new one."""
    first = await first_key(database, settings)
    if settings.api_key is not None:
        return settings.api_key.get_secret_value()
    path = settings.data_dir / "demo-key"
    kept = path.read_text().strip() if path.exists() else ""
    if first is None and kept and await api_keys.find_by_secret(database, kept) is not None:
        return kept
    secret = first or await make_key(database, "demo", None)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secret + "\n")
    return secret


async def offer(database: Database, settings: Settings, name: str, kind: str) -> None:
    """Registers a demo model, unless exactly these weights are registered from this place."""
    from explainers.loaders import LOADERS  # noqa: PLC0415 - brings PyTorch

    folder = DEMO_FOLDER / name
    async with database.transaction(tenant=DEFAULT_TENANT) as session:
        row = next((row for row in await models.list_all(session) if row.name == name), None)
    if row is not None:
        if (row.path, row.digest) == (str(folder), LOADERS[kind](folder, row.dtype, settings.device).digest):
            return
        async with database.transaction(tenant=DEFAULT_TENANT) as session:
            await models.remove(session, name)
    await register(database, settings, DEFAULT_TENANT, name, folder, kind, description="Whence's own demo model")


def demo_greeting(url: str, secret: str) -> str:
    question = {
        "model": "demo-lm",
        "prompt": "Anna lives in Oslo. Ben lives in Rome. Anna lives in",
        "target": " Oslo.",
    }
    requests = [
        curl(f"{url}/explain", secret, question | {"prompt_granularity": {"type": "sentence"}}),
        curl(f"{url}/explain", secret, question | {"target_granularity": "token"}),
        curl(f"{url}/explanations?limit=1", secret),
    ]
    heading = f"\nWhence is ready at {url} (documentation: {url}/docs)\nAPI key: {secret}"
    return "\n\n".join([heading, "Try it, in another terminal:", *requests, "Ctrl-C stops the server."])


def curl(url: str, secret: str, body: Row | None = None) -> str:
    parts = ["curl", "-s", url, "-H", f"Authorization: Bearer {secret}"]
    if body is not None:
        parts += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
    return shlex.join(parts)


# -- shared by the commands --------------------------------------------------------------------------------------------


def settings_from(**options: Any) -> Settings:
    """The environment's settings, except where an option says otherwise."""
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        problems = [f"WHENCE_{str(problem['loc'][0]).upper()}: {problem['msg']}" for problem in error.errors()]
        raise Refusal("; ".join(problems)) from error


async def opened(settings: Settings, work: Callable[[Database], Awaitable[Result]]) -> Result:
    async with open_database(settings) as database:
        return await work(database)


def with_database(data_dir: Path | None, work: Callable[[Database], Awaitable[Result]]) -> Result:
    return asyncio.run(opened(settings_from(data_dir=data_dir), work))


def in_tenant(data_dir: Path | None, tenant: str, work: Callable[[AsyncSession], Awaitable[Result]]) -> Result:
    async def inside(database: Database) -> Result:
        async with database.transaction(tenant=tenant) as session:
            return await work(session)

    return with_database(data_dir, inside)


def show(rows: Sequence[Row], *, as_json: bool) -> None:
    """One JSON object per line, or a table under the rows' own names."""
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row, default=str))
        return
    lines = [list(rows[0]), *([cell(value) for value in row.values()] for row in rows)] if rows else [["(none)"]]
    widths = [max(len(entry) for entry in column) for column in zip(*lines, strict=True)]
    for line in lines:
        typer.echo("  ".join(entry.ljust(width) for entry, width in zip(line, widths, strict=True)).rstrip())


def cell(value: Any) -> str:
    match value:
        case None:
            return "-"
        case list():
            return ",".join(value)
        case datetime():
            return value.isoformat(sep=" ", timespec="minutes")
        case float():
            return f"{value:.3g}"
        case _:
            return str(value)


if __name__ == "__main__":
    main()
