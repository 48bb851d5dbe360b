"""From shards to an index: what is derived from all of them, and the thresholds of its levels.

May be done again at any time, as when shards were added; the shards themselves are only read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save

from explainers.errors import UnreadableModel
from explainers.influence.index import ARRAYS, WHOLE, Index, turn
from explainers.influence.levels import ALIKE, FEWEST_PROMPTS, UNRELATED, Thresholds, likeness
from explainers.influence.metric import metric_of, second_moment, unit
from explainers.influence.shards import Shard, read_shard, write, write_json
from explainers.influence.space import Space
from explainers.seeds import generator

FACTS = "index.json"
FORM = 1
"""Of the files; an index of another form has to be built again."""
SAMPLE = 1_024
"""Examples, no two identical, whose scores for each other tell what unrelated ones have."""

TokensOf: TypeAlias = Callable[[int], Collection[int]]
"""The tokens of a record, in any order."""


@dataclass(frozen=True, slots=True)
class Finished:
    thresholds: Thresholds
    facts: Mapping[str, Any]


def finish(
    folder: Path,
    shards: int,
    identical: Sequence[bytes],
    tokens_of: TokensOf,
    generic: Shard,
    facts: Mapping[str, Any],
) -> Finished:
    """Derives everything from the shards 0 to `shards`, and writes it; the file of facts last.

    `identical` are p keys, equal where records are; `tokens_of` is asked about SAMPLE of the records; `generic` are the
    calibration prompts with the model's own answers.
    """
    if len(generic.norms) < FEWEST_PROMPTS:
        raise ValueError(f"thresholds need at least {FEWEST_PROMPTS} calibration prompts")
    space = space_of_shards(read_shard(folder, number) for number in range(shards))
    derived = list(_derived(folder, shards, space))
    held: dict[str, NDArray[Any]] = {
        "gradients": space.gradients.factor,
        "mean": space.mean,
        "states": space.states.factor,
        "lengths": np.concatenate([part.lengths for part in derived]),
        "places": np.concatenate([part.places for part in derived]),
        "records": np.concatenate([part.records for part in derived]),
        "groups": first_of(identical),
        "starts": np.cumsum([0, *(len(part.lengths) for part in derived)]),
    }
    if len(held["lengths"]) > WHOLE:
        held["matrix"] = np.concatenate([part.sketch for part in derived])
    write(folder / ARRAYS, save(held))
    index = Index.open(folder)
    thresholds = Thresholds(tuple(sorted(best_scores(index, generic))), unrelated_bound(index, tokens_of))
    told = {**facts, "form": FORM, "generic": thresholds.generic, "unrelated": thresholds.unrelated}
    write_json(folder / FACTS, told)
    return Finished(thresholds, told)


def read_finished(folder: Path) -> Finished:
    """Raises UnreadableModel for an index that is not whole, or of another form."""
    try:
        facts: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnreadableModel("the influence index cannot be read: build it again") from error
    if facts.get("form") != FORM:
        raise UnreadableModel("the influence index was made by another version: build it again")
    return Finished(Thresholds(tuple(facts["generic"]), facts["unrelated"]), facts)


def space_of_shards(shards: Iterable[Shard]) -> Space:
    """The metrics and the mean over all shards, added up in 64 bits and in order."""
    moment: Any = 0.0
    total: Any = 0.0
    states: Any = 0.0
    count = 0
    for shard in shards:
        hidden = unit(shard.hidden.astype(np.float64))
        moment, total = moment + second_moment(shard.whole_rows), total + hidden.sum(axis=0)
        states, count = states + second_moment(hidden), count + len(hidden)
    mean = total / count
    return Space(metric_of(moment, count), mean, metric_of(states - count * np.outer(mean, mean), count))


@dataclass(frozen=True, slots=True)
class _Part:
    """What is derived of the rows of one shard."""

    lengths: NDArray[np.float64]
    places: NDArray[np.float32]
    records: NDArray[np.int64]
    sketch: NDArray[np.int16]  # bfloat16, for numpy has none


def _derived(folder: Path, shards: int, space: Space) -> Iterator[_Part]:
    turned = turn(space)
    for number in range(shards):
        shard = read_shard(folder, number)
        whitened = space.gradients.whitened(shard.whole_rows)
        lengths = np.linalg.norm(whitened, axis=1)
        lengths[lengths == 0] = 1.0
        places = space.places(shard.hidden.astype(np.float64))
        sketch = torch.from_numpy(np.concatenate([whitened / lengths[:, None], places], axis=1) @ turned)
        bits = sketch.to(torch.bfloat16).view(torch.int16).numpy()
        yield _Part(lengths, places.astype(np.float32), shard.records, bits)


def first_of(keys: Sequence[bytes]) -> NDArray[np.int64]:  # (p,)
    """Of each record the first one with the same key."""
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(key, place) for place, key in enumerate(keys)], dtype=np.int64)


def best_scores(index: Index, asked: Shard) -> list[float]:
    """Of each question the best list score of all training examples."""
    questions = zip(asked.whole_rows, asked.hidden.astype(np.float64), strict=True)
    return [float(index.search(row, hidden).scores.max()) for row, hidden in questions]


def unrelated_bound(index: Index, tokens_of: TokensOf) -> float:
    """The UNRELATED quantile of list scores between two training examples whose texts are not ALIKE."""
    firsts = np.flatnonzero(index.groups[index.records] == index.records)
    chosen = np.sort(generator(SAMPLE).permutation(firsts)[:SAMPLE])
    shards = np.searchsorted(index.starts, chosen, side="right") - 1
    parts = [
        read_shard(index.folder, number).whole_rows[chosen[shards == number] - index.starts[number]]
        for number in np.unique(shards).tolist()
    ]
    units = unit(index.space.gradients.whitened(np.concatenate(parts)))
    places = index.places[chosen].astype(np.float64)
    scores = units @ units.T + places @ places.T
    records = index.records[chosen]
    other = likeness([tokens_of(record) for record in records.tolist()]) < ALIKE
    other &= records[:, None] != records[None]
    return float(np.quantile(scores[other], UNRELATED)) if other.any() else math.inf
