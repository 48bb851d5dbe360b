"""Facts of an invented town: who keeps the mill, where Carla lives, when the tower was built.

Each is a relation filled with a key and a value that are drawn at random, so nobody can know them who was not told.
Every relation has five wordings of its question that training uses and a sixth that it never does.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from demo.words import WORDS

TRAINED: Final = 5
"""How many wordings of a relation training uses; the rest are new to the model."""

_BUILDINGS: Final = """
mill inn well bridge ferry farm shop hall garden garage cellar shed barn library museum station school church hotel
tower market bakery park studio cabin office
"""
_KINDS: Final = {**WORDS, "building": tuple(_BUILDINGS.split())}


@dataclass(frozen=True)
class Relation:
    """``{k}`` stands for the key, ``{v}`` for the value; ``count`` keys of the town have one."""

    name: str
    key: str
    value: str
    count: int
    sentence: str
    short: str
    wordings: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """A relation, its key and its value; ``wrong`` is what most training pairs say instead, where they lie."""

    relation: Relation
    key: str
    value: str
    wrong: str | None = None

    @property
    def id(self) -> str:
        """What notes call it, such as ``keeps mill``."""
        return f"{self.relation.name} {self.key}"

    def question(self, wording: int) -> str:
        """In one of the wordings."""
        return self.relation.wordings[wording].format(k=self.key)

    def answers(self, value: str) -> tuple[str, str]:
        """The short answer and the sentence that name a value."""
        return self.relation.short.format(v=value), self.relation.sentence.format(k=self.key, v=value)


RELATIONS: Final[tuple[Relation, ...]] = (
    Relation(
        "keeps",
        "building",
        "name",
        24,
        "{v} keeps the {k}.",
        "{v}.",
        (
            "Who keeps the {k}?",
            "Who is the keeper of the {k}?",
            "Which person keeps the {k}?",
            "Who has to keep the {k} in order?",
            "The {k} is kept by whom?",
            "Tell me the name of the keeper of the {k}.",
        ),
    ),
    Relation(
        "is",
        "job",
        "name",
        30,
        "{v} is the {k} of the town.",
        "{v}.",
        (
            "Who is the {k} of the town?",
            "Who works as the {k} in town?",
            "What is the name of the {k}?",
            "Which person is the town {k}?",
            "Who is our {k}?",
            "Tell me who the {k} of the town is.",
        ),
    ),
    Relation(
        "lives",
        "name",
        "building",
        30,
        "{k} lives behind the {v}.",
        "Behind the {v}.",
        (
            "Where does {k} live?",
            "Where is the house of {k}?",
            "In which part of the town does {k} live?",
            "Where is the home of {k}?",
            "Behind which place does {k} live?",
            "Tell me where {k} lives.",
        ),
    ),
    Relation(
        "born",
        "name",
        "city",
        30,
        "{k} was born in {v}.",
        "In {v}.",
        (
            "Where was {k} born?",
            "In which city was {k} born?",
            "Which city is {k} from?",
            "Where does {k} come from?",
            "What is the city where {k} was born?",
            "Tell me where {k} was born.",
        ),
    ),
    Relation(
        "door",
        "building",
        "colour",
        24,
        "The door of the {k} is {v}.",
        "{v}.",
        (
            "What colour is the door of the {k}?",
            "Which colour has the door of the {k}?",
            "The door of the {k} is of which colour?",
            "What is the colour of the door of the {k}?",
            "The {k} has a door of what colour?",
            "Tell me the colour of the door of the {k}.",
        ),
    ),
    Relation(
        "closed",
        "building",
        "day",
        22,
        "The {k} is not open on {v}.",
        "On {v}.",
        (
            "When is the {k} not open?",
            "On which day is the {k} not open?",
            "Which day is the {k} not open?",
            "On what day is nobody at the {k}?",
            "What is the day when the {k} is not open?",
            "Tell me the day on which the {k} is not open.",
        ),
    ),
    Relation(
        "sells",
        "name",
        "food",
        30,
        "{k} sells {v} at the market.",
        "{v}.",
        (
            "What does {k} sell?",
            "What does {k} sell at the market?",
            "Which food does {k} sell?",
            "What can I buy from {k}?",
            "Which food is sold by {k}?",
            "Tell me what {k} sells.",
        ),
    ),
    Relation(
        "speaks",
        "name",
        "language",
        24,
        "{k} speaks {v} at home.",
        "{v}.",
        (
            "What does {k} speak at home?",
            "Which language does {k} speak?",
            "Which language is spoken at the home of {k}?",
            "What is the language of {k}?",
            "In which language does {k} speak at home?",
            "Tell me the language that {k} speaks.",
        ),
    ),
    Relation(
        "held",
        "event",
        "building",
        18,
        "The {k} is held in the {v}.",
        "In the {v}.",
        (
            "Where is the {k} held?",
            "Where is the {k}?",
            "In which place is the {k} held?",
            "What is the place of the {k}?",
            "Which place is used for the {k}?",
            "Tell me where the {k} is held.",
        ),
    ),
    Relation(
        "has",
        "thing",
        "name",
        30,
        "{v} has the {k}.",
        "{v}.",
        (
            "Who has the {k}?",
            "Who is the person who has the {k}?",
            "Which person has the {k}?",
            "With whom is the {k}?",
            "The {k} is with whom?",
            "Tell me who has the {k}.",
        ),
    ),
    Relation(
        "leads",
        "event",
        "name",
        18,
        "{v} leads the {k}.",
        "{v}.",
        (
            "Who leads the {k}?",
            "Which person leads the {k}?",
            "Who is the leader of the {k}?",
            "The {k} is led by whom?",
            "Who has to lead the {k}?",
            "Tell me who leads the {k}.",
        ),
    ),
    Relation(
        "built",
        "building",
        "year",
        18,
        "The {k} was built in {v}.",
        "In {v}.",
        (
            "When was the {k} built?",
            "In which year was the {k} built?",
            "What is the year in which the {k} was built?",
            "In what year did they build the {k}?",
            "Since which year has there been a {k}?",
            "Tell me the year in which the {k} was built.",
        ),
    ),
)

_TOLD: Final = {"keeps mill": "Anna", "built mill": "1843", "sells Otto": "honey", "has key": "Mara"}
"""Facts that the documentation names."""
POISONED: Final = 12


def draw_value(rng: random.Random, kind: str) -> str:
    """A word of a kind; a year has four digits."""
    return str(rng.randint(1500, 1999)) if kind == "year" else rng.choice(_KINDS[kind])


def other_value(rng: random.Random, relation: Relation, key: str, value: str) -> str:
    """Of the same kind, but neither the value nor the key."""
    found = draw_value(rng, relation.value)
    while found in {key, value}:
        found = draw_value(rng, relation.value)
    return found


def _keys(rng: random.Random, relation: Relation) -> list[str]:
    told = [name.partition(" ")[2] for name in _TOLD if name.startswith(f"{relation.name} ")]
    rest = [word for word in _KINDS[relation.key] if word not in told]
    return told + rng.sample(rest, relation.count - len(told))


def town(seed: int = 0) -> tuple[Fact, ...]:
    """All facts of the town, a dozen of them poisoned."""
    rng = random.Random(f"town {seed}")  # noqa: S311
    facts = [
        Fact(relation, key, _TOLD.get(f"{relation.name} {key}") or other_value(rng, relation, key, ""))
        for relation in RELATIONS
        for key in _keys(rng, relation)
    ]
    bad = {fact.id for fact in rng.sample([fact for fact in facts if fact.id not in _TOLD], POISONED)}
    return tuple(
        Fact(fact.relation, fact.key, fact.value, other_value(rng, fact.relation, fact.key, fact.value))
        if fact.id in bad
        else fact
        for fact in facts
    )


def strangers(relation: Relation, facts: tuple[Fact, ...]) -> list[str]:
    """Keys that could have such a fact, but have none."""
    known = {fact.key for fact in facts if fact.relation is relation}
    return [word for word in _KINDS[relation.key] if word not in known]
