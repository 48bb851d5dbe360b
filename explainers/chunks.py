"""A prompt cut into the chunks that are explained, each with the columns that damping it addresses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from explainers.controls import Factors, addressed
from explainers.granularity import CUTS, automatic, split_at
from explainers.language_model import TokenSequence
from explainers.pictures import grid
from explainers.types import AtmanConfig, Control, Feature, Granularity, Image, Prompt, Span, Text, TokenIds

TILES_PER_SIDE: Mapping[Granularity, int] = {"token": 12, "word": 6, "sentence": 3, "paragraph": 1, "custom": 1}


@dataclass(frozen=True, slots=True)
class Chunk:
    """A feature and the columns that damping it addresses."""

    feature: Feature
    factors: Factors


def nearest_to_thirty(prompt: Prompt, sequence: TokenSequence) -> Granularity:
    """The granularity whose number of prompt chunks is nearest to thirty."""
    texts = [item.data for item in prompt if isinstance(item, Text)]
    ids = sum(len(item.ids) for item in prompt if isinstance(item, TokenIds))
    images = [index for index, item in enumerate(prompt) if isinstance(item, Image)]
    visual = sum(len(sequence.tokens_of(index)) for index in images)
    around = sum(token.span is not None and token.body is None for token in sequence.tokens)
    counts: list[tuple[Granularity, int]] = [("token", len(sequence.tokens) - visual - around)]
    counts += [(name, ids + sum(len(cut(text)) for text in texts)) for name, cut in CUTS.items()]
    return automatic([(name, count + len(images) * TILES_PER_SIDE[name] ** 2) for name, count in counts])


def prompt_chunks(
    prompt: Prompt, sequence: TokenSequence, granularity: Granularity, config: AtmanConfig
) -> list[Chunk]:
    chunks = []
    for index, item in enumerate(prompt):
        if isinstance(item, Text) and granularity != "token":
            chunks += [
                Chunk(
                    Feature(item.data[span.start : span.stop], index, span),
                    addressed(sequence, index, Control(span, config.control_factor), config.overlap),
                )
                for span in _cut(item.data, granularity, config.delimiter)
            ]
        elif isinstance(item, Image):
            chunks += _tile_chunks(index, sequence, TILES_PER_SIDE[granularity], config)
        else:
            chunks += _token_chunks(item, index, sequence, config)
    return chunks


def _tile_chunks(item: int, sequence: TokenSequence, side: int, config: AtmanConfig) -> list[Chunk]:
    """One chunk per tile of the whole image, row by row; each acts on visual tokens by the area they share."""
    return [
        Chunk(
            Feature(f"row {number // side + 1}, column {number % side + 1}", item, tile),
            addressed(sequence, item, Control(tile, config.control_factor), config.overlap),
        )
        for number, tile in enumerate(grid(side, side))
    ]


def _token_chunks(item: Text | TokenIds, index: int, sequence: TokenSequence, config: AtmanConfig) -> list[Chunk]:
    """One chunk per token: exactly that token with the full factor, also where tokens share a character."""
    chunks = []
    for position in sequence.tokens_of(index):
        token = sequence.tokens[position]
        if token.span is not None and token.body is None:
            continue
        feature = Feature(str(sequence.prompt[position]), index, token.index)
        if isinstance(item, Text) and token.span is not None:
            feature = Feature(item.data[token.span.start : token.span.stop], index, token.span)
        chunks.append(Chunk(feature, {len(sequence.start) + position: config.control_factor}))
    return chunks


def _cut(text: str, granularity: Granularity, delimiter: str | None) -> list[Span]:
    return split_at(text, delimiter) if granularity == "custom" and delimiter else CUTS[granularity](text)


def target_chunks(item: int, sequence: TokenSequence, target: str, config: AtmanConfig) -> list[Chunk]:
    """Every target token but the last, as a feature of those after it."""
    return [
        Chunk(
            Feature(target[span.start : span.stop], item, span),
            {sequence.first_scored + 1 + position: config.control_factor},
        )
        for position, span in enumerate(sequence.target_spans[:-1])
    ]


def visible(sequence: TokenSequence, chunks: Sequence[Chunk]) -> NDArray[np.bool_]:  # (T, F)
    """Prompt chunks are features of every target token, a target token only of those after it."""
    first_target = sequence.first_scored + 1
    earliest = [max(min(chunk.factors, default=0) - first_target, -1) for chunk in chunks]
    return np.arange(len(sequence.target))[:, None] > np.array(earliest, dtype=int)[None, :]
