"""The `whence` command: serve, demo, worker, keys, models, audit, check, openapi, migrate, backup, restore, version.

Every command works beside a running server: it opens the same database (the embedded one is shared by all processes on
a data directory), writes, and leaves; the server sees a new key or model without a restart.

PyTorch takes seconds to import and the web server a good part of one, so both are imported inside the commands that
need them. Failures are one line on stderr and exit status 1 (2 for a misused option, as usual).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated

import typer

from app.audit_commands import audit_commands
from app.backup import back_up, bring_back
from app.console import AsJson, DataDir, Name, Row, Tenant, opened, settings_from, show, with_database
from app.demo import CONTEXT_MODEL, prepare_demo
from app.refusals import Refusal
from app.registry import explainer_of, key_commands, model_commands
from app.settings import Settings
from app.start import DEFAULT_TENANT
from app.store import open_store
from explainers.errors import ExplainerError
from storage.database import Database
from storage.errors import StorageError

program = typer.Typer(
    name="whence",
    help="Whence: a self-hosted explainability server. README.md lists the WHENCE_ variables it reads.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
program.add_typer(key_commands, name="keys")
program.add_typer(model_commands, name="models")
program.add_typer(audit_commands, name="audit")


Host = Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")]
Port = Annotated[int | None, typer.Option(help="Port to listen on; 0: any free one.", show_default="8000")]
NoWorker = Annotated[bool, typer.Option("--no-worker", help="Leave jobs to `whence worker`.")]
Inferences = Annotated[
    int | None,
    typer.Option(
        min=1, help="Stored inferences of each predictor, which the first start explains.", show_default="all"
    ),
]


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
def serve(host: Host = None, port: Port = None, data_dir: DataDir = None, no_worker: NoWorker = False) -> None:
    """Serve the API until stopped. The first start prints a key, once."""
    from app.serving import run_server  # noqa: PLC0415 - brings PyTorch and the web server

    worker = False if no_worker else None
    run_server(settings_from(host=host, port=port, data_dir=data_dir, worker=worker), prepare)


@program.command()
def demo(
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    no_worker: NoWorker = False,
    inferences: Inferences = None,
) -> None:
    """Serve the demo models, and print a key and requests that work when pasted."""
    from app.serving import run_server  # noqa: PLC0415 - brings PyTorch and the web server

    worker = False if no_worker else None
    settings = settings_from(host=host, port=port, data_dir=data_dir, open_docs=True, worker=worker)
    named = settings.context_model or CONTEXT_MODEL
    run_server(settings.model_copy(update={"context_model": named}), partial(prepare_demo, rows=inferences))


@program.command()
def openapi() -> None:
    """Print the description of the API, as a server has it at /openapi.json."""
    from app.main import create_app  # noqa: PLC0415 - brings PyTorch and the web server

    typer.echo(json.dumps(create_app(Settings()).openapi(), indent=2, sort_keys=True, ensure_ascii=False))


@program.command()
def worker(data_dir: DataDir = None) -> None:
    """Work on jobs until stopped, beside a server or for one on another machine."""
    from app.serving import run_worker  # noqa: PLC0415 - brings PyTorch and the web server

    run_worker(settings_from(data_dir=data_dir))


@program.command()
def migrate(data_dir: DataDir = None) -> None:
    """Bring the database to this version's schema and leave. `serve` and `worker` do so too when they start."""
    with_database(data_dir, nothing)
    typer.echo("the database has this version's schema")


DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url",
        help="postgresql://role:password@host/name of a superuser, or a role with BYPASSRLS.",
        show_default="the embedded one",
    ),
]


@program.command()
def backup(file: Path, data_dir: DataDir = None, database_url: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Write everything that is kept into one new FILE, while the server goes on.

    Of a database of your own (WHENCE_DATABASE_URL) the URL is needed of a role that sees all tenants' rows.
    """
    settings = settings_from(data_dir=data_dir)
    store = None if settings.store_url is None else open_store(settings.store_url.get_secret_value())
    show([asdict(back_up(settings.data_dir, whole_url(settings, database_url), file, store))], as_json=as_json)


@program.command()
def restore(file: Path, data_dir: DataDir = None, database_url: DatabaseUrl = None, as_json: AsJson = False) -> None:
    """Fill an empty data directory, and an empty database, from FILE; then start the server on them."""
    settings = settings_from(data_dir=data_dir)
    show([asdict(bring_back(file, settings.data_dir, whole_url(settings, database_url)))], as_json=as_json)


def whole_url(settings: Settings, url: str | None) -> str | None:
    """The URL to dump by; raises Refusal where the database is not the embedded one and none was given."""
    if url is None and settings.database_url is not None:
        raise Refusal("WHENCE_DATABASE_URL is set: name with --database-url a role that sees all tenants' rows")
    return url


async def nothing(_: Database) -> None:
    """Opening the database has done it."""


@program.command()
def check(name: Name, tenant: Tenant = DEFAULT_TENANT, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Test on your own model what its explanations rest on; exit 1 where a line fails.

    Of a language model that its attention is really under control; of a predictor that its scores agree with the
    packages lime, shap and captum, on a few of the inferences that are stored.
    """
    settings = settings_from(data_dir=data_dir)
    facts, lines = asyncio.run(opened(settings, lambda database: checked(database, settings, tenant, name)))
    if not as_json:
        known = [str(facts[fact]) for fact in ("architecture", "format", "dtype", "device") if fact in facts]
        typer.echo(f"{name}: {', '.join(known)}\n")
    show(lines, as_json=as_json)
    if any(line["passed"] is False for line in lines):
        raise typer.Exit(1)


async def checked(database: Database, settings: Settings, tenant: str, name: str) -> tuple[Row, Sequence[Row]]:
    from app.checks import check_model  # noqa: PLC0415 - brings PyTorch

    async with explainer_of(database, settings) as explainer:
        return await check_model(explainer, tenant, name)


# -- what serve and demo do first --------------------------------------------------------------------------------------


async def prepare(_: Database, __: Settings, url: str) -> str:
    """For `serve`: nothing; the application itself shows the first key, once."""
    return f"Whence is ready at {url}"


if __name__ == "__main__":
    main()
