"""From shards to an index: what is derived from all of them, and the thresholds of its levels.

May be done again at any time, as when shards were added; the shards themselves are only read.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from explainers.errors import InvalidRequest, UnreadableModel
from explainers.influence.index import ARRAYS, SKETCH, WHOLE, Index, turn
from explainers.influence.levels import ALIKE, FEWEST_PROMPTS, LEAST_LIFT, UNRELATED, Thresholds
from explainers.influence.metric import metric_of, second_moment, unit
from explainers.influence.shards import (
    Shard,
    mapped,
    read_shard,
    rows_of,
    shard_path,
    write_arrays,
    write_json,
    write_shard,
)
from explainers.influence.space import Space, nearness
from explainers.influence.texts import Rarity, words_of
from explainers.seeds import generator

FACTS, TEXTS = "index.json", "texts.json"
FORM = 3
"""Of the files; an index of another form has to be built again."""
SAMPLE = 1_024
"""Records that tell which tokens are rare, and what unrelated examples score for each other."""

ROUNDING = 1e-9
"""Part of a second moment below which what is left about the mean is no number."""

TokensOf: TypeAlias = Callable[[int], Collection[int]]
"""The tokens of a record, in any order."""


@dataclass(frozen=True, slots=True)
class Generic:
    """Calibration prompts with the model's own answers."""

    sketches: Shard  # of m
    texts: tuple[tuple[int, ...], ...]  # m, the ids of each with its answer


def write_generic(folder: Path, generic: Generic, name: str) -> None:
    """`name` stands for all that decides what they are."""
    folder.mkdir(mode=0o700, exist_ok=True)
    write_shard(folder, 0, generic.sketches)
    write_json(folder / TEXTS, {"name": name, "texts": generic.texts})  # last: it says which the sketches are of


def read_generic(folder: Path, name: str) -> Generic:
    """Those of that name; raises UnreadableModel where they are others, or not whole."""
    try:
        told = json.loads((folder / TEXTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnreadableModel("the calibration prompts cannot be read") from error
    if told.get("name") != name:
        raise UnreadableModel("the calibration prompts are others")
    return Generic(read_shard(folder, 0), tuple(tuple(text) for text in told["texts"]))


@dataclass(frozen=True, slots=True)
class Finished:
    thresholds: Thresholds
    facts: Mapping[str, Any]


def finish(
    folder: Path,
    shards: int,
    identical: Sequence[bytes],
    tokens_of: TokensOf,
    generic: Generic,
    facts: Mapping[str, Any],
) -> Finished:
    """Derives everything from the shards 0 to `shards`, and writes it; the file of facts last.

    `identical` are p keys, equal where records are; `tokens_of` is asked about those that have examples. A calibration
    prompt that the training data is about is no generic one, and left out. Raises InvalidRequest where less than
    FEWEST_PROMPTS are left.
    """
    space = space_of_shards(read_shard(folder, number) for number in range(shards))
    starts = np.cumsum([0, *(rows_of(folder, number) for number in range(shards))])
    _write_derived(folder, space, starts, first_of(identical), tokens_of, generic)
    thresholds = thresholds_of(Index.open(folder), generic)
    told = {**facts, "form": FORM} | {name: _told(getattr(thresholds, name)) for name in Thresholds.__slots__}
    write_json(folder / FACTS, told)
    return Finished(thresholds, told)


def _told(value: tuple[float, ...] | float) -> tuple[float, ...] | float | None:
    return value if isinstance(value, tuple) or math.isfinite(value) else None


def read_finished(folder: Path) -> Finished:
    """Raises UnreadableModel for an index that is not whole, or of another form."""
    try:
        facts: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnreadableModel("the influence index cannot be read: build it again") from error
    if facts.get("form") != FORM:
        raise UnreadableModel("the influence index was made by another version: build it again")
    unrelated = math.inf if facts["unrelated"] is None else facts["unrelated"]  # no two examples to tell it from
    return Finished(Thresholds(tuple(facts["generic"]), tuple(facts["made"]), unrelated), facts)


def space_of_shards(shards: Iterable[Shard]) -> Space:
    """The metrics and the means over all shards, added up in 64 bits and in order."""
    moment: Any = 0.0
    total: Any = 0.0
    states: Any = np.zeros(2)
    count = 0
    for shard in shards:
        hidden = unit(shard.hidden.astype(np.float64))  # (n, 2, d)
        moment, total = moment + second_moment(shard.whole_rows), total + hidden.sum(axis=0)
        states = [known + second_moment(hidden[:, number]) for number, known in enumerate(states)]
        count += len(hidden)
    means = total / count
    asked, said = (metric_of(_centred(known, mean, count), count) for known, mean in zip(states, means, strict=True))
    return Space(metric_of(moment, count), means, (asked, said))


def _centred(moment: NDArray[np.float64], mean: NDArray[np.float64], count: int) -> NDArray[np.float64]:  # (d, d)
    """The second moment about the mean of `count` vectors; zeros where they differ by rounding only."""
    centred = moment - count * np.outer(mean, mean)
    return centred if np.trace(centred) > ROUNDING * np.trace(moment) else np.zeros_like(centred)


def _write_derived(
    folder: Path,
    space: Space,
    starts: NDArray[np.int64],
    groups: NDArray[np.int64],
    tokens_of: TokensOf,
    generic: Generic,
) -> None:
    """What is derived of all rows; the places, the most by far, are written as they are made."""
    count = int(starts[-1])
    records = _records(folder, len(starts) - 1)
    held: dict[str, NDArray[Any]] = {
        "gradients": space.gradients.factor,
        "means": space.means,
        "asked": space.states[0].factor,
        "said": space.states[1].factor,
        "lengths": np.empty(count),
        "records": records,
        "groups": groups,
        "starts": starts,
        **_texts(np.unique(groups[records]), len(groups), tokens_of, generic),
    }
    if count > WHOLE:
        held["matrix"] = np.empty((count, SKETCH), np.float16)
    places = _places(folder, space, held)
    write_arrays(folder / ARRAYS, held, "places", (count, space.width), places)


def _records(folder: Path, shards: int) -> NDArray[np.int64]:  # (n,)
    """Of each row, of which nothing else is read."""
    return np.concatenate([mapped(shard_path(folder, number), "records", np.int64) for number in range(shards)])


def _sample(firsts: NDArray[np.int64]) -> list[int]:
    """SAMPLE of the records that have examples, no two identical."""
    return sorted(generator(SAMPLE).permutation(firsts)[:SAMPLE].tolist())


def _texts(
    firsts: NDArray[np.int64], count: int, tokens_of: TokensOf, generic: Generic
) -> dict[str, NDArray[np.generic]]:
    """Words and stops of `count` records, and the rarity of tokens among them and the calibration prompts."""
    sizes, words = np.zeros(count + 1, np.int64), array("i")
    for record in firsts.tolist():
        own = words_of(tokens_of(record))
        words.frombytes(own.tobytes())
        sizes[record + 1] = len(own)
    stops, found = np.cumsum(sizes), np.frombuffer(words, np.int32)
    usual = [found[stops[record] : stops[record + 1]] for record in _sample(firsts)]
    rarity = Rarity.among([*usual, *map(words_of, generic.texts)])
    return {"words": found, "stops": stops, "rarity": rarity.weights}


def _places(folder: Path, space: Space, held: Mapping[str, NDArray[Any]]) -> Iterator[NDArray[np.float32]]:
    """Those of one shard after the other, whose lengths and sketches are filled in on the way."""
    turned = turn(space) if "matrix" in held else None
    for number, (start, stop) in enumerate(pairwise(held["starts"].tolist())):
        shard = read_shard(folder, number)
        whitened = space.gradients.whitened(shard.whole_rows)
        lengths = np.linalg.norm(whitened, axis=1)
        lengths[lengths == 0] = 1.0
        held["lengths"][start:stop] = lengths
        places = space.places(shard.hidden.astype(np.float64))
        if turned is not None:
            held["matrix"][start:stop] = np.concatenate([whitened / lengths[:, None], places], axis=1) @ turned
        yield places.astype(np.float32)


def first_of(keys: Sequence[bytes]) -> NDArray[np.int64]:  # (p,)
    """Of each record the first one with the same key."""
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(key, place) for place, key in enumerate(keys)], dtype=np.int64)


