"""From an RGB picture to what a vision tower reads, and where in the picture each visual token lies.

The whole picture is always resized to the model's input, never cropped, padded or cut into sub-images, whatever the
model's own image processor would do: a score then has an exact place, and no part of the picture is out of sight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from explainers.errors import InvalidRequest, MissingCapability
from explainers.types import Tile

if TYPE_CHECKING:  # the engine of text alone does without Pillow
    from PIL.Image import Image


BICUBIC = 3
"""Pillow's name for it; what it takes when not told."""


@dataclass(eq=False, slots=True)
class Picture:
    """One image of a prompt, as the model's own processor hands it to the vision tower."""

    arguments: Mapping[str, Tensor]  # of the network's get_image_features
    areas: tuple[Tile | None, ...]  # one per token of the image; None for marks around it
    notes: tuple[str, ...] = ()
    features: Tensor | None = None
    """What the vision tower made of it, once it was asked."""

    def __reduce__(self) -> tuple[Any, ...]:
        """It travels as it was before: its features lie on a device, and can be had again."""
        return Picture, (dict(self.arguments), self.areas, self.notes)


def grid(rows: int, columns: int) -> tuple[Tile, ...]:
    """Rectangles of equal size, row by row from the top left; the last ones end at exactly 1."""
    return tuple(Tile(left, top, width, height) for top, height in _divided(rows) for left, width in _divided(columns))


def _divided(parts: int) -> list[tuple[float, float]]:
    """Start and length of each part of 0..1; lengths are not rounded down, so that whole pixels stay whole."""
    starts = [part / parts for part in range(parts)]
    return [*((start, 1 / parts) for start in starts[:-1]), (starts[-1], 1 - starts[-1])]


@dataclass(frozen=True, slots=True)
class Eyes:
    """How a model sees: its image processor, and the family's way from pixels to a grid of tokens."""

    processor: Any  # an image processor of transformers, on PIL
    config: Any  # of the whole network
    family: Family

    def read(self, picture: Image, before: int, after: int, notes: tuple[str, ...] = ()) -> Picture:
        """`before` and `after`: how many tokens mark the start and the end of an image."""
        arguments, rows, columns = self.family.read(self, picture)
        areas: tuple[Tile | None, ...] = (*(None,) * before, *grid(rows, columns), *(None,) * after)
        return Picture(arguments, areas, notes)


@dataclass(frozen=True, slots=True)
class Family:
    """What sets the image-text models of one architecture apart."""

    read: Callable[[Eyes, Image], tuple[dict[str, Tensor], int, int]]
    """Arguments of get_image_features, rows and columns of the visual tokens."""
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    """Pieces of text between which the model expects an image."""


def _clip_patches(eyes: Eyes, picture: Image) -> tuple[dict[str, Tensor], int, int]:
    """A square of patches, one token each (LLaVA)."""
    vision = eyes.config.vision_config
    side = vision.image_size // vision.patch_size
    return _pixels(eyes, picture, vision.image_size, do_center_crop=False, do_pad=False), side, side


def _shuffled_patches(eyes: Eyes, picture: Image) -> tuple[dict[str, Tensor], int, int]:
    """A square of patches, of which scale x scale make one token (Idefics3, SmolVLM); no sub-images."""
    vision = eyes.config.vision_config
    side = vision.image_size // vision.patch_size // eyes.config.scale_factor
    limit = {"longest_edge": vision.image_size}
    options = {"do_image_splitting": False, "max_image_size": limit, "do_pad": True}
    return _pixels(eyes, picture, vision.image_size, **options), side, side


def _pixels(eyes: Eyes, picture: Image, side: int, **options: Any) -> dict[str, Tensor]:
    """The whole picture as a square of `side` pixels, in the numbers the vision tower was trained on."""
    resampling = getattr(eyes.processor, "resample", None)
    square = picture.resize((side, side), BICUBIC if resampling is None else int(resampling))
    found = eyes.processor(images=square, do_resize=False, return_tensors="pt", **options)
    if tuple(found["pixel_values"].shape[-2:]) != (side, side):
        raise MissingCapability("the model's image processor does not keep the whole picture")
    return dict(found)


def _merged_patches(eyes: Eyes, picture: Image) -> tuple[dict[str, Tensor], int, int]:
    """As many patches as the picture has room for, of which merge x merge make one token (Qwen2-VL and later)."""
    try:
        found = eyes.processor(images=picture, return_tensors="pt")
    except ValueError as error:
        raise InvalidRequest("the image is too long and narrow for this model") from error
    merge = eyes.config.vision_config.spatial_merge_size
    frames, rows, columns = found["image_grid_thw"][0].tolist()
    if frames != 1:
        raise MissingCapability("the model's image processor makes several frames of one image")
    return dict(found), rows // merge, columns // merge


_IDEFICS = Family(
    _shuffled_patches, before=("<fake_token_around_image>", "<global-img>"), after=("<fake_token_around_image>",)
)
_QWEN = Family(_merged_patches, before=("<|vision_start|>",), after=("<|vision_end|>",))

FAMILIES: Mapping[str, Family] = {
    "llava": Family(_clip_patches),
    "idefics3": _IDEFICS,
    "smolvlm": _IDEFICS,
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
}
"""Model type -> how it sees."""

REFUSED: Mapping[str, str] = {
    "mllama": "images are read by cross-attention, outside the sequence",
    "idefics": "images are read by cross-attention, outside the sequence",
    "idefics2": "a resampler leaves no grid of visual tokens",
    "blip-2": "a resampler leaves no grid of visual tokens",
    "instructblip": "a resampler leaves no grid of visual tokens",
    "gemma3": "visual tokens see later ones, so rows cannot be reused",
    "paligemma": "prompt tokens see later ones, so rows cannot be reused",
}
"""Model type -> why not."""


def family(config: Mapping[str, Any]) -> Family:
    """By a model's config.json; raises MissingCapability, with the reason, where visual tokens have no known places."""
    kind = str(config.get("model_type"))
    if kind not in FAMILIES:
        why = REFUSED.get(kind, f"where its visual tokens lie is known only for {', '.join(FAMILIES)}")
        raise MissingCapability(f"images of architecture {kind} cannot be explained: {why}")
    tower = config["vision_config"].get("model_type", "clip_vision_model")
    if kind == "llava" and tower not in ("clip_vision_model", "siglip_vision_model"):
        raise MissingCapability(f"a LLaVA with the vision tower {tower} cannot be explained: its grid is not known")
    return FAMILIES[kind]


def same_dtype(arguments: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """On the model's device, and floating point numbers in its dtype."""
    return {
        name: tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)
        for name, tensor in arguments.items()
    }
