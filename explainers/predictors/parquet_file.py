"""Parquet files of strangers, read block by block in a process with hard limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from explainers.confined.child_process import ChildProcess, Limits
from explainers.errors import ExplainerError, InvalidRequest
from explainers.predictors.artifact import library

CHILD = "explainers.predictors.parquet_child"
LIMITS = Limits(memory_bytes=3 * 2**30, load_seconds=60.0, call_seconds=60.0)
LARGEST_BLOCK = 256 * 2**20
"""Bytes of the rows that are read at once, each text in full."""
MOST_ROWS = 20_000_000
MOST_COLUMNS = 10_000


@dataclass(frozen=True, slots=True)
class Facts:
    """What the file says of itself."""

    names: Sequence[str]
    rows: int
    values: int  # in all columns


Columns: TypeAlias = Callable[[Facts], Sequence[str] | None]
"""Which columns are read, None: all; it may refuse the file."""


def rows_of(content: bytes, block: int, columns: Columns = lambda _: None) -> Iterator[dict[str, Any]]:
    """The rows as plain values. Raises InvalidRequest for a file that cannot be read within the limits."""
    library("pyarrow")
    process = ChildProcess(CHILD, content, LIMITS, "the Parquet file")
    try:
        found = process.start()
        facts = Facts(found["names"], found["rows"], found["values"])
        if facts.rows > MOST_ROWS or len(facts.names) > MOST_COLUMNS:
            raise InvalidRequest(f"a Parquet file may have {MOST_ROWS} rows and {MOST_COLUMNS} columns")
        yield from _blocks(process, block, columns(facts))
    except InvalidRequest:
        raise
    except ExplainerError as error:
        raise InvalidRequest(str(error)) from None
    finally:
        process.close()


def _blocks(process: ChildProcess, block: int, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    pyarrow = library("pyarrow")
    header = {"ask": "next", "rows": block, "columns": columns, "bytes": LARGEST_BLOCK}
    while not (answered := process.call(header, b""))[0].get("done"):
        try:
            batch = pyarrow.ipc.open_stream(answered[1]).read_next_batch()
            batch.validate(full=True)
            rows = batch.to_pylist()
        except (pyarrow.ArrowException, OSError, OverflowError, ValueError) as error:  # also what Python has not
            raise InvalidRequest(f"the Parquet file cannot be read ({type(error).__name__})") from None
        yield from rows
