"""Measures ``demo-vision``: ``python -m demo.evaluate_vision --model demo/models/demo-vision``.

Prints the share of right answers on held-out pictures, by what is asked and by the number of shapes, and how often
damping the attention to each tile of the picture in turn (0.1 of its weight before renormalising, in every layer and
head of the language model) finds the decisive cell first. Each tile costs a whole pass with the family's own attention
in plain arithmetic: slow, and independent of the server's engine.
"""

from __future__ import annotations

import argparse
import math
import random
from collections import defaultdict
from pathlib import Path
from typing import Final

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaProcessor, PreTrainedModel

from demo.shapes import GRID, Question, draw_scene, picture, questions
from demo.vision_heldout import PATH, Case, read_cases
from demo.vision_lessons import encode, prefix
from demo.vision_model import PATCHES

DAMPING: Final = 0.1
TILINGS: Final = (3, 6, 12)


@torch.no_grad()
def answer_scores(
    model: PreTrainedModel, processor: LlavaProcessor, image: Image.Image, question: Question, damped: list[list[int]]
) -> tuple[bool, Tensor]:
    """Whether the answer is the most likely one, and its log-probability: undamped, then with each set damped."""
    head, asked, answer = prefix(processor), encode(processor, question.text), encode(processor, question.answer)
    ids = torch.tensor([[*head, *asked, *answer]])
    pixels = processor.image_processor(images=image, return_tensors="pt")["pixel_values"]
    masks = damped_masks(ids.size(1), [[], *damped])
    rows = len(masks)
    logits = model(
        input_ids=ids.expand(rows, -1), pixel_values=pixels.expand(rows, -1, -1, -1), attention_mask=masks
    ).logits[:, -len(answer) - 1 : -1]
    wanted = torch.tensor(answer)
    right = bool((logits[0].argmax(-1) == wanted).all())
    likely = logits.double().log_softmax(-1).gather(-1, wanted.expand(rows, -1)[..., None])
    return right, likely[..., 0].sum(-1)


def damped_masks(length: int, columns: list[list[int]]) -> Tensor:
    """Causal masks to add to the attention scores, one per tile, with the columns of that tile damped."""
    lowest = torch.finfo(torch.float32).min
    masks = torch.full((length, length), lowest).triu(1).repeat(len(columns), 1, 1, 1)
    for row, damped in enumerate(columns):
        masks[row, :, :, damped] += math.log(DAMPING)
    return masks.clamp(min=lowest)


def tile_columns(tiling: int) -> list[list[int]]:
    """For each tile, top row first: the places of its picture tokens in the prompt."""
    tiles: list[list[int]] = [[] for _ in range(tiling * tiling)]
    for patch in range(PATCHES * PATCHES):
        row, column = patch // PATCHES * tiling // PATCHES, patch % PATCHES * tiling // PATCHES
        tiles[row * tiling + column].append(1 + patch)
    return tiles


def covers(tile: int, cell: int, tiling: int) -> bool:
    """Whether a row (or column) of tiles shares area with a row (or column) of cells."""
    return tile * GRID < (cell + 1) * tiling and cell * tiling < (tile + 1) * GRID


def decisive_tiles(question: Question, tiling: int) -> set[int]:
    """The tiles that share area with the decisive cell."""
    shape = question.shape
    rows = [tile for tile in range(tiling) if covers(tile, shape.row, tiling)]
    columns = [tile for tile in range(tiling) if covers(tile, shape.column, tiling)]
    return {row * tiling + column for row in rows for column in columns}


def fresh_cases(count: int, seed: int) -> list[Case]:
    """Held-out questions, one per picture, of training's kind."""
    rng, cases = random.Random(f"held out {seed}"), []  # noqa: S311
    for _ in range(count):
        scene = draw_scene(rng)
        cases.append(Case(scene, rng.choice(questions(rng, scene))))
    return cases


def accuracy(model: PreTrainedModel, processor: LlavaProcessor, cases: list[Case]) -> dict[str, tuple[int, int]]:
    """Right answers and questions, over all and by what is asked and the number of shapes."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for case in cases:
        right, _ = answer_scores(model, processor, picture(case.scene), case.question, [])
        for group in ("all", f"by {case.question.about}", f"shapes {len(case.scene.shapes)}"):
            counts[group][0] += right
            counts[group][1] += 1
    return {group: (right, total) for group, (right, total) in sorted(counts.items())}


def report_tiles(model: PreTrainedModel, processor: LlavaProcessor, cases: list[Case], tiling: int) -> None:
    """Print how often the decisive tile drops the answer most, and by how much it and the others do."""
    found, own, others = 0, [], []
    for case in cases:
        _, scores = answer_scores(model, processor, picture(case.scene), case.question, tile_columns(tiling))
        drops = scores[0] - scores[1:]
        decisive = decisive_tiles(case.question, tiling)
        found += int(drops.argmax().item()) in decisive
        own.append(max(float(drops[tile]) for tile in decisive))
        others += [abs(float(drop)) for tile, drop in enumerate(drops) if tile not in decisive]
    own.sort()
    others.sort()
    print(
        f"{tiling:2d} x {tiling:2d} tiles: decisive first in {found} of {len(cases)}; its drop: median "
        f"{own[len(own) // 2]:.4f}, tenth percentile {own[len(own) // 10]:.4f}, least {own[0]:.6f}; others': median "
        f"{others[len(others) // 2]:.5f}, 99th percentile {others[len(others) * 99 // 100]:.4f}",
        flush=True,
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path(__file__).parent / "models" / "demo-vision")
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    processor: LlavaProcessor = AutoProcessor.from_pretrained(arguments.model)  # type: ignore[no-untyped-call]
    model = AutoModelForImageTextToText.from_pretrained(arguments.model, attn_implementation="eager")
    for group, (right, total) in accuracy(model, processor, fresh_cases(arguments.questions, arguments.seed)).items():
        print(f"{group:16s} {right:5d} of {total:5d} right  {100 * right / total:6.2f} %", flush=True)
    fresh = fresh_cases(100, arguments.seed + 1)
    for name, cases, tilings in (("file", read_cases(PATH), TILINGS), ("fresh", fresh, TILINGS[:2])):
        right, total = accuracy(model, processor, cases)["all"]
        print(f"{name}: {right} of {total} right")
        for tiling in tilings:
            report_tiles(model, processor, cases, tiling)


if __name__ == "__main__":
    main()
