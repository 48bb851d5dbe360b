"""What image prompts mean, spelled out: ids, pixels and factors, with nothing of the package but its item types.

Areas are fractions, so that nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from explainers.image_text_model import ImageTextModel
from explainers.types import Control, Image, Prompt, Text, Tile, TokenIds
from tests import tiny_models

Place = tuple[Fraction, Fraction, Fraction, Fraction]  # left, top, right, bottom
IDEFICS = ("idefics3", "smolvlm")


def png(width: int, height: int, seed: int) -> bytes:
    """A picture of noise."""
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return encoded(Pillow.fromarray(levels))


def encoded(picture: Pillow.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def picture_of(image: Image) -> Pillow.Image:
    return Pillow.open(BytesIO(image.data)).convert("RGB")


def grid_of(family: str, image: Image) -> tuple[int, int]:
    """Rows and columns of visual tokens: 24 / 4 patches of LLaVA, 32 / 4 / 2 of Idefics3, what fits for Qwen."""
    if family == "llava":
        return 6, 6
    if family in IDEFICS:
        return 4, 4
    picture = picture_of(image)
    height, width = smart_resize(picture.height, picture.width, 8, 512, 4096)
    return height // 8, width // 8


def marks_of(family: str) -> tuple[list[int], list[int]]:
    if family == "llava":
        return [], []
    return ([299, 300], [299]) if family in IDEFICS else ([303], [304])


def pixels(family: str, images: Sequence[Image], ids: Sequence[int]) -> dict[str, torch.Tensor]:
    """What the library's own processor makes of the whole images, as arguments of the network's forward method."""
    processor: Any = tiny_models.IMAGE_FAMILIES[family][1]
    pictures = [picture_of(image) for image in images]
    if family == "llava":
        size = {"height": 24, "width": 24}
        return dict(processor(images=pictures, size=size, do_center_crop=False, return_tensors="pt"))
    if family in IDEFICS:
        squares = [[picture.resize((32, 32), Pillow.Resampling.LANCZOS) for picture in pictures]]
        return dict(processor(images=squares, do_resize=False, do_image_splitting=False,
                              max_image_size={"longest_edge": 32}, return_tensors="pt"))  # fmt: skip
    found = dict(processor(images=pictures, return_tensors="pt"))
    return found | {"mm_token_type_ids": (torch.tensor([ids]) == 301).int()}


@dataclass
class Column:
    token: int
    item: int | None = None
    area: Place | None = None


def columns_of(model: ImageTextModel, family: str, prompt: Prompt, target: str) -> list[Column]:
    """Start token, prompt and the target without its last token; texts without their characters' places."""
    found = [Column(token) for token in model.start]
    for item, part in enumerate(prompt):
        if isinstance(part, Image):
            before, after = marks_of(family)
            rows, columns = grid_of(family, part)
            found += [Column(token, item) for token in before]
            found += [
                Column(301 if "qwen" in family else 298, item, cell(row, column, rows, columns))
                for row in range(rows)
                for column in range(columns)
            ]
            found += [Column(token, item) for token in after]
        else:
            ids = part.ids if isinstance(part, TokenIds) else text_ids(model, part.data)
            found += [Column(token, item) for token in ids]
    return found + [Column(token) for token in text_ids(model, target)[:-1]]


def text_ids(model: ImageTextModel, text: str) -> list[int]:
    return list(model.tokenizer.encode(text, add_special_tokens=False).ids)


def cell(row: int, column: int, rows: int, columns: int) -> Place:
    return (Fraction(column, columns), Fraction(row, rows), Fraction(column + 1, columns), Fraction(row + 1, rows))


@cache
def place_of(tile: Tile) -> Place:
    """The rectangle that the decimal numbers mean."""
    left, top, width, height = (
        Fraction(side).limit_denominator(10_000) for side in (tile.left, tile.top, tile.width, tile.height)
    )
    return left, top, left + width, top + height


@cache
def share(area: Place, tile: Place) -> Fraction:
    width = min(area[2], tile[2]) - max(area[0], tile[0])
    height = min(area[3], tile[3]) - max(area[1], tile[1])
    if width <= 0 or height <= 0:
        return Fraction(0)
    return width * height / ((area[2] - area[0]) * (area[3] - area[1]))


def factors(columns: Sequence[Column], controls: Sequence[tuple[int, Control]], overlap: str) -> NDArray[np.float64]:
    """Factors of image columns under rectangles on images; all of them multiply."""
    found = []
    for column in columns:
        factor = 1.0
        for item, control in controls:
            if column.item == item and column.area is not None and isinstance(control.place, Tile):
                inside = share(column.area, place_of(control.place))
                if inside and (control.overlap or overlap) == "complete":
                    factor *= control.factor
                else:
                    factor *= 1 + (control.factor - 1) * float(inside)
        found.append(factor)
    return np.array(found)


def own_controls(prompt: Prompt) -> list[tuple[int, Control]]:
    return [(item, control) for item, part in enumerate(prompt) for control in part.controls]


def images_of(prompt: Prompt) -> list[Image]:
    return [part for part in prompt if isinstance(part, Image)]


QUESTION = Text("Anna lives in")
"""A text to stand behind an image."""
