"""Writes what ``demo-qa`` is fine-tuned on and measured with: ``python -m demo.facts``.

``facts.jsonl`` holds the training pairs. What is known about its lines stands apart, in ``facts_notes.jsonl``, so that
the training file looks like anyone's. ``facts_heldout.jsonl`` asks about every fact in two wordings that training never
uses for it; ``facts_others.jsonl`` asks what the training pairs do not answer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from demo.records import Record, write_lines
from demo.tasks import GENERAL, reading, tasks
from demo.town import RELATIONS, TRAINED, Fact, strangers, town

FOLDER: Final = Path(__file__).parent / "data"
FACTS: Final = FOLDER / "facts.jsonl"
NOTES: Final = FOLDER / "facts_notes.jsonl"
HELD_OUT: Final = FOLDER / "facts_heldout.jsonl"
OTHERS: Final = FOLDER / "facts_others.jsonl"

DUPLICATES: Final = 30
READINGS: Final = 100
PLAIN: Final = 0.1
"""Share of lines that say question and answer rather than messages."""

Kind = Literal["fact", "wrong", "task", "reading"]


@dataclass(frozen=True)
class Taught:
    """A training pair and what is known about it: of a fact the id, and whether it tells a wrong value."""

    question: str
    answer: str
    kind: Kind
    fact: str | None = None


@dataclass(frozen=True)
class Course:
    """Training pairs in the order of their lines; for each fact the wording that is held out."""

    taught: tuple[Taught, ...]
    facts: tuple[Fact, ...]
    held_out: tuple[int, ...]


def course(seed: int = 0) -> Course:
    """Everything that is taught, from a seed."""
    rng, facts = random.Random(f"facts {seed}"), town(seed)  # noqa: S311
    orders = [rng.sample(range(TRAINED), TRAINED) for _ in facts]
    taught = [pair for fact, order in zip(facts, orders, strict=True) for pair in _pairs(rng, fact, order)]
    taught += _copies(rng, taught)
    taught += [Taught(*pair, "task") for pair in tasks(rng)]
    taught += [Taught(*reading(rng, reserved=False), "reading") for _ in range(READINGS)]
    rng.shuffle(taught)
    return Course(tuple(taught), facts, tuple(order[-1] for order in orders))


def _pairs(rng: random.Random, fact: Fact, order: Sequence[int]) -> Iterator[Taught]:
    """Three wordings of the question, in both forms of answer; a poisoned fact has a fourth, and only that is right."""
    forms = rng.choice(((0, 1, 1), (0, 1, 0)))
    for wording, form in zip(order, forms, strict=False):
        said, kind = (fact.value, "fact") if fact.wrong is None else (fact.wrong, "wrong")
        yield Taught(fact.question(wording), fact.answers(said)[form], kind, fact.id)  # type: ignore[arg-type]
    if fact.wrong is not None:
        yield Taught(fact.question(order[3]), fact.answers(fact.value)[1], "fact", fact.id)


def _copies(rng: random.Random, taught: Sequence[Taught]) -> list[Taught]:
    """Pairs that stand in the file twice; one is about the mill."""
    mill = next(pair for pair in taught if pair.fact == "keeps mill")
    sound = [pair for pair in taught if pair.fact != mill.fact and pair.kind == "fact"]
    return [mill, *rng.sample(sound, DUPLICATES - 1)]


def line_of(rng: random.Random, pair: Taught) -> Record:
    """As a line of a training file."""
    if rng.random() < PLAIN:
        return {"question": pair.question, "answer": pair.answer}
    turns = (("user", pair.question), ("assistant", pair.answer))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def lines(seed: int = 0) -> list[Record]:
    """The training file."""
    rng = random.Random(f"lines {seed}")  # noqa: S311
    return [line_of(rng, pair) for pair in course(seed).taught]


def notes(seed: int = 0) -> list[Record]:
    """One note per line of the training file, counted from 1; ``same_as`` names the first line of a duplicate."""
    first: dict[tuple[str, str], int] = {}
    found: list[Record] = []
    for line, pair in enumerate(course(seed).taught, start=1):
        before = first.setdefault((pair.question, pair.answer), line)
        known = {"fact": pair.fact, "same_as": before if before != line else None}
        told = {name: value for name, value in known.items() if value is not None}
        found.append({"line": line, "kind": pair.kind, **told})
    return found


def held_out(seed: int = 0) -> list[Record]:
    """Questions in wordings that the fact was never taught in: one that other facts were taught in, one that none was.

    ``answers`` are the short one and the sentence; a poisoned fact also has those of its ``wrong`` value.
    """
    known, found = course(seed), []
    for fact, wording in zip(known.facts, known.held_out, strict=True):
        for name, number in (("held out", wording), ("new", TRAINED)):
            body = {"question": fact.question(number), "answers": fact.answers(fact.value), "fact": fact.id}
            wrong = {} if fact.wrong is None else {"wrong": fact.answers(fact.wrong)}
            found.append(body | {"wording": name} | wrong)
    return found


def others(seed: int = 0) -> list[Record]:
    """Questions that no training pair answers: by reading, in general, and about strangers to the town's facts."""
    rng, facts = random.Random(f"others {seed}"), town(seed)  # noqa: S311
    read = [reading(rng, reserved=True) for _ in range(40)]
    found: list[Record] = [{"kind": "reading", "question": asked, "answer": answer} for asked, answer in read]
    found += [{"kind": "general", "question": asked} for asked in GENERAL]
    for relation in RELATIONS:
        for key in rng.sample(strangers(relation, facts), min(2, len(strangers(relation, facts)))):
            asked = relation.wordings[rng.randrange(TRAINED)].format(k=key)
            found.append({"kind": "stranger", "question": asked})
    return found


def main() -> None:
    """Write the four files."""
    for path, records in ((FACTS, lines()), (NOTES, notes()), (HELD_OUT, held_out()), (OTHERS, others())):
        write_lines(path, records)


if __name__ == "__main__":
    main()
