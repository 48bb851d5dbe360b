"""Writes ``demo/data/shapes_heldout.jsonl``: ``python -m demo.vision_heldout``.

A hundred held-out pictures with 4 to 9 shapes, each as the seed it is drawn from, with one question, its answer and
the cell the answer lies in (``rect`` in fractions of the picture). The shapes are listed to be read, not to draw from.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from demo.shapes import BY_COLOUR, BY_KIND, Question, Scene, draw_scene, picture, questions

PATH: Final = Path(__file__).parent / "data" / "shapes_heldout.jsonl"
EXAMPLE: Final = PATH.with_name("shapes_example.png")


@dataclass(frozen=True)
class Case:
    """A scene and one question about it."""

    scene: Scene
    question: Question


def scene_of(seed: str) -> Scene:
    """The held-out scene of a seed."""
    return draw_scene(random.Random(seed), fewest=4)  # noqa: S311


def held_out(number: int) -> dict[str, Any]:
    """One row of the file; two questions in three ask for the colour of a kind."""
    seed = f"held-out picture {number}"
    scene = scene_of(seed)
    rng = random.Random(f"question {number}")  # noqa: S311
    asked = questions(rng, scene, BY_KIND[:1], BY_COLOUR[:1])
    about = "colour" if number % 3 == 2 else "kind"
    question = rng.choice([one for one in asked if one.about == about] or asked)
    rect = {side: round(value, 6) for side, value in question.rect.items()}
    shapes = [[shape.kind, shape.colour, shape.row, shape.column] for shape in scene.shapes]
    fields = {"seed": seed, "question": question.text, "answer": question.answer}
    return fields | {"cell": [question.shape.row, question.shape.column], "rect": rect, "shapes": shapes}


def read_cases(path: Path) -> list[Case]:
    """The rows of a file as scenes and questions."""
    cases = []
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        scene = scene_of(row["seed"])
        shape = next(shape for shape in scene.shapes if [shape.row, shape.column] == row["cell"])
        about = "kind" if row["answer"] == f" {shape.colour}" else "colour"
        cases.append(Case(scene, Question(row["question"], row["answer"], shape, about)))
    return cases


def main() -> None:
    """Write the file, and as an example the picture of its first row, without its noise, which does not compress."""
    rows = [held_out(number) for number in range(100)]
    PATH.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    calm = replace(scene_of(rows[0]["seed"]), noise=0, light=(0.0, 0.0))
    picture(calm).save(EXAMPLE, optimize=True)


if __name__ == "__main__":
    main()
