"""Columns of values in the binary form in which COPY reads rows (PostgreSQL manual, COPY, "Binary Format").

Each kind of value is written for a whole column at once: numpy does what a loop over rows takes several times as long
for.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, repeat
from struct import Struct
from typing import Any, TypeAlias
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from storage.errors import InvalidValue
from storage.values import json_text, plain

Fields: TypeAlias = list[bytes]
"""One value of each row, with its length before it."""

SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
NULL = b"\xff\xff\xff\xff"
INT4, TEXT, FLOAT8 = 23, 25, 701  # the oids of types
ELEMENT = np.dtype([("length", ">i4"), ("value", ">f8")])
LENGTH = Struct(">i")
ARRAY = Struct(">iiiiii")  # length of what follows, dimensions, whether nulls, oid, size, lower bound
EPOCH = np.datetime64("2000-01-01", "us")
INT4_ELEMENT = Struct(">ii")


def packed(fields: Sequence[Fields]) -> bytes:
    """All rows as COPY reads them. Raises ValueError unless all columns are equally long."""
    count = len(fields).to_bytes(2)
    if len({len(column) for column in fields}) > 1:
        raise ValueError("columns of different lengths")
    rows = chain.from_iterable(zip(repeat(count), *fields, strict=False))
    return b"".join(chain((SIGNATURE,), rows, (TRAILER,)))


def uuids(values: Sequence[UUID]) -> Fields:
    return [b"\0\0\0\x10" + value.bytes for value in values]


def integers(values: NDArray[np.int64]) -> Fields:  # (n,)
    """Of type bigint."""
    return _cut(values.astype(">i8").tobytes(), 8, b"\0\0\0\x08")


def times(values: NDArray[np.datetime64]) -> Fields:  # (n,)
    """Of type timestamptz, from microseconds in UTC; NaT is null."""
    moments = values.astype("datetime64[us]")
    since = (moments - EPOCH).astype(np.int64)
    return [NULL if null else field for field, null in zip(integers(since), np.isnat(moments).tolist(), strict=True)]


def texts(values: Sequence[str | None]) -> Fields:
    """Raises InvalidValue for what Postgres cannot hold."""
    return [NULL if value is None else _field(plain(value).encode()) for value in values]


def jsons(values: Sequence[Any]) -> Fields:
    """Of type json. Raises InvalidValue for what JSON cannot carry."""
    return [_field(json_text(value).encode()) for value in values]


def _field(value: bytes) -> bytes:
    return LENGTH.pack(len(value)) + value


def _cut(packed: bytes, size: int, head: bytes) -> Fields:
    return [head + packed[start : start + size] for start in range(0, len(packed), size)]


def float_arrays(values: NDArray[np.float64]) -> Fields:  # (n, K)
    """Arrays of type float8[]; NaN is null. Raises InvalidValue for infinities."""
    if np.isinf(values).any():
        raise InvalidValue("a number is not finite")
    if not values.size:
        return [_array(FLOAT8, 0, b"")] * len(values)
    null = np.isnan(values)  # (n, K)
    elements = np.empty(values.shape, dtype=ELEMENT)
    elements["length"], elements["value"] = np.where(null, -1, 8), values
    written = elements.view(np.uint8).reshape(*values.shape, ELEMENT.itemsize)  # (n, K, 12)
    if not null.any():
        size = values.shape[1] * ELEMENT.itemsize
        return _cut(written.tobytes(), size, ARRAY.pack(20 + size, 1, 0, FLOAT8, values.shape[1], 1))
    return _with_nulls(written, null)


def _with_nulls(written: NDArray[np.uint8], null: NDArray[np.bool_]) -> Fields:  # (n, K, 12), (n, K)
    kept = np.ones(written.shape, dtype=bool)
    kept[null, 4:] = False  # a null is a length only
    packed = written[kept].tobytes()
    stops = np.cumsum(kept.sum(axis=(1, 2))).tolist()
    starts = [0, *stops[:-1]]
    return [_array(FLOAT8, null.shape[1], packed[start:stop]) for start, stop in zip(starts, stops, strict=True)]


def ragged_float_arrays(arrays: Sequence[NDArray[np.float64]]) -> Fields:  # (K,) each
    """Arrays of type float8[] of different lengths. Raises InvalidValue for infinities."""
    return [float_arrays(array.reshape(1, -1))[0] for array in arrays]


def text_arrays(values: Sequence[Sequence[str | None]]) -> Fields:
    """Arrays of type text[], one for each row. Raises InvalidValue for what Postgres cannot hold."""
    return [_array(TEXT, len(row), b"".join(texts(row))) for row in values]


def integer_arrays(values: Sequence[Sequence[int]]) -> Fields:
    """Arrays of type integer[], one for each row."""
    return [_array(INT4, len(row), b"".join(INT4_ELEMENT.pack(4, each) for each in row)) for row in values]


def _array(oid: int, size: int, elements: bytes) -> bytes:
    if not size:
        return LENGTH.pack(12) + ARRAY.pack(0, 0, 0, oid, 0, 0)[4:16]
    return ARRAY.pack(20 + len(elements), 1, 1, oid, size, 1) + elements
