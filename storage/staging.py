"""Rows on their way into a table: the source from which one statement inserts or updates all of them.

Postgres refuses COPY into a table with row-level security, so many rows go into a temporary table first and from there,
by a statement, past the policies. For a few rows that takes longer than the rest of the transaction: they travel with
the statement, as JSON.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from storage import copying
from storage.copying import NULL, Fields, packed
from storage.errors import InvalidValue
from storage.values import json_text, plain

FEW = 100
"""As many rows as cost the same either way."""


@dataclass(frozen=True, slots=True)
class Column:
    """Values of one type, one for each row; without values all are null."""

    kind: Kind
    values: Any = None


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of Postgres, and how its values are written for COPY and as JSON."""

    name: str
    fields: Callable[[Any], Fields]
    plain: Callable[[Any], list[Any]]


async def stage(
    session: AsyncSession, name: str, columns: Mapping[str, Column], rows: int
) -> tuple[str, dict[str, Any]]:
    """What to select the rows FROM until the transaction ends or the name is used again, and the parameters that takes.

    Raises InvalidValue for what Postgres cannot hold.
    """
    if rows <= FEW:
        return _recordset(name, columns), {name: _json(columns, rows)}
    declared = ", ".join(f"{column} {each.kind.name}" for column, each in columns.items())
    message = await asyncio.to_thread(_message, columns, rows)
    await session.execute(text(f"CREATE TEMP TABLE IF NOT EXISTS {name} ({declared}) ON COMMIT DELETE ROWS"))
    await session.execute(text(f"TRUNCATE pg_temp.{name}"))
    raw = await (await session.connection()).get_raw_connection()
    driver: Any = raw.driver_connection
    async with driver.cursor() as cursor, cursor.copy(f"COPY pg_temp.{name} FROM STDIN (FORMAT BINARY)") as copy:
        await copy.write(message)
    return f"pg_temp.{name}", {}


def _recordset(name: str, columns: Mapping[str, Column]) -> str:
    """JSON travels as text: inside other JSON Postgres would read it, and refuse NUL characters."""
    inner = {column: "text" if each.kind is JSON else each.kind.name for column, each in columns.items()}
    declared = ", ".join(f"{column} {kind}" for column, kind in inner.items())
    selected = ", ".join(f"CAST({column} AS {each.kind.name}) AS {column}" for column, each in columns.items())
    return f"(SELECT {selected} FROM json_to_recordset(CAST(:{name} AS json)) AS given ({declared})) AS {name}"  # noqa: S608 - names of ours


def _message(columns: Mapping[str, Column], rows: int) -> bytes:
    return packed(
        [[NULL] * rows if each.values is None else each.kind.fields(each.values) for each in columns.values()]
    )


def _json(columns: Mapping[str, Column], rows: int) -> str:
    values = [[None] * rows if each.values is None else each.kind.plain(each.values) for each in columns.values()]
    return json_text([dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)])


def _times(values: NDArray[np.datetime64]) -> list[str | None]:  # (n,)
    written = np.datetime_as_string(values.astype("datetime64[us]")).tolist()
    return [None if null else f"{at}Z" for at, null in zip(written, np.isnat(values).tolist(), strict=True)]


def _text(value: str | None) -> str | None:
    return None if value is None else plain(value)


def _float_lists(values: Sequence[NDArray[np.float64]]) -> list[list[float | None]]:  # (K,) each
    if any(np.isinf(row).any() for row in values):
        raise InvalidValue("a number is not finite")
    return [[None if math.isnan(value) else value for value in row.ravel().tolist()] for row in values]


BIGINT = Kind("bigint", copying.integers, lambda values: list(values.tolist()))
UUID = Kind("uuid", copying.uuids, lambda values: [str(value) for value in values])
TIMESTAMPTZ = Kind("timestamptz", copying.times, _times)
TEXT = Kind("text", copying.texts, lambda values: [_text(value) for value in values])
JSON = Kind("json", copying.jsons, lambda values: [json_text(value) for value in values])
FLOATS = Kind("float8[]", copying.float_arrays, _float_lists)
RAGGED_FLOATS = Kind("float8[]", copying.ragged_float_arrays, _float_lists)
TEXTS = Kind("text[]", copying.text_arrays, lambda rows: [[_text(value) for value in row] for row in rows])
INTEGERS = Kind("integer[]", copying.integer_arrays, lambda rows: [[int(value) for value in row] for row in rows])
