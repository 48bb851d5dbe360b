"""The server's own method on the test bed: an index as a build writes it, and its answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from benchmarks.influence.bed import Bed, Query
from benchmarks.influence.text import Row
from explainers.decoding import outcome_of
from explainers.influence.examples import Example
from explainers.influence.finishing import Generic, finish
from explainers.influence.gradients import Projection
from explainers.influence.index import Found, Index
from explainers.influence.levels import ALIKE, Thresholds
from explainers.influence.shards import Shard, shard_of, write_shard
from explainers.influence.sketching import FineTune, sketching
from explainers.influence.texts import words_of
from explainers.influence.tracing import Traced, tracing

SIZE, TOKENS = 8, 1024
"""Columns of the projections, and positions of a batch."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Own:
    tune: FineTune
    projection: Projection
    index: Index
    thresholds: Thresholds

    def searched(self, queries: Sequence[Query]) -> tuple[list[Found], Floats]:
        """What each query finds among all pairs, and the lifts of their answers."""
        sketches = outcome_of(sketching(self.tune, _examples(query.row for query in queries), self.projection, TOKENS))
        assert sketches.lifts is not None  # the bed has a base model
        each = zip(sketches.rows.astype(float), sketches.hidden.astype(float), strict=True)
        return [self.index.search(row, state) for row, state in each], sketches.lifts

    def alike(self, query: Query, found: Found) -> NDArray[np.bool_]:  # (n,)
        """Whether the text of each pair that was found is about what is asked."""
        firsts = self.index.groups[self.index.records[found.rows]]
        return self.index.likeness(words_of(query.row.ids), firsts.tolist()) >= ALIKE

    def scores(self, queries: Sequence[Query]) -> dict[str, Floats]:  # (Q, n) each
        """The two scores that are returned, and the two that they are made of."""
        each, _ = self.searched(queries)
        return {
            "ours, list": np.array([one.scores for one in each]),
            "ours, impact": np.array([one.impact for one in each]),
            "ours, gradients alone": np.array([one.cosines for one in each]),
            "ours, hidden states alone": np.array([one.states for one in each]),
        }

    def traced(self, query: Query) -> Traced:
        """The answer as the server gives it."""
        (example,) = _examples([query.row])
        return outcome_of(
            tracing(self.tune, self.projection, self.index, self.thresholds, example, words_of(example.ids))
        )


def own(bed: Bed, calibration: Sequence[Query], size: int = SIZE) -> Own:
    """Builds the index in memory of its own; `calibration` are the generic questions its thresholds come from."""
    tune = FineTune(bed.model(), bed.base_model())
    projection = Projection(tune.model.network, size)
    with TemporaryDirectory() as place:
        folder = Path(place)
        write_shard(folder, 0, _shard(tune, projection, bed.rows))
        keys = [repr(row.ids).encode() for row in bed.rows]
        asked = [query.row for query in calibration]
        generic = Generic(_shard(tune, projection, asked), tuple(row.ids for row in asked))
        thresholds = finish(folder, 1, keys, lambda record: bed.rows[record].ids, generic, {}).thresholds
        index = Index.open(folder)
        index.whole.sum()  # reads the rows while their folder is there
    return Own(tune, projection, index, thresholds)


def _shard(tune: FineTune, projection: Projection, rows: Sequence[Row]) -> Shard:
    found = outcome_of(sketching(tune, _examples(rows), projection, TOKENS))
    return shard_of(found, range(len(rows)))


def _examples(rows: Iterable[Row]) -> list[Example]:
    return [Example(number, row.ids, row.answer, row.asked) for number, row in enumerate(rows)]
