"""The pictures for the image-text model follow from their seeds, and each question has one answer in one cell."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from demo.shapes import BY_COLOUR, BY_KIND, COLOURS, GRID, KINDS, draw_scene, picture, questions
from demo.vision_heldout import PATH, held_out, read_cases, scene_of

ROWS: list[dict[str, Any]] = [json.loads(line) for line in PATH.read_text(encoding="utf-8").splitlines()]


def test_the_file_is_what_the_program_writes() -> None:
    assert [held_out(number) for number in range(100)] == ROWS


def test_a_seed_gives_the_same_picture_every_time() -> None:
    first, again = (picture(scene_of(ROWS[0]["seed"])) for _ in range(2))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != picture(scene_of(ROWS[1]["seed"])).tobytes()


def test_every_question_has_one_answer() -> None:
    """Among all shapes of the picture, exactly one fits the question, it stands in the cell, and it is the answer."""
    for row in ROWS:
        asked = next(word for word in (*KINDS, *COLOURS) if word in row["question"])
        fitting = [shape for shape in row["shapes"] if asked in shape[:2]]
        assert len(fitting) == 1
        assert fitting[0][2:] == row["cell"]
        assert row["answer"].strip() in fitting[0][:2]
        assert row["answer"].strip() != asked


def test_both_sides_and_all_words_are_asked_for() -> None:
    counts = Counter(row["answer"].strip() for row in ROWS)
    assert set(counts) == set(KINDS) | set(COLOURS)


def test_the_rect_is_the_cell() -> None:
    for row in ROWS:
        down, right = row["cell"]
        assert row["rect"]["top"] == pytest.approx(down / GRID, abs=1e-6)
        assert row["rect"]["left"] == pytest.approx(right / GRID, abs=1e-6)
        assert row["rect"]["width"] == row["rect"]["height"] == pytest.approx(1 / GRID, abs=1e-6)


@pytest.mark.parametrize("size", [96, 192])
def test_a_shape_is_painted_inside_its_cell(size: int) -> None:
    """Two scenes that differ in one shape only differ nowhere but in its cell."""
    for case in read_cases(PATH)[:20]:
        shape = case.question.shape
        others = tuple(other for other in case.scene.shapes if other != shape)
        without = type(case.scene)(**(vars(case.scene) | {"shapes": others}))
        with_it, bare = (np.asarray(picture(scene, size)).astype(int) for scene in (case.scene, without))
        rows, columns = np.nonzero((with_it != bare).any(-1))
        cell = size / GRID
        assert rows.min() >= shape.row * cell - 1 and rows.max() <= (shape.row + 1) * cell
        assert columns.min() >= shape.column * cell - 1 and columns.max() <= (shape.column + 1) * cell
        assert len(rows) > 0.15 * cell * cell


def test_shapes_and_marks_have_cells_of_their_own() -> None:
    for seed in range(200):
        scene = draw_scene(random.Random(seed))  # noqa: S311
        cells = [(thing.row, thing.column) for thing in (*scene.shapes, *scene.marks)]
        assert len(set(cells)) == len(cells)


def test_each_askable_shape_is_asked_about() -> None:
    rng = random.Random(3)  # noqa: S311
    scene = draw_scene(rng)
    kinds, colours = (Counter(getattr(shape, by) for shape in scene.shapes) for by in ("kind", "colour"))
    found = questions(rng, scene)
    assert len(found) == sum(count == 1 for count in (*kinds.values(), *colours.values()))


def test_wordings_have_one_place_each() -> None:
    assert all(wording.count("{}") == 1 for wording in (*BY_KIND, *BY_COLOUR))


def test_the_example_is_a_small_picture() -> None:
    path = Path(PATH).with_name("shapes_example.png")
    assert path.stat().st_size <= 5 * 1024
    with Image.open(path) as image:
        assert image.size == (192, 192)
