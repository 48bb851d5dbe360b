"""The files of an index: shards of sketches, written once each, and one file of what is derived from all of them.

A file is written under another name, flushed to the disk and then renamed, so that one with its name is whole; its
sha256 is what the build remembers. The same sketches give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from explainers.errors import UnreadableModel
from explainers.influence.metric import unit
from explainers.influence.sketching import Sketches

ROWS = 1024
"""Examples of a shard: what a killed build loses at most."""


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


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UnreadableModel(f"{path.name} of the influence index cannot be read: build the index again") from error


def write(path: Path, content: bytes) -> str:
    """Writes a file whole or not at all; its sha256."""
    passing = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with passing.open("wb") as file:
            file.write(content)
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
    return hashlib.sha256(content).hexdigest()


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Mapping[str, Any]) -> str:
    return write(path, json.dumps(content, sort_keys=True, allow_nan=False).encode())
