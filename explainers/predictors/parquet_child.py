"""A Parquet file in a process of its own: a page of a few bytes can say that it becomes any number of them.

Runs inside `sandbox`; asked by `parquet_file`. Rows go back as Arrow's own stream, one batch for each frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import Any

import pyarrow
from pyarrow import compute, parquet, types

from explainers.confined.sandbox import Refusal


class Served:
    """The file, once loaded, and how far it has been read."""

    def __init__(self) -> None:
        self.data = b""
        self.batches: Iterator[Any] | None = None

    def answer(self, header: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        try:
            return self._answer(header, payload)
        except (pyarrow.ArrowException, OSError, OverflowError, ValueError) as error:
            raise Refusal("invalid", f"cannot be read ({type(error).__name__})") from None

    def _answer(self, header: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        if header["ask"] == "load":
            self.data = payload
            return facts(parquet.ParquetFile(BytesIO(payload))), b""
        if self.batches is None:
            self.batches = batches(self.data, header["rows"], header["columns"])
        batch = next(self.batches, None)
        if batch is None:
            return {"done": True}, b""
        if sum(map(spelt_out, batch.columns)) > header["bytes"]:
            raise Refusal("invalid", f"{header['rows']} rows of the file have more than {header['bytes']} bytes")
        return {"done": False}, streamed(plainly(batch))


def facts(file: Any) -> dict[str, Any]:
    groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
    values = sum(group.column(place).num_values for group in groups for place in range(group.num_columns))
    return {"names": file.schema_arrow.names, "rows": file.metadata.num_rows, "values": values}


def batches(data: bytes, rows: int, columns: list[str] | None) -> Iterator[Any]:
    """Texts are read by way of dictionaries: a tiny file may say a long one often."""
    schema = parquet.ParquetFile(BytesIO(data)).schema
    texts = [column.path for column in schema if column.physical_type == "BYTE_ARRAY"]
    file = parquet.ParquetFile(BytesIO(data), read_dictionary=texts)
    found: Iterator[Any] = file.iter_batches(rows, columns=columns, use_threads=False)
    return found


def spelt_out(column: Any) -> int:
    """Bytes of an Arrow column with every text written as often as it occurs."""
    if types.is_dictionary(column.type):
        lengths = compute.take(compute.binary_length(column.dictionary), column.indices)
        return int(compute.sum(lengths).as_py() or 0)
    if types.is_list(column.type) or types.is_struct(column.type):
        parts = column.flatten()
        return sum(map(spelt_out, parts)) if isinstance(parts, list) else spelt_out(parts)
    return int(column.nbytes)


def plainly(batch: Any) -> Any:
    """The rows without dictionaries of their texts, which are slow to look up one by one."""
    plain = [each.dictionary_decode() if types.is_dictionary(each.type) else each for each in batch.columns]
    return pyarrow.RecordBatch.from_arrays(plain, names=batch.schema.names)


def streamed(batch: Any) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())
