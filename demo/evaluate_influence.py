"""Measures what the influence index of ``demo-qa`` finds: ``python -m demo.evaluate_influence``.

Prepared and asked as ``whence demo`` does it, with the questions of ``facts_heldout.jsonl`` and ``facts_others.jsonl``
and the model's own answers. Right are the pairs that tell the fact as the answer does: of a poisoned fact, told wrong,
the wrong ones.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from app.console import opened
from app.demo import MODELS, offer, trace
from app.explain import Explainer
from app.influence import Question, influence_of, pair_id
from app.registry import explainer_of
from app.settings import Settings
from app.start import DEFAULT_TENANT, first_key
from app.training_files import list_files
from demo.facts import HELD_OUT, NOTES, OTHERS
from demo.records import Record, read_lines
from storage.database import Database

MODEL: Final = "demo-qa"


@dataclass(frozen=True)
class Listed:
    """What came back for one question: line and level of each pair, best first; the answer that was explained."""

    lines: tuple[int, ...]
    levels: tuple[str, ...]
    answer: str

    def of(self, *levels: str) -> list[int]:
        return [line for line, level in zip(self.lines, self.levels, strict=True) if level in levels]


@dataclass(frozen=True)
class Scores:
    """Of one question whose right lines are known."""

    reciprocal: float
    medium: bool
    high: bool
    right_high: int
    all_high: int
    first: bool


async def prepared(database: Database, settings: Settings) -> None:
    """The fine-tune with its base and its index."""
    await first_key(database, settings)
    for name in ("demo-lm", MODEL):
        await offer(database, settings, name, MODELS[name])
    data = MODELS[MODEL].training_data
    assert data is not None  # noqa: S101
    await trace(database, settings, MODEL, data)


async def listed(explainer: Explainer, questions: Sequence[str]) -> list[Listed]:
    """All that each question has, by line of the training file."""
    (file,) = await list_files(
        explainer.database, DEFAULT_TENANT, purpose=None, sort="created_at", descending=True, offset=0, limit=2
    )
    line_of = {str(pair_id(file, line)): line for line in range(1, file.lines + 1)}
    found = []
    for question in questions:
        told = (await influence_of(explainer, DEFAULT_TENANT, Question(MODEL, question))).content
        results: list[Record] = told["results"]
        lines = tuple(line_of[result["id"]] for result in results)
        found.append(Listed(lines, tuple(result["influence_level"] for result in results), told["answer"].strip()))
    return found


def right_lines(case: Record) -> set[int]:
    """The lines that tell a fact; of a poisoned one those that tell it wrong."""
    told = [note for note in read_lines(NOTES) if note.get("fact") == case["fact"]]
    return {note["line"] for note in told if "wrong" not in case or note["kind"] == "wrong"}


def scores_of(found: Listed, right: set[int]) -> Scores:
    ranks = [place for place, line in enumerate(found.lines, start=1) if line in right]
    high = found.of("high")
    return Scores(
        reciprocal=1 / ranks[0] if ranks else 0.0,
        medium=bool(right.intersection(found.of("high", "medium"))),
        high=bool(right.intersection(high)),
        right_high=len(right.intersection(high)),
        all_high=len(high),
        first=bool(ranks) and ranks[0] == 1,
    )


def as_told(case: Record, found: Listed) -> bool:
    """Whether the model said what most of its pairs say."""
    told: list[str] = case["wrong" if "wrong" in case else "answers"]
    return found.answer in told


def group_of(case: Record) -> str:
    return f"{case['wording']}{', poisoned' if 'wrong' in case else ''}"


def show(name: str, scores: Sequence[Scores]) -> None:
    """One row of the card's first table."""
    shares: list[list[float]] = [
        [score.reciprocal for score in scores],
        [score.first for score in scores],
        [score.medium for score in scores],
        [score.high for score in scores],
    ]
    cells = [f"{sum(share) / len(scores):.3f}" for share in shares]
    high = sum(score.right_high for score in scores) / max(1, sum(score.all_high for score in scores))
    print(f"| {name} | {len(scores)} | {' | '.join(cells)} | {high:.3f} |", flush=True)


async def report(database: Database, settings: Settings) -> None:
    """Both tables."""
    await prepared(database, settings)
    async with explainer_of(database, settings) as explainer:
        cases = read_lines(HELD_OUT)
        scores: dict[str, list[Scores]] = defaultdict(list)
        for case, found in zip(cases, await listed(explainer, [case["question"] for case in cases]), strict=True):
            if as_told(case, found):
                scores[group_of(case)].append(scores_of(found, right_lines(case)))
        for name, own in scores.items():
            show(name, own)
        others = read_lines(OTHERS)
        kinds: dict[str, list[Any]] = defaultdict(list)
        for case, found in zip(others, await listed(explainer, [case["question"] for case in others]), strict=True):
            kinds[case["kind"]].append(found)
    for kind, every in kinds.items():
        empty = sum(not found.lines for found in every)
        medium = sum(bool(found.of("high", "medium")) for found in every)
        print(f"| {kind} | {len(every)} | {empty} | {medium} |")


def main() -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="whence-") as folder:
        place = Path(folder)
        place.chmod(0o711)
        settings = Settings(data_dir=place, device="cpu")
        asyncio.run(opened(settings, lambda database: report(database, settings)))


if __name__ == "__main__":
    main()
