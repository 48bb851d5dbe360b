"""The shipped image-text model does what its card says, as seen through the server's own engine."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from demo.shapes import picture
from demo.vision_heldout import EXAMPLE, PATH, Case, read_cases
from explainers.image_text_model import ImageTextModel
from explainers.loaders import load_image_text_lm
from explainers.methods.atman import attribute
from explainers.types import AtmanConfig, Attribution, Image, Text, Tile

CASES = read_cases(PATH)


@pytest.fixture(scope="module")
def demo_vision() -> ImageTextModel:
    return load_image_text_lm(Path(__file__).parents[1] / "demo" / "models" / "demo-vision")


@pytest.fixture(scope="module")
def explained(demo_vision: ImageTextModel) -> list[Attribution]:
    """One tile per cell of the picture."""
    return [
        attribute(demo_vision, (Image(file(case)), Text(case.question.text)), case.question.answer, config())
        for case in CASES
    ]


def config() -> AtmanConfig:
    return AtmanConfig(granularity="word")


def file(case: Case) -> bytes:
    buffer = BytesIO()
    picture(case.scene).save(buffer, "PNG")
    return buffer.getvalue()


def of_tiles(attribution: Attribution) -> list[tuple[Tile, float]]:
    scored = zip(attribution.features, attribution.values[0].tolist(), strict=True)
    return [(feature.place, score) for feature, score in scored if isinstance(feature.place, Tile)]


def is_decisive(tile: Tile, case: Case) -> bool:
    """Whether a tile is the cell of the shape that was asked about."""
    cell = case.question.rect
    return abs(tile.left - cell["left"]) < 1e-5 and abs(tile.top - cell["top"]) < 1e-5


def test_there_are_a_hundred_pictures() -> None:
    assert len(CASES) == 100
    assert {case.question.about for case in CASES} == {"kind", "colour"}


def test_the_model_answers_right(explained: list[Attribution]) -> None:
    """The whole right answer is more likely than everything else together."""
    likely = [found.base_values is not None and found.base_values[0] > np.log(0.5) for found in explained]
    assert sum(likely) >= 95


def test_the_decisive_tile_comes_first(explained: list[Attribution]) -> None:
    """Of all 36 tiles of the picture."""
    first = []
    for case, attribution in zip(CASES, explained, strict=True):
        tiles = of_tiles(attribution)
        assert len(tiles) == 36
        first.append(is_decisive(max(tiles, key=lambda scored: scored[1])[0], case))
    assert sum(first) >= 95


def test_tiles_that_do_not_matter_score_about_nothing(explained: list[Attribution]) -> None:
    others = [
        abs(score)
        for case, attribution in zip(CASES, explained, strict=True)
        for tile, score in of_tiles(attribution)
        if not is_decisive(tile, case)
    ]
    assert np.median(others) < 0.02


def test_the_example_of_the_readme(demo_vision: ImageTextModel) -> None:
    """The picture that ships as a file is the first of the hundred, without its noise."""
    row = json.loads(PATH.read_text(encoding="utf-8").splitlines()[0])
    prompt = (Image(EXAMPLE.read_bytes()), Text(row["question"]))
    found = attribute(demo_vision, prompt, row["answer"], config())
    best = max(of_tiles(found), key=lambda scored: scored[1])[0]
    assert is_decisive(best, CASES[0])
