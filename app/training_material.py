"""What an influence index is built from: the examples of its files, cut into shards whose contents have names.

Deterministic: every worker that reads the same files under the same mask comes to the same shards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.records import digest_of
from explainers.errors import InvalidRequest
from explainers.influence.examples import Example, Mask
from explainers.influence.mask_check import sampled
from explainers.influence.pairs import Pair, pair_of
from explainers.influence.records import Record, records_of
from explainers.influence.rendering import left_out, render
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
    examples: tuple[Example, ...]  # n
    shards: tuple[range, ...]  # places in `examples`
    pieces: tuple[Piece, ...]  # one per shard
    sample: tuple[Record, ...]
    warnings: tuple[str, ...]

    @property
    def tokens(self) -> int:
        return sum(piece.tokens for piece in self.pieces)


def material_of(
    model: LanguageModel, files: Sequence[tuple[bytes, str]], mask: Mask, made_with: Sequence[Any]
) -> Material:
    """Of the contents and names of files. `made_with` is what else decides the content of a shard, as JSON values.

    Raises InvalidRequest for lines that cannot be examples of this model, or where none is left.
    """
    pairs, examples, warnings = list[Pair](), list[Example](), list[str]()
    shards, salt, every = list[range](), digest_of(*made_with), list[Record]()
    for place, (content, name) in enumerate(files):
        records, first = records_of(content, name), len(pairs)
        own = render(model, records, mask, first)
        warnings += [f"{name}: {warning}" for warning in left_out(records, own, first)]
        shards += [range(len(examples) + part.start, len(examples) + part.stop) for part in cut(own)]
        examples += own
        every += records
        pairs += [pair_of(model, place, record) for record in records]
    if not examples:
        raise InvalidRequest("no line of the training files has an answer to learn: is `longest` too short?")
    pieces = [piece_of(number, [examples[at] for at in shard], salt) for number, shard in enumerate(shards)]
    keys = keys_of(examples, len(pairs))
    return Material(tuple(pairs), keys, tuple(examples), tuple(shards), tuple(pieces), sampled(every), tuple(warnings))


def cut(examples: Sequence[Example]) -> Iterator[range]:
    """Into shards of at most ROWS examples and SHARD_TOKENS tokens, one example at least."""
    start = tokens = 0
    for place, example in enumerate(examples):
        if place > start and (place - start == ROWS or tokens + len(example.ids) > SHARD_TOKENS):
            yield range(start, place)
            start, tokens = place, 0
        tokens += len(example.ids)
    if examples:
        yield range(start, len(examples))


def piece_of(number: int, examples: Sequence[Example], salt: bytes) -> Piece:
    """Its key does not depend on the numbers of its records, only on how far they are from the first."""
    first, digest = examples[0].record, hashlib.sha256(salt)
    for example in examples:
        digest.update(ids_of(example) + np.array([example.record - first], dtype="<i8").tobytes())
    return Piece(number, digest.digest(), first, sum(len(example.ids) for example in examples))


def keys_of(examples: Sequence[Example], count: int) -> tuple[bytes, ...]:
    """Of each record a name for the ids and positions of all its examples; one without any is like no other."""
    digests = [hashlib.sha256() for _ in range(count)]
    told = set[int]()
    for example in examples:
        digests[example.record].update(ids_of(example))
        told.add(example.record)
    return tuple(digests[place].digest() if place in told else b"%d" % place for place in range(count))


def ids_of(example: Example) -> bytes:
    """Ids, positions and place of the question, with their numbers first, so that no two examples share the bytes."""
    sizes = [len(example.ids), len(example.answer), example.asked]
    return np.array([*sizes, *example.ids, *example.answer], dtype="<i8").tobytes()
