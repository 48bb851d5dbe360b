"""Lessons as batches of tokens: what is asked of ``demo-lm`` in training, and where loss is counted."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from demo.corpus import STYLES, Lesson, Span, lesson

_POOL: Final = 192
ANSWERS: Final = {style: number for number, style in enumerate(STYLES, start=1)}


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum; it ends after ``steps``, or once ``enough`` of the answers are right.

    ``single`` is the share of lessons with one query only, ``odd`` of those with invented words, ``long`` of those with
    dozens of distractors, ``stretch`` of those whose sentences are set apart by skipped positions, ``damped`` of those
    that are read with little attention to their queries.
    """

    name: str
    most_facts: int
    steps: int
    enough: float
    single: float = 0.0
    odd: float = 0.0
    long: float = 0.0
    stretch: float = 0.0
    damped: float = 0.0


@dataclass(frozen=True)
class Sample:
    """A lesson as tokens: ids, positions, for each token the number of the style it answers, or 0, and if it asks."""

    ids: list[int]
    positions: list[int]
    answers: list[int]
    asked: list[int]


@dataclass(frozen=True)
class Batch:
    """Samples side by side, padded at the right with positions of weight nothing."""

    ids: Tensor
    positions: Tensor
    answers: Tensor
    asked: Tensor
    real: Tensor


def draw_lesson(rng: random.Random, stage: Stage) -> Lesson:
    """A lesson of the difficulty of a stage."""
    count = rng.randint(1 if stage.single else 2, stage.most_facts)
    queries = 1 if rng.random() < stage.single else count
    invented = 0.3 if rng.random() < stage.odd else 0.0
    distractors = rng.randint(5, 60) if rng.random() < stage.long else None
    return lesson(rng, count, queries, invented, distractors)


def positions_of(rng: random.Random, text: str, starts: list[int], stretch: bool, room: int) -> list[int]:
    """Rotary positions of tokens starting at ``starts``: in turn, or skipping some after sentences, below ``room``."""
    left = rng.randint(0, room - len(starts)) if stretch and len(starts) < room else 0
    places, offset = [], 0
    for number, start in enumerate(starts):
        if left and start and text[start - 1] in ".?\n" and rng.random() < 0.3:
            skip = rng.randint(0, min(left, 200))
            offset, left = offset + skip, left - skip
        places.append(number + offset)
    return places


def inside(span: Span, offsets: list[Span]) -> list[int]:
    """The tokens that lie in a span."""
    return [place for place, (left, right) in enumerate(offsets) if span[0] <= left < right <= span[1]]


def samples_of(rng: random.Random, tokenizer: PreTrainedTokenizerFast, stage: Stage, count: int) -> list[Sample]:
    """Fresh lessons as tokens, each ending in ``</s>``."""
    lessons = [draw_lesson(rng, stage) for _ in range(count)]
    end, room = tokenizer.eos_token_id, tokenizer.model_max_length
    samples = []
    for one, code in zip(lessons, tokenizer.backend_tokenizer.encode_batch([one.text for one in lessons]), strict=True):
        answers, asked = [0] * (len(code.ids) + 1), [0] * (len(code.ids) + 1)
        for query, answer, style in zip(one.queries, one.answers, one.styles, strict=True):
            for place in inside(answer, code.offsets):
                answers[place] = ANSWERS[style]
            for place in inside(query, code.offsets):
                asked[place] = 1
        starts = [*(left for left, _ in code.offsets), len(one.text)]
        positions = positions_of(rng, one.text, starts, rng.random() < stage.stretch, room)
        samples.append(Sample([*code.ids, end], positions, answers, asked))
    return [sample for sample in samples if len(sample.ids) <= room]


def collate(samples: list[Sample], device: torch.device) -> Batch:
    """One batch of samples."""
    width = max(len(sample.ids) for sample in samples)
    ids, positions, answers, asked, real = (torch.zeros(len(samples), width, dtype=torch.long) for _ in range(5))
    for row, sample in enumerate(samples):
        size = len(sample.ids)
        ids[row, :size] = torch.tensor(sample.ids)
        positions[row, :size] = torch.tensor(sample.positions)
        answers[row, :size] = torch.tensor(sample.answers)
        asked[row, :size] = torch.tensor(sample.asked)
        real[row, :size] = 1
    return Batch(*(tensor.to(device) for tensor in (ids, positions, answers, asked, real)))


def batches(
    rng: random.Random, tokenizer: PreTrainedTokenizerFast, stage: Stage, tokens: int, device: torch.device
) -> Iterator[Batch]:
    """Endless batches of lessons of similar length, up to ``tokens`` tokens each."""
    while True:
        pool = sorted(samples_of(rng, tokenizer, stage, _POOL), key=lambda sample: len(sample.ids))
        groups: list[list[Sample]] = [[]]
        for sample in pool:
            if groups[-1] and (len(groups[-1]) + 1) * len(sample.ids) > tokens:
                groups.append([])
            groups[-1].append(sample)
        rng.shuffle(groups)
        for group in groups:
            yield collate(group, device)