def thresholds_of(index: Index, generic: Generic) -> Thresholds:
    """Raises InvalidRequest where too few calibration prompts are left."""
    scores, made = generic_scores(index, generic)
    if len(scores) < FEWEST_PROMPTS:
        raise InvalidRequest(
            f"the training data is about all but {len(scores)} of {len(generic.texts)} calibration prompts, and "
            f"{FEWEST_PROMPTS} are needed: add generic_prompts that it is not about"
        )
    return Thresholds(tuple(sorted(scores.tolist())), tuple(sorted(scores[made].tolist())), unrelated_score(index))


def generic_scores(index: Index, generic: Generic) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:  # (m,), (m,)
    """Of each prompt that is not ALIKE to the example that scores best its score, and if fine-tuning made the answer.

    Without a base model nothing tells, and all count.
    """
    asked = generic.sketches
    found = [_best(index, row, hidden) for row, hidden in zip(asked.whole_rows, asked.hidden, strict=True)]
    firsts = index.groups[index.records[[row for row, _ in found]]].tolist()
    cosines = [index.cosine(words_of(text), first) for text, first in zip(generic.texts, firsts, strict=True)]
    apart = np.array(cosines) < ALIKE
    return np.array([score for _, score in found])[apart], ~(asked.lifts < LEAST_LIFT)[apart]


def _best(index: Index, row: NDArray[np.float64], hidden: NDArray[np.float16]) -> tuple[int, float]:
    found = index.search(row, hidden.astype(np.float64))
    best = int(found.scores.argmax())
    return int(found.rows[best]), float(found.scores[best])


def unrelated_score(index: Index) -> float:
    """The UNRELATED quantile of the list scores of each two training examples of a sample whose texts are not ALIKE.

    Infinite where there are none.
    """
    firsts = np.flatnonzero(np.bincount(index.groups[index.records]))
    chosen = np.flatnonzero(np.isin(index.records, _sample(firsts)))  # of long chats many each
    chosen = np.sort(generator(SAMPLE).permutation(chosen)[:SAMPLE])
    records = index.records[chosen]
    others = (records[:, None] != records) & (index.texts(records.tolist()).cosines() < ALIKE)
    apart = _among(index, chosen)[others]
    return float(np.quantile(apart, UNRELATED)) if len(apart) else math.inf


def _among(index: Index, chosen: NDArray[np.int64]) -> NDArray[np.float64]:  # (c, c)
    """Scores of some rows for each other."""
    shards = np.searchsorted(index.starts, chosen, side="right") - 1
    parts = [
        read_shard(index.folder, number).whole_rows[chosen[shards == number] - index.starts[number]]
        for number in np.unique(shards).tolist()
    ]
    units = unit(index.space.gradients.whitened(np.concatenate(parts)))
    places = index.places[chosen]
    return units @ units.T + nearness(places, places)
