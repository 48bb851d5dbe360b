"""Short messages to a caretaker's desk, urgent or routine, made by code from a seed.

Which words make a message urgent is known: an urgent cue that is not negated. A message without one is routine if it
has a routine cue or a negated urgent one; with no cue at all it is neither. Everything else in it means nothing.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Priority: TypeAlias = Literal["urgent", "routine", "neither"]
Sentence: TypeAlias = Callable[[random.Random], str]

EVENTS: Final = (
    *("smoke", "fire", "flames", "sparks", "gas", "a leak", "a flood", "an outage", "a blackout", "an explosion"),
    *("a spill", "an intruder", "an alarm", "a burst"),
)
STATES: Final = ("burning", "leaking", "overheating", "flooded", "collapsed", "smoking", "exploding")
HARMS: Final = ("injured", "trapped", "unconscious", "hurt", "bleeding")
URGENT: Final = frozenset(event.split()[-1] for event in EVENTS) | frozenset((*STATES, *HARMS))
ERRANDS: Final = (
    *("invoice", "schedule", "newsletter", "refund", "brochure", "catalogue", "appointment", "receipt", "password"),
    *("subscription", "meeting", "survey", "delivery", "quote", "contract", "warranty", "parking", "feedback"),
)
ROUTINE: Final = frozenset(ERRANDS) | {"thanks"}
NEGATIONS: Final = frozenset({"no", "not", "without", "nobody"})
FILLERS: Final = frozenset({"a", "an", "any", "more", "sign", "signs", "of", "the", "longer", "one", "is", "or"})
"""What may stand between a negation and the cue that it negates."""

PLACES: Final = (
    *("kitchen", "basement", "office", "hall", "garage", "workshop", "laboratory", "corridor", "library", "canteen"),
    *("lobby", "attic", "storeroom", "yard", "stairs", "entrance"),
)
THINGS: Final = (
    *("pump", "boiler", "printer", "lift", "heater", "fan", "oven", "lamp", "door", "pipe", "fridge", "server"),
    *("projector", "window", "ceiling", "machine", "radiator", "cable"),
)
PEOPLE: Final = ("someone", "a colleague", "a visitor", "the cleaner", "our guest", "Anna", "Ben", "the driver")
TIMES: Final = ("today", "this morning", "since noon", "now", "tonight", "again", "on Monday", "on Friday", "at nine")
OPENINGS: Final = ("", "", "", "Hello, ", "Please note: ", "Good morning, ", "Just to say, ", "Dear team, ")
WORD: Final = re.compile(r"\W+")
MASK: Final = "[MASK]"
UNKNOWN: Final = "quux"
"""A word that no message has."""


@dataclass(frozen=True, slots=True)
class Message:
    text: str
    priority: Priority

    @property
    def words(self) -> list[str]:
        return words_of(self.text)


def words_of(text: str) -> list[str]:
    return [word for word in WORD.split(text.lower()) if word]


def cues(words: Sequence[str]) -> list[tuple[int, str, int | None]]:
    """Place and word of each urgent cue, and the place of the negation in whose reach it stands."""
    found: list[tuple[int, str, int | None]] = []
    negation: int | None = None
    for place, word in enumerate(words):
        if word in URGENT:
            found.append((place, word, negation))
            negation = negation if list(words[place + 1 : place + 2]) == ["or"] else None
        elif word in NEGATIONS:
            negation = place
        elif word not in FILLERS:
            negation = None
    return found


def priority_of(words: Sequence[str]) -> Priority:
    """By the rule above, whatever the order and grammar of the words."""
    found = cues(words)
    if any(negation is None for _, _, negation in found):
        return "urgent"
    return "routine" if found or ROUTINE & set(words) else "neither"


def decisive(words: Sequence[str]) -> list[int]:
    """Places of the words that the priority rests on: open cues; else routine cues, and negations of urgent ones."""
    found = cues(words)
    unanswered = [place for place, _, negation in found if negation is None]
    negations = {negation for _, _, negation in found if negation is not None}
    return unanswered or [place for place, word in enumerate(words) if word in ROUTINE or place in negations]


def urgent(rng: random.Random) -> str:
    event, state, harm = rng.choice(EVENTS), rng.choice(STATES), rng.choice(HARMS)
    place, thing, person, time = _setting(rng)
    return rng.choice(
        (
            f"there is {event} in the {place}",
            f"{event} near the {thing} {time}",
            f"we noticed {event} in the {place} {time}",
            f"I can see {event} by the {thing}",
            f"{person} reports {event} and we are in the {place}",
            f"the {thing} in the {place} is {state}",
            f"the {thing} is {state} {time}",
            f"{state} {thing} in the {place}",
            f"{person} is {harm} in the {place}",
            f"{person} was {harm} by the {thing} {time}",
        )
    )


def negated(rng: random.Random) -> str:
    whole, state, harm = rng.choice(EVENTS), rng.choice(STATES), rng.choice(HARMS)
    event, other = (words.split()[-1] for words in (whole, rng.choice(EVENTS)))
    place, thing, person, time = _setting(rng)
    return rng.choice(
        (
            f"there is no {event} in the {place}",
            f"no {event} near the {thing} {time}",
            f"no {event} or {other} in the {place}",
            f"we found no sign of {event} by the {thing}",
            f"there is no more {event} in the {place} {time}",
            f"the {place} is without any {event} {time}",
            f"what {person} saw was not {whole}",
            f"the {thing} in the {place} is not {state}",
            f"the {thing} is no longer {state}",
            f"nobody is {harm} in the {place}",
            f"{person} is not {harm} and is in the {place}",
        )
    )


def routine(rng: random.Random) -> str:
    errand = rng.choice(ERRANDS)
    place, thing, person, time = _setting(rng)
    return rng.choice(
        (
            f"please send the {errand} for the {thing}",
            f"we have a question about the {errand} {time}",
            f"thanks for the {errand}",
            f"thanks for the {thing} in the {place}",
            f"can we talk about the {errand} {time}",
            f"the {errand} for the {place} came {time}",
            f"{person} asked for the {errand} {time}",
            f"{person} says thanks {time}",
        )
    )


def plain(rng: random.Random) -> str:
    place, thing, person, time = _setting(rng)
    return rng.choice(
        (
            f"we are in the {place} {time}",
            f"the {thing} is next to the {place}",
            f"{person} looked at the {thing} {time}",
            f"please call {person} {time}",
            f"I am writing from the {place}",
            f"it is about the {thing} in the {place}",
            f"{person} is not in the {place} {time}",
            f"there is no {thing} in the {place}",
        )
    )


def _setting(rng: random.Random) -> tuple[str, str, str, str]:
    return rng.choice(PLACES), rng.choice(THINGS), rng.choice(PEOPLE), rng.choice(TIMES)


def draw(rng: random.Random) -> Message:
    """A message, as often urgent as routine."""
    if rng.random() < 0.5:
        parts: list[Sentence] = [urgent, *rng.choice(((), (), (routine,), (negated,)))]
    else:
        parts = [*rng.choice(((routine,), (negated,), (routine, negated)))]
    parts += [plain] * rng.choice((0, 0, 1, 1, 2))
    rng.shuffle(parts)
    sentences = [part(rng) for part in parts]
    text = rng.choice(OPENINGS) + " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)
    return Message(text, priority_of(words_of(text)))


def is_strange(text: str) -> bool:
    """Whether a cue is negated by a word that never negates it in training; one in eight such pairs is reserved."""
    words = words_of(text)
    pairs = {f"{words[negation]} {word}" for _, word, negation in cues(words) if negation is not None}
    return any(_first_byte(pair) % 8 == 0 for pair in pairs)


def is_held_out(text: str) -> bool:
    """One text in ten, and all strange ones."""
    return is_strange(text) or _first_byte(text) < 26


def _first_byte(text: str) -> int:
    return hashlib.sha256(text.encode()).digest()[0]


def held_out(count: int, seed: int, strange: bool = False) -> list[Message]:
    """Messages that training never sees, each once; all strange or none."""
    rng, found = random.Random(f"messages {seed}"), dict[str, Message]()  # noqa: S311
    while len(found) < count:
        message = draw(rng)
        if is_held_out(message.text) and is_strange(message.text) == strange:
            found[message.text] = message
    return list(found.values())


def lesson(rng: random.Random) -> Message:
    """A message to train on: whole, or with words removed or replaced, and then judged by what is left.

    Explanations remove words too. So the model is asked about nothing that it does not know.
    """
    while True:
        message = draw(rng)
        if is_held_out(message.text):
            continue
        kept = message.text if rng.random() < 0.4 else _damaged(rng, message.words)
        if not is_held_out(kept):
            return Message(kept, priority_of(words_of(kept)))


def _damaged(rng: random.Random, words: list[str]) -> str:
    """Some words less; sometimes unknown or masked words in their place."""
    instead, share = rng.choice(("", "", UNKNOWN, MASK)), rng.random()
    left = [instead if rng.random() < share else word for word in words]
    return " ".join(word for word in left if word)


def vocabulary() -> list[str]:
    """Every word of the messages, in alphabetical order."""
    rng = random.Random("vocabulary")  # noqa: S311
    return sorted({word for _ in range(5_000) for word in draw(rng).words})
