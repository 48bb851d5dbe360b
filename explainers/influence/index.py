"""The finished index and the search in it.

Up to WHOLE rows a question is held against every one of them exactly. Beyond, a search matrix of SKETCH dimensions and
16 bits finds the SHORTLIST best, which are then scored exactly from the shards' own rows and from their places; these
and the texts' tokens stay on the disk, mapped, for they are as large as all states of the training data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from explainers.influence.metric import Metric, unit
from explainers.influence.shards import mapped, read_arrays, read_shard, shard_path
from explainers.influence.space import Space, nearness
from explainers.influence.texts import Rarity, Texts, Words
from explainers.seeds import generator

WHOLE = 16_384
SKETCH = 256
SHORTLIST = 1_000
ARRAYS = "index.safetensors"


@dataclass(frozen=True, slots=True)
class Found:
    """Scored rows of one question, the best ones at least."""

    rows: NDArray[np.int64]  # (m,)
    cosines: NDArray[np.float64]  # (m,), C
    states: NDArray[np.float64]  # (m,), Hw
    copies: NDArray[np.int64]  # (m,), identical rows that each stands for, itself included

    @property
    def scores(self) -> NDArray[np.float64]:
        return self.cosines + self.states

    @property
    def impact(self) -> NDArray[np.float64]:
        """Of all copies together."""
        return self.cosines * np.maximum(self.states, 0) * self.copies


@dataclass(frozen=True)
class Index:
    folder: Path
    space: Space
    lengths: NDArray[np.float64]  # (n,), sqrt(phi A phi); 1 for a row of zeros
    places: NDArray[np.float32]  # (n, 2 d), mapped for a large index
    records: NDArray[np.int64]  # (n,)
    groups: NDArray[np.int64]  # (p,), of each record the first one that is identical
    words: Words  # (t,), of all records that are such a first one, one behind the other; mapped for a large index
    stops: NDArray[np.int64]  # (p + 1,), where they begin and end
    rarity: Rarity
    starts: NDArray[np.int64]  # (s + 1,), the first row of each shard
    matrix: Tensor | None  # (n, SKETCH) float16, of a large index

    @classmethod
    def open(cls, folder: Path) -> Index:
        """Raises UnreadableModel for files that are missing or damaged."""
        path = folder / ARRAYS
        held = read_arrays(path, but=("places", "words"))
        places, words = mapped(path, "places", np.float32), mapped(path, "words", np.int32)
        large = "matrix" in held
        return cls(
            folder=folder,
            space=Space(Metric(held["gradients"]), held["means"], (Metric(held["asked"]), Metric(held["said"]))),
            lengths=held["lengths"],
            places=places if large else np.array(places),
            records=held["records"],
            groups=held["groups"],
            words=words if large else np.array(words),
            stops=held["stops"],
            rarity=Rarity(held["rarity"]),
            starts=held["starts"],
            matrix=torch.from_numpy(held["matrix"]) if large else None,
        )

    @cached_property
    def whole(self) -> Tensor:  # (n, D) float32
        """All rows over their lengths, of a small index."""
        rows = torch.empty(len(self.lengths), self.space.gradients.dimensions)
        for number, (start, stop) in enumerate(pairwise(self.starts.tolist())):
            scaled = read_shard(self.folder, number).whole_rows / self.lengths[start:stop, None]
            rows[start:stop] = torch.from_numpy(scaled)
        return rows

    def search(self, row: NDArray[np.float64], hidden: NDArray[np.float64]) -> Found:  # (D,), (2, d)
        """All rows, or the best of many, in no order."""
        direction, place = self.space.directions(row[None])[0], self.space.places(hidden[None])[0]
        if self.matrix is None:
            cosines = torch.mv(self.whole, torch.as_tensor(direction, dtype=torch.float32)).double().numpy()
            every = np.arange(len(self.lengths))
            return Found(every, cosines, nearness(self.places, place), np.ones_like(every))
        rows = shortlist(self.matrix, self._sketch(row, place), SHORTLIST, self._firsts)
        cosines = np.array([scaled @ direction for scaled in self._scaled(rows)])
        copies = self._sizes[self.records[rows]]
        return Found(rows, cosines, nearness(self.places[rows], place), copies)

    def likeness(self, asked: Words, records: Sequence[int]) -> NDArray[np.float64]:  # (m,)
        """Of the texts of some records, each the first of those that are identical, to what is asked."""
        return self.texts(records).likeness(asked) if len(records) else np.empty(0)

    def cosine(self, asked: Words, record: int) -> float:
        """Of both texts, a longer one as long as it is."""
        return float(Texts([asked, self.words_of(record)], self.rarity).cosines()[0, 1])

    def texts(self, records: Sequence[int]) -> Texts:
        """Of m > 0 such records."""
        return Texts([self.words_of(record) for record in records], self.rarity)

    def words_of(self, record: int) -> Words:
        return self.words[self.stops[record] : self.stops[record + 1]]

    @cached_property
    def _firsts(self) -> Tensor:  # (m,)
        """The rows of records that are not copies: these must not fill a shortlist with one pair."""
        return torch.from_numpy(np.flatnonzero(self.groups[self.records] == self.records))

    @cached_property
    def _sizes(self) -> NDArray[np.int64]:  # (p,)
        """How many records are identical to each that is the first of them."""
        return np.bincount(self.groups, minlength=len(self.groups))

    def _sketch(self, row: NDArray[np.float64], place: NDArray[np.float64]) -> NDArray[np.float64]:  # (SKETCH,)
        asked = unit(self.space.gradients.whitened(row[None]))[0]
        sketch: NDArray[np.float64] = np.concatenate([asked, place]) @ self._turn
        return sketch

    @cached_property
    def _turn(self) -> NDArray[np.float64]:
        return turn(self.space)

    def _scaled(self, rows: NDArray[np.int64]) -> Iterator[NDArray[np.float64]]:  # (D,) each
        """Rows over their lengths, read from the shards one by one."""
        for number in rows.tolist():
            shard = int(np.searchsorted(self.starts, number, side="right")) - 1
            place = number - int(self.starts[shard])
            with safe_open(shard_path(self.folder, shard), framework="numpy") as file:
                row: Any = file.get_slice("rows")[place : place + 1][0]
                norm: Any = file.get_slice("norms")[place : place + 1][0]
            yield row.astype(np.float64) * (float(norm) / self.lengths[number])


def turn(space: Space) -> NDArray[np.float64]:  # (D + 2 d, SKETCH)
    """The random matrix behind the search matrix, always the same one for a shape."""
    width = space.gradients.dimensions + space.width
    drawn: NDArray[np.float64] = generator(SKETCH).standard_normal((width, SKETCH)) / SKETCH**0.5
    return drawn


def shortlist(matrix: Tensor, sketch: NDArray[np.float64], most: int, among: Tensor | None = None) -> NDArray[np.int64]:
    """The rows of `matrix` (n, SKETCH) with the largest products with `sketch` (SKETCH,), all or those `among` (m,)."""
    near = torch.mv(matrix, torch.as_tensor(sketch).to(matrix.dtype))
    near = near if among is None else near[among]
    best = torch.topk(near, min(most, len(near))).indices
    found: NDArray[np.int64] = (best if among is None else among[best]).numpy()
    return found
