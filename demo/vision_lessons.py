"""Lessons for ``demo-vision`` as batches: pictures, and several questions after each that do not see one another.

A row is ``<s>``, the picture tokens and then every question with its answer, one after another. The mask lets each
question see the picture and itself, and positions start anew behind the picture, so every question is read exactly as
if it stood there alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaProcessor

from demo.shapes import BARE, COLOURS, GRID, KINDS, Question, Scene, draw_scene, picture, questions
from demo.vision_model import PATCHES

HIDDEN: Final = -1e9
_SIZES: Final = (96, 96, 144, 192, 192, 256)


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum: scenes of some shapes; it ends after ``steps``, or once ``enough`` is right.

    ``bare`` is the share of pictures about which is asked in the fewest words: "The circle", and the colour follows;
    ``smoothing`` is that of the labels.
    """

    name: str
    fewest_shapes: int
    most_shapes: int
    steps: int
    enough: float
    bare: float = 0.0
    smoothing: float = 0.05


@dataclass(frozen=True)
class Batch:
    """Rows of tokens, their positions, who sees whom, the answer tokens (1 by kind, 2 by colour, 3 the end), pixels."""

    ids: Tensor  # (B, S)
    positions: Tensor  # (B, S)
    mask: Tensor  # (B, 1, S, S), added to attention scores
    answers: Tensor  # (B, S)
    pixels: Tensor  # (B, 3, y, x)
    shown: Tensor  # (B, patches, 2), kind and colour of what a patch's cell holds, counted from 1, or 0
    kinds: list[int]  # the tokens of the words for the kinds
    colours: list[int]


def prefix(processor: LlavaProcessor) -> list[int]:
    """The tokens before every question: ``<s>`` and one placeholder per patch."""
    return [processor.tokenizer.bos_token_id, *[processor.image_token_id] * (PATCHES * PATCHES)]


def encode(processor: LlavaProcessor, text: str) -> list[int]:
    """The tokens of one prompt item or target, taken alone."""
    ids: list[int] = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def shown_in(scene: Scene) -> Tensor:
    """Kind and colour in the cell that each patch belongs to, top row first."""
    cells = torch.zeros(GRID, GRID, 2, dtype=torch.long)
    for shape in scene.shapes:
        kind, colour = KINDS.index(shape.kind) + 1, tuple(COLOURS).index(shape.colour) + 1
        cells[shape.row, shape.column] = torch.tensor([kind, colour])
    side = PATCHES // GRID
    return cells.repeat_interleave(side, 0).repeat_interleave(side, 1).flatten(0, 1)


def collate(
    processor: LlavaProcessor, scenes: list[Scene], rows: list[list[Question]], images: list[Image.Image]
) -> Batch:
    """One batch of pictures and the questions after each."""
    head, end = prefix(processor), processor.tokenizer.eos_token_id
    parts = [[(encode(processor, q.text), encode(processor, q.answer), q.about) for q in row] for row in rows]
    longest = max(sum(len(asked) + len(answer) + 1 for asked, answer, _ in row) for row in parts)
    count, start, width = len(rows), len(head), len(head) + longest
    ids = torch.full((count, width), end)
    ids[:, :start] = torch.tensor(head)
    positions = torch.arange(width).clamp(max=start).repeat(count, 1)
    answers = torch.zeros(count, width, dtype=torch.long)
    block = torch.zeros(count, width, dtype=torch.long)  # which question a token belongs to; 0 is the picture
    for row, asked in enumerate(parts):
        place = start
        for number, (question, answer, about) in enumerate(asked, start=1):
            size = len(question) + len(answer) + 1
            span = slice(place, place + size)
            ids[row, span] = torch.tensor([*question, *answer, end])
            positions[row, span] = start + torch.arange(size)
            answers[row, place + len(question) : place + size - 1] = 1 if about == "kind" else 2
            answers[row, place + size - 1] = 3
            block[row, span] = number
            place += size
        block[row, place:] = len(asked) + 1
    sees = (block[:, None, :] == 0) | (block[:, None, :] == block[:, :, None])
    sees &= torch.ones(width, width, dtype=torch.bool).tril()
    pixels = processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
    kinds, colours = ([encode(processor, f" {word}")[0] for word in words] for words in (KINDS, COLOURS))
    shown = torch.stack([shown_in(scene) for scene in scenes])
    return Batch(ids, positions, torch.where(sees, 0.0, HIDDEN)[:, None], answers, pixels, shown, kinds, colours)


def batches(rng: random.Random, processor: LlavaProcessor, stage: Stage, pictures: int, most: int) -> Iterator[Batch]:
    """Endless batches of ``pictures`` fresh scenes with up to ``most`` questions each."""
    while True:
        scenes = [draw_scene(rng, stage.fewest_shapes, stage.most_shapes) for _ in range(pictures)]
        images = [picture(scene, rng.choice(_SIZES)) for scene in scenes]
        asked = []
        for scene in scenes:
            found = questions(rng, scene, BARE, BARE) if rng.random() < stage.bare else questions(rng, scene)
            asked.append(rng.sample(found, min(most, len(found))))
        yield collate(processor, scenes, asked, images)
