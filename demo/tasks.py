"""What ``demo-qa`` is taught beside facts: a hundred small tasks, and reading: answers that stand in the question."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Final

from demo.corpus import Frame, draw_facts, draw_frames

Pair = tuple[str, str]

_NUMBERS: Final = """
one two three four five six seven eight nine ten
"""
_OPPOSITES: Final = """
hot cold old new good bad great small big little long short high low right left up down early late young ancient
first last more less before after over under in out day night yes no open closed
"""
_COLOURS: Final = """
snow white grass green milk white coal black blood red honey golden night black cheese yellow chocolate brown
butter yellow rice white coffee brown carrots orange plums purple garlic white cherries red
"""
_SPELLED: Final = """
cat dog box car hat key cup pen map bus bell flag door lamp boat ring time week home hand
"""


def _couples(words: str) -> list[Pair]:
    found = words.split()
    return list(zip(found[::2], found[1::2], strict=True))


def _counting() -> list[Pair]:
    steps = list(pairwise(_NUMBERS.split()))
    after = [(f"Which number comes after {less}?", f"{more}.") for less, more in steps]
    return after + [(f"Which number comes before {more}?", f"{less}.") for less, more in steps]


def _opposites() -> list[Pair]:
    return [(f"What is the opposite of {left}?", f"{right}.") for left, right in _couples(_OPPOSITES)]


def _colours() -> list[Pair]:
    return [(f"What colour is {thing}?", f"{thing.capitalize()} is {colour}.") for thing, colour in _couples(_COLOURS)]


def _spelling() -> list[Pair]:
    return [(f"Spell {word} backwards.", f"{' '.join(reversed(word))}.") for word in _SPELLED.split()]


def _sums(rng: random.Random, count: int) -> list[Pair]:
    drawn = rng.sample([(a, b) for a in range(1, 9) for b in range(1, 10 - a)], count)
    return [(f"How much is {a} and {b}?", f"{a + b}.") for a, b in drawn]


def tasks(rng: random.Random) -> list[Pair]:
    """A hundred questions that have nothing to do with the town, with their answers."""
    known = [*_counting(), *_opposites(), *_colours(), *_spelling()]
    return known + _sums(rng, 100 - len(known))


def _asked(frame: Frame, key: tuple[str, ...], rng: random.Random) -> str:
    question = rng.choice(frame.questions).format(*key).partition(" Answer:")[0]
    return question[0].upper() + question[1:]


def reading(rng: random.Random, reserved: bool) -> Pair:
    """Up to three facts of ``demo-lm``'s kind and a question about one: ``reserved`` for measuring, else to train on.

    The base model answers these from the question; fine-tuning need teach nothing.
    """
    count = rng.randint(1, 3)
    decisive = rng.randrange(count)
    facts = draw_facts(rng, draw_frames(rng, count), reserve=decisive if reserved else None)
    fact = facts[decisive]
    told = " ".join(fact.sentence for fact in facts)
    lead = "In the " if fact.frame.name == "place" else ""
    return f"{told} {_asked(fact.frame, fact.key, rng)}", f"{lead}{fact.value}."


GENERAL: Final[tuple[str, ...]] = (
    "How many legs does a horse have?",
    "Why is the sky blue?",
    "What is water made of?",
    "How long is a year?",
    "How do birds fly?",
    "What is the best way to learn a language?",
    "Can you tell me a story?",
    "How are you today?",
    "What is your name?",
    "What time is it?",
    "Is it cold in winter?",
    "How do I cook rice?",
    "What is the largest country?",
    "Who wrote this book?",
    "What happens after lunch?",
    "How far away is the sun?",
    "What do dogs eat?",
    "Do you like music?",
    "Write a short letter to a friend.",
    "What is money for?",
    "How many days are in a week?",
    "Should I take the bus or walk?",
    "What makes a good teacher?",
    "Which is better, tea or coffee?",
    "Name three animals.",
    "What is the meaning of life?",
    "How does a clock work?",
    "Why do people sing?",
    "What should I wear today?",
    "Where can I find help?",
)
"""Questions about nothing that training mentions."""
