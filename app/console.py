"""What the commands share: their options, the database while one works, and how rows are shown."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

import typer
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from app.refusals import Refusal
from app.settings import Settings
from app.start import open_database
from storage.database import Database

Row: TypeAlias = Mapping[str, Any]
Result = TypeVar("Result")

DataDir = Annotated[Path | None, typer.Option(help="Folder of everything kept on disk.", show_default="./.whence")]
Tenant = Annotated[str, typer.Option(help="Tenant that it belongs to.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object per line, for programs.")]
Name = Annotated[str, typer.Argument(help="Name under which the model is served.")]


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
