"""What an influence index is built from: the examples of its files, cut into shards whose contents have names.

Deterministic: every worker that reads the same files under the same mask comes to the same shards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.records import digest_of
from explainers.errors import InvalidRequest
from explainers.influence.examples import Examples, Mask
from explainers.influence.mask_check import spread
from explainers.influence.pairs import Pair, pair_of
from explainers.influence.records import Record, records_of
from explainers.influence.rendering import left_out, rendered
from explainers.influence.shards import ROWS
from explainers.language_model import LanguageModel
from storage.influence import Piece

SHARD_TOKENS = 32_768
"""Of a shard, unless it is a single example: what a killed worker loses at most."""


@dataclass(frozen=True, slots=True)
class Material:
    """p pairs, their n examples, and which of these are in which shard; `sample` is evenly spread over the records."""

    pairs: tuple[Pair, ...]  # p
    keys: tuple[bytes, ...]  # p, equal where records are identical
    examples: Examples  # n
    shards: tuple[range, ...]  # places in `examples`
    pieces: tuple[Piece, ...]  # one per shard
    sample: tuple[Record, ...]
    warnings: tuple[str, ...]

    @property
    def tokens(self) -> int:
        return sum(piece.tokens for piece in self.pieces)


def material_of(
    model: LanguageModel, files: Iterable[tuple[bytes, str]], lines: int, mask: Mask, made_with: Sequence[Any]
) -> Material:
    """Of the contents and names of files, asked for one by one, with so many records in all.

    `made_with` is what else decides the content of a shard, as JSON values.
    Raises InvalidRequest for lines that cannot be examples of this model, or where none is left.
    """
    pairs, examples, warnings = list[Pair](), Examples(), list[str]()
    shards, salt = list[range](), digest_of(*made_with)
    sample, chosen = list[Record](), frozenset(spread(lines))
    for place, (content, name) in enumerate(files):
        records, first, start = records_of(content, name), len(pairs), len(examples)
        examples.extend(rendered(model, records, mask, first))
        warnings += [f"{name}: {warning}" for warning in left_out(records, examples.records(start), first)]
        shards += [range(start + part.start, start + part.stop) for part in cut(examples.sizes(start))]
        sample += [record for number, record in enumerate(records, first) if number in chosen]
        pairs += [pair_of(model, place, record) for record in records]
    if not examples:
        raise InvalidRequest("no line of the training files has an answer to learn: is `longest` too short?")
    pieces = [piece_of(number, examples, shard, salt) for number, shard in enumerate(shards)]
    keys = keys_of(examples, len(pairs))
    return Material(tuple(pairs), keys, examples, tuple(shards), tuple(pieces), tuple(sample), tuple(warnings))


def cut(sizes: Sequence[int]) -> Iterator[range]:
    """Examples of so many tokens into shards of at most ROWS and SHARD_TOKENS tokens, one example at least."""
    start = tokens = 0
    for place, size in enumerate(sizes):
        if place > start and (place - start == ROWS or tokens + size > SHARD_TOKENS):
            yield range(start, place)
            start, tokens = place, 0
        tokens += size
    if sizes:
        yield range(start, len(sizes))


def piece_of(number: int, examples: Examples, shard: range, salt: bytes) -> Piece:
    """Its key does not depend on the numbers of its records, only on how far they are from the first."""
    records, digest = examples.records(shard.start, shard.stop), hashlib.sha256(salt)
    for place, record in zip(shard, records, strict=True):
        digest.update(examples.content(place) + np.array([record - records[0]], dtype="<i8").tobytes())
    return Piece(number, digest.digest(), records[0], sum(examples.sizes(shard.start, shard.stop)))


def keys_of(examples: Examples, count: int) -> tuple[bytes, ...]:
    """Of each record a name for the ids and positions of all its examples; one without any is like no other."""
    digests: dict[int, Any] = {}
    for place, record in enumerate(examples.records()):
        digests.setdefault(record, hashlib.sha256()).update(examples.content(place))
    return tuple(digests[record].digest() if record in digests else b"%d" % record for record in range(count))
