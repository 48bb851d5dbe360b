"""Pictures of coloured shapes, drawn by code, and questions whose answer lies in one known place.

A scene is a grid of 6 x 6 cells. A few cells hold a shape each, some hold a grey mark that is no shape, the rest are
empty. Kinds and colours are drawn at random, so only the cell of the shape that a question is about tells the answer:

    What colour is the circle?    -> " red"       asked only when there is one circle
    What shape is the red one?    -> " circle"    asked only when one shape is red

A scene follows from its seed, and its picture from the scene, noise included.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

GRID: Final = 6
SIZE: Final = 192
COLOURS: Final = {
    "red": (215, 35, 40),
    "green": (30, 150, 50),
    "blue": (35, 70, 210),
    "yellow": (240, 220, 40),
    "orange": (245, 135, 25),
    "purple": (125, 45, 160),
    "pink": (250, 150, 195),
    "cyan": (60, 205, 220),
}
KINDS: Final = ("circle", "square", "triangle", "diamond", "cross", "ring", "star")
BY_KIND: Final = (
    "What colour is the {}?",
    "What color is the {}?",
    "Which colour is the {}?",
    "Which color is the {}?",
    "What is the colour of the {}?",
    "What is the color of the {}?",
    "Which colour does the {} have?",
    "The colour of the {} is",
    "The {} is",
)
BY_COLOUR: Final = (
    "What shape is the {} one?",
    "Which shape is {}?",
    "What is the {} shape?",
    "What is the shape of the {} one?",
    "The {} shape is a",
    "The {} one is a",
)

BARE: Final = ("The {}",)

Colour = tuple[int, int, int]
Point = tuple[float, float]


@dataclass(frozen=True)
class Shape:
    """One coloured shape: its cell, and centre and half width as fractions of the cell."""

    kind: str
    colour: str
    row: int
    column: int
    paint: Colour
    centre: Point
    reach: float


@dataclass(frozen=True)
class Mark:
    """A grey dot or stroke that nothing is asked about, from one point of a cell to another."""

    row: int
    column: int
    grey: int
    start: Point
    stop: Point


@dataclass(frozen=True)
class Scene:
    """What is to be seen, and the light it is seen in: left to right and top to bottom, in levels of 255."""

    shapes: tuple[Shape, ...]
    marks: tuple[Mark, ...]
    ground: Colour
    light: Point
    noise: int
    noise_seed: int


@dataclass(frozen=True)
class Question:
    """A question about one shape, and the answer with the space before it."""

    text: str
    answer: str
    shape: Shape
    about: str

    @property
    def rect(self) -> dict[str, float]:
        """The decisive cell in fractions of the image."""
        left, top = self.shape.column / GRID, self.shape.row / GRID
        return {"left": left, "top": top, "width": 1 / GRID, "height": 1 / GRID}


def draw_shape(rng: random.Random, cell: int) -> Shape:
    """A shape of random kind, colour, shade, place and size within its cell."""
    colour = rng.choice(tuple(COLOURS))
    red, green, blue = (max(0, min(255, part + rng.randint(-12, 12))) for part in COLOURS[colour])
    reach = rng.uniform(0.36, 0.46)
    room = 0.48 - reach
    centre = (0.5 + rng.uniform(-room, room), 0.5 + rng.uniform(-room, room))
    return Shape(rng.choice(KINDS), colour, cell // GRID, cell % GRID, (red, green, blue), centre, reach)


def draw_mark(rng: random.Random, cell: int) -> Mark:
    """A dot or a short stroke in a light or dark grey."""
    start = (rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8))
    stop = start if rng.random() < 0.4 else (rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9))
    return Mark(cell // GRID, cell % GRID, rng.choice((40, 70, 200, 235)), start, stop)


def draw_scene(rng: random.Random, fewest: int = 3, most: int = 9) -> Scene:
    """``fewest`` to ``most`` shapes, of which at least one can be asked about, and up to five marks."""
    cells = rng.sample(range(GRID * GRID), most + 5)
    while True:
        shapes = tuple(draw_shape(rng, cell) for cell in cells[: rng.randint(fewest, most)])
        if unique(shapes, "kind") or unique(shapes, "colour"):
            break
    marks = tuple(draw_mark(rng, cell) for cell in cells[most : most + rng.randint(0, 5)])
    level = rng.randint(95, 165)
    red, green, blue = (level + rng.randint(-10, 10) for _ in range(3))
    light = (rng.uniform(-25, 25), rng.uniform(-25, 25))
    return Scene(shapes, marks, (red, green, blue), light, rng.randint(0, 18), rng.getrandbits(32))


def unique(shapes: tuple[Shape, ...], by: str) -> tuple[Shape, ...]:
    """The shapes that no other one shares its kind (or colour) with."""
    counts = Counter(getattr(shape, by) for shape in shapes)
    return tuple(shape for shape in shapes if counts[getattr(shape, by)] == 1)


def questions(
    rng: random.Random, scene: Scene, by_kind: tuple[str, ...] = BY_KIND, by_colour: tuple[str, ...] = BY_COLOUR
) -> list[Question]:
    """One question per shape and side it can be asked by, in a wording drawn at random."""
    found = [
        Question(rng.choice(by_kind).format(shape.kind), f" {shape.colour}", shape, "kind")
        for shape in unique(scene.shapes, "kind")
    ]
    found += [
        Question(rng.choice(by_colour).format(shape.colour), f" {shape.kind}", shape, "colour")
        for shape in unique(scene.shapes, "colour")
    ]
    return found


def outline(kind: str) -> list[Point]:
    """The corners of a kind of straight lines, in a square from -1 to 1, y downwards."""
    arm = 0.36
    if kind == "star":
        turns = [(math.pi * step / 5, 1.08 if step % 2 == 0 else 0.45) for step in range(10)]
        return [(reach * math.sin(turn), 0.06 - reach * math.cos(turn)) for turn, reach in turns]
    corners = {
        "square": [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
        "triangle": [(0.0, -0.95), (1.0, 0.9), (-1.0, 0.9)],
        "diamond": [(0.0, -1.0), (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0)],
        "cross": [(-arm, -1.0), (arm, -1.0), (arm, -arm), (1.0, -arm), (1.0, arm), (arm, arm)],
    }[kind]
    return corners + [(-x, -y) for x, y in corners] if kind == "cross" else corners


def paint_shape(canvas: ImageDraw.ImageDraw, shape: Shape, cell: float) -> None:
    """Draw a shape on a picture whose cells measure ``cell`` pixels."""
    x, y = (shape.column + shape.centre[0]) * cell, (shape.row + shape.centre[1]) * cell
    reach = shape.reach * cell
    box = (x - reach, y - reach, x + reach, y + reach)
    if shape.kind == "circle":
        canvas.ellipse(box, fill=shape.paint)
    elif shape.kind == "ring":
        canvas.ellipse(box, outline=shape.paint, width=max(1, round(0.4 * reach)))
    else:
        canvas.polygon([(x + reach * dx, y + reach * dy) for dx, dy in outline(shape.kind)], fill=shape.paint)


def paint_mark(canvas: ImageDraw.ImageDraw, mark: Mark, cell: float) -> None:
    """Draw a stroke, or a dot where it is nothing long."""
    ends = [((mark.column + x) * cell, (mark.row + y) * cell) for x, y in (mark.start, mark.stop)]
    grey = (mark.grey,) * 3
    if mark.start != mark.stop:
        canvas.line(ends, fill=grey, width=max(1, round(0.07 * cell)))
        return
    (x, y), reach = ends[0], 0.09 * cell
    canvas.ellipse((x - reach, y - reach, x + reach, y + reach), fill=grey)


def picture(scene: Scene, size: int = SIZE) -> Image.Image:
    """The scene as an RGB picture of ``size`` x ``size`` pixels, with its light and noise."""
    image = Image.new("RGB", (size, size), scene.ground)
    canvas = ImageDraw.Draw(image)
    for mark in scene.marks:
        paint_mark(canvas, mark, size / GRID)
    for shape in scene.shapes:
        paint_shape(canvas, shape, size / GRID)
    levels = np.asarray(image).astype(np.float32)  # (y, x, 3)
    slope = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    levels += (scene.light[0] * slope[None, :] + scene.light[1] * slope[:, None])[..., None]
    grain = np.frombuffer(random.Random(scene.noise_seed).randbytes(levels.size), dtype=np.uint8)  # noqa: S311
    levels += (grain.reshape(levels.shape) / np.float32(127.5) - 1) * np.float32(scene.noise)
    return Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))
