"""The files of an index: shards of sketches, written once each, and one file of what is derived from all of them.

A file is written under another name, flushed to the disk and then renamed, so that one with its name is whole; its
sha256 is what the build remembers. The same sketches give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from explainers.errors import UnreadableModel
from explainers.influence.metric import unit
from explainers.influence.sketching import Sketches

ROWS = 1024
"""Examples of a shard: what a killed build loses at most."""
KINDS = {
    np.dtype(kind): name for kind, name in (("f8", "F64"), ("f4", "F32"), ("i8", "I64"), ("i4", "I32"), ("f2", "F16"))
}
"""Of the numbers in a file, as safetensors names them."""
CONTENT = 2
"""Of the way that sketches are made and kept: with another number none that was kept is taken over."""
Number = TypeVar("Number", np.float32, np.int32, np.int64)
Block: TypeAlias = bytes | memoryview
"""Of the content of a file, which is written one after the other."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Sketches as they are kept: directions in 16 bits, lengths in 32."""

    rows: NDArray[np.float16]  # (n, D), of length one, or zeros
    norms: NDArray[np.float32]  # (n,)
    hidden: NDArray[np.float16]  # (n, 2, d), of length one each
    losses: NDArray[np.float32]  # (n,), nats
    lifts: NDArray[np.float32]  # (n,), nats; NaN without a base model
    records: NDArray[np.int64]  # (n,), the pair that each is (a turn) of

    @property
    def whole_rows(self) -> NDArray[np.float64]:  # (n, D)
        """The projected gradients, as exact as they are kept."""
        found: NDArray[np.float64] = self.rows.astype(np.float64) * self.norms[:, None]
        return found


def shard_of(sketches: Sketches, records: Sequence[int]) -> Shard:
    norms = np.linalg.norm(sketches.rows.astype(np.float64), axis=1)
    return Shard(
        rows=unit(sketches.rows.astype(np.float64)).astype(np.float16),
        norms=norms.astype(np.float32),
        hidden=unit(sketches.hidden.astype(np.float64)).astype(np.float16),
        losses=sketches.losses.astype(np.float32),
        lifts=np.full(len(norms), np.nan, np.float32) if sketches.lifts is None else sketches.lifts.astype(np.float32),
        records=np.asarray(records, dtype=np.int64),
    )


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:06d}.safetensors"


def write_shard(folder: Path, number: int, shard: Shard) -> str:
    """The sha256 of the file."""
    return write(shard_path(folder, number), save({name: getattr(shard, name) for name in Shard.__slots__}))


def read_shard(folder: Path, number: int) -> Shard:
    """Raises UnreadableModel for a file that is missing or damaged."""
    return Shard(**read_arrays(shard_path(folder, number)))


def rows_of(folder: Path, number: int) -> int:
    """How many a shard has, of which nothing else is read."""
    return len(mapped(shard_path(folder, number), "norms", np.float32))


def read_arrays(path: Path, but: Collection[str] = ()) -> dict[str, NDArray[Any]]:
    """All arrays of a file, or all but some."""
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in set(file.keys()).difference(but)}
    except (OSError, SafetensorError) as error:
        raise _unreadable(path) from error


def mapped(path: Path, name: str, kind: type[Number]) -> NDArray[Number]:
    """One array of a file, whose rows are read when they are asked for; it outlives the file's name."""
    try:
        with path.open("rb") as file:
            head = file.read(int.from_bytes(file.read(8), "little"))
            told = json.loads(head)[name]
            if told["dtype"] != KINDS[np.dtype(kind)]:
                raise ValueError(told["dtype"])
            start, shape = 8 + len(head) + told["data_offsets"][0], tuple(told["shape"])
            return np.memmap(file, np.dtype(kind).newbyteorder("<"), mode="r", offset=start, shape=shape)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(path) from error


def _unreadable(path: Path) -> UnreadableModel:
    return UnreadableModel(f"{path.name} of the influence index cannot be read: build the index again")


def write_arrays(
    path: Path, held: Mapping[str, NDArray[Any]], name: str, shape: tuple[int, int], rows: Iterable[NDArray[np.float32]]
) -> str:
    """A file of arrays, and before them another one of `shape`, whose rows come in blocks; its sha256.

    What is held may be filled while the blocks are made: only its kind and shape are asked for before.
    """

    def content() -> Iterator[Block]:
        yield _head({name: (np.dtype("f4"), shape)} | {each: (own.dtype, own.shape) for each, own in held.items()})
        yield from map(_bytes, rows)
        yield from map(_bytes, held.values())

    return write_blocks(path, content())


def _head(arrays: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> bytes:
    """What a safetensors file says of arrays that lie one behind the other."""
    told, start = dict[str, Any](), 0
    for name, (kind, shape) in arrays.items():
        stop = start + math.prod(shape) * kind.itemsize
        told[name] = {"dtype": KINDS[kind], "shape": shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(told, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(array: NDArray[Any]) -> Block:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).data


def write(path: Path, content: bytes) -> str:
    """Writes a file whole or not at all; its sha256."""
    return write_blocks(path, [content])


def write_blocks(path: Path, blocks: Iterable[Block]) -> str:
    """The same of a content that is never in memory at once."""
    passing, digest = path.with_name(f".{path.name}.{uuid4().hex}"), hashlib.sha256()
    try:
        with passing.open("wb") as file:
            for block in blocks:
                file.write(block)
                digest.update(block)
            file.flush()
            os.fsync(file.fileno())
        passing.replace(path)
    except BaseException:
        passing.unlink(missing_ok=True)  # what is left of a full disk must not take its place
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return digest.hexdigest()


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Mapping[str, Any]) -> str:
    return write(path, json.dumps(content, sort_keys=True, allow_nan=False).encode())
