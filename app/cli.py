"""The `whence` command: serve, demo, worker, keys, models, check.

Every command works beside a running server: it opens the same database (the embedded one is shared by all processes on
a data directory), writes, and leaves; the server sees a new key or model without a restart.

PyTorch takes seconds to import and the web server a good part of one, so both are imported inside the commands that
need them. Failures are one line on stderr and exit status 1 (2 for a misused option, as usual).
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated

import typer

from app.console import AsJson, DataDir, Name, Row, Tenant, opened, settings_from, show
from app.refusals import Refusal
from app.registry import explainer_of, key_commands, model_commands, register
from app.settings import Settings
from app.start import DEFAULT_TENANT, first_key, make_key
from explainers.errors import ExplainerError
from storage import api_keys, models
from storage.database import Database
from storage.errors import StorageError

DEMO_FOLDER = Path(__file__).resolve().parent.parent / "demo" / "models"
DEMO_MODELS = {"demo-lm": "causal-lm", "demo-vision": "image-text-lm"}
"""Folder below DEMO_FOLDER -> kind."""

DEMO_PICTURE = DEMO_FOLDER.parent / "data" / "shapes_example.png"

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


Host = Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")]
Port = Annotated[int | None, typer.Option(help="Port to listen on; 0: any free one.", show_default="8000")]
NoWorker = Annotated[bool, typer.Option("--no-worker", help="Leave jobs to `whence worker`.")]


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
def demo(host: Host = None, port: Port = None, data_dir: DataDir = None, no_worker: NoWorker = False) -> None:
    """Serve the demo models, and print a key and requests that work when pasted."""
    from app.serving import run_server  # noqa: PLC0415 - brings PyTorch and the web server

    worker = False if no_worker else None
    settings = settings_from(host=host, port=port, data_dir=data_dir, open_docs=True, worker=worker)
    run_server(settings, prepare_demo)


@program.command()
def worker(data_dir: DataDir = None) -> None:
    """Work on jobs until stopped, beside a server or for one on another machine."""
    from app.serving import run_worker  # noqa: PLC0415 - brings PyTorch and the web server

    run_worker(settings_from(data_dir=data_dir))


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
    from app.models import NewModel  # noqa: PLC0415 - brings PyTorch
    from explainers.loaders import LOADERS  # noqa: PLC0415 - brings PyTorch

    folder = DEMO_FOLDER / name
    async with database.transaction(tenant=DEFAULT_TENANT) as session:
        row = next((row for row in await models.list_all(session) if row.name == name), None)
    if row is not None:
        if (row.path, row.digest) == (str(folder), LOADERS[kind](folder, row.dtype, settings.device).digest):
            return
        async with database.transaction(tenant=DEFAULT_TENANT) as session:
            await models.remove(session, name)
    new = NewModel(name, kind, folder.name, description="Whence's own demo model")
    await register(database, settings, DEFAULT_TENANT, new, folder.parent)


def demo_greeting(url: str, secret: str) -> str:
    question = {
        "model": "demo-lm",
        "prompt": "Anna lives in Oslo. Ben lives in Rome. Anna lives in",
        "target": " Oslo.",
    }
    requests = [
        curl(f"{url}/explain", secret, question | {"prompt_granularity": {"type": "sentence"}}),
        curl(f"{url}/explain", secret, question | {"target_granularity": "token"}),
        curl_with_picture(f"{url}/explain", secret),
        curl(f"{url}/explanations?limit=1", secret),
    ]
    heading = f"\nWhence is ready at {url} (documentation: {url}/docs)\nAPI key: {secret}"
    return "\n\n".join([heading, "Try it, in another terminal:", *requests, "Ctrl-C stops the server."])


def curl(url: str, secret: str, body: Row | None = None) -> str:
    parts = ["curl", "-s", url, "-H", f"Authorization: Bearer {secret}"]
    if body is not None:
        parts += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
    return shlex.join(parts)


def curl_with_picture(url: str, secret: str) -> str:
    """A question about the demo's picture, which the shell puts into the body."""
    items = [{"type": "image", "data": "%s"}, {"type": "text", "data": "What colour is the circle?"}]
    granularity = {"type": "word"}
    body = {"model": "demo-vision", "prompt": items, "target": " yellow", "prompt_granularity": granularity}
    filled = f'"$(printf {shlex.quote(json.dumps(body))} "$(base64 -w0 {shlex.quote(str(DEMO_PICTURE))})")"'
    return f"{curl(url, secret)} -H 'Content-Type: application/json' -d {filled}"


if __name__ == "__main__":
    main()
