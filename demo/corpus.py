"""Seeded prompts of in-context recall: facts in plain English, then a query about one of them.

Each assignment (who lives where, which code opens which door) is drawn at random, so that the facts in the prompt are
the only way to the answer. One pair of key and value in ten is reserved: lessons for training never state it, and the
decisive fact of every held-out prompt is such a pair.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from typing import Final

from demo.words import DISTRACTORS, WORDS

Span = tuple[int, int]


@dataclass(frozen=True)
class Frame:
    """One kind of fact: ``{0}`` and ``{1}`` stand for its key, ``{v}`` for its value."""

    name: str
    keys: tuple[str, ...]
    value: str
    fact: str
    completion: str
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """A frame filled with a key and a value."""

    frame: Frame
    key: tuple[str, ...]
    value: str

    @property
    def sentence(self) -> str:
        """The fact as it is told in a prompt."""
        return self.frame.fact.format(*self.key, v=self.value)


@dataclass(frozen=True)
class Recall:
    """A prompt whose right continuation ``target`` follows from the sentence ``facts[decisive]`` alone.

    ``span`` is where that sentence stands in the prompt, as start and stop in code points; ``spans`` gives the same for
    all facts. Distractor sentences are in ``facts`` too.
    """

    prompt: str
    target: str
    facts: tuple[str, ...]
    decisive: int
    spans: tuple[Span, ...]
    frame: str
    style: str
    count: int

    @property
    def span(self) -> Span:
        """Start and stop of the decisive sentence in the prompt."""
        return self.spans[self.decisive]


@dataclass(frozen=True)
class Lesson:
    """A training text with many answered queries; the spans of the queries and of their answers in it."""

    text: str
    queries: tuple[Span, ...]
    answers: tuple[Span, ...]
    styles: tuple[str, ...]


FRAMES: Final[tuple[Frame, ...]] = (
    Frame(
        "lives",
        ("name",),
        "city",
        "{0} lives in {v}.",
        "{0} lives in {v}.",
        ("where does {0} live?", "in which city does {0} live?"),
    ),
    Frame(
        "code",
        ("colour", "thing"),
        "code",
        "The code for the {0} {1} is {v}.",
        "The code for the {0} {1} is {v}.",
        ("what is the code for the {0} {1}?",),
    ),
    Frame(
        "country",
        ("city",),
        "country",
        "{0} is in {v}.",
        "{0} is in {v}.",
        ("in which country is {0}?", "which country is {0} in?"),
    ),
    Frame(
        "colour",
        ("name", "thing"),
        "colour",
        "{0} has a {v} {1}.",
        "The {1} of {0} is {v}.",
        ("what colour is the {1} of {0}?", "which colour is the {1} of {0}?"),
    ),
    Frame("likes", ("name",), "food", "{0} likes {v}.", "{0} likes {v}.", ("what does {0} like?",)),
    Frame(
        "place",
        ("thing",),
        "place",
        "The {0} is in the {v}.",
        "The {0} is in the {v}.",
        ("where is the {0}? Answer: In the", "where is the {0}? Answer: in the"),
    ),
    Frame(
        "job",
        ("name",),
        "job",
        "{0} works as a {v}.",
        "{0} works as a {v}.",
        ("what is the job of {0}?", "what does {0} work as?"),
    ),
    Frame(
        "speaks",
        ("name",),
        "language",
        "{0} speaks {v}.",
        "{0} speaks {v}.",
        ("which language does {0} speak?", "what does {0} speak?"),
    ),
    Frame(
        "day",
        ("event",),
        "day",
        "The {0} is on {v}.",
        "The {0} is on {v}.",
        ("on which day is the {0}?", "when is the {0}?"),
    ),
    Frame(
        "price",
        ("thing",),
        "amount",
        "The {0} costs {v} euros.",
        "The {0} costs {v} euros.",
        ("how much does the {0} cost?", "what is the price of the {0}?"),
    ),
    Frame(
        "age",
        ("name",),
        "amount",
        "{0} is {v} years old.",
        "{0} is {v} years old.",
        ("how old is {0}?", "what is the age of {0}?"),
    ),
)

STYLES: Final[tuple[str, ...]] = ("completion", "question")
_RESERVED_ONE_IN: Final = 10
_SYLLABLES: Final = tuple(
    first + second for first in "bdfgklmnprstvz" for second in ("a", "e", "i", "o", "u", "or", "an")
)
_FEW: Final = (0, 0, 0, 1, 2)
_ENDINGS: Final = ("", "n", "s", "k", "l", "r", "t", "sh", "ya", "ville", "sson")


def reserved(frame: Frame, key: tuple[str, ...], value: str) -> bool:
    """Whether this fact is kept out of every lesson."""
    return zlib.crc32("|".join((frame.name, *key, value)).encode()) % _RESERVED_ONE_IN == 0


def invented_word(rng: random.Random) -> str:
    """A capitalised word of two or three syllables that is in no list."""
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(2, 3))).capitalize() + rng.choice(_ENDINGS)


def draw_word(rng: random.Random, kind: str, invented: float = 0.0) -> str:
    """A random word of a kind, a name or city invented at times; codes have four digits and amounts two."""
    if kind == "code":
        return "".join(rng.choice("0123456789") for _ in range(4))
    if kind == "amount":
        return str(rng.randint(10, 99))
    if kind in {"name", "city"} and rng.random() < invented:
        return invented_word(rng)
    return rng.choice(WORDS[kind])


def draw_fact(
    rng: random.Random, frame: Frame, taken: set[tuple[str, ...]], held_out: bool, invented: float = 0.0
) -> Fact | None:
    """A fact whose key and value are new to this prompt, reserved or not as asked; None if chance finds none."""
    for _ in range(200):
        key = tuple(draw_word(rng, kind, invented) for kind in frame.keys)
        value = draw_word(rng, frame.value, invented)
        fresh = (frame.name, *key) not in taken and (frame.name, "=", value) not in taken
        if fresh and value not in key and reserved(frame, key, value) == held_out:
            taken.add((frame.name, *key))
            taken.add((frame.name, "=", value))
            return Fact(frame, key, value)
    return None


def draw_facts(
    rng: random.Random, frames: list[Frame], reserve: int | None = None, invented: float = 0.0
) -> list[Fact]:
    """One fact per frame listed, with distinct keys and values within a frame; fact ``reserve`` is a reserved one.

    A frame whose few values are used up (there are seven days) gives way to another.
    """
    taken: set[tuple[str, ...]] = set()
    facts: list[Fact] = []
    for number, frame in enumerate(frames):
        fact = draw_fact(rng, frame, taken, number == reserve, invented)
        while fact is None:
            fact = draw_fact(rng, rng.choice(FRAMES), taken, number == reserve, invented)
        facts.append(fact)
    return facts


def draw_frames(rng: random.Random, count: int) -> list[Frame]:
    """The frames of a prompt: all the same, or two or three kinds, or any mixture, a third of the time each."""
    pool = rng.choice((1, rng.choice((2, 3)), len(FRAMES)))
    chosen = rng.sample(FRAMES, pool)
    return [rng.choice(chosen) for _ in range(count)]


def query_text(rng: random.Random, fact: Fact, style: str) -> tuple[str, str, str]:
    """A query about a fact as (text before the answer, answer with its leading space, text after it)."""
    if style == "completion":
        before, after = fact.frame.completion.split(" {v}")
        return before.format(*fact.key), f" {fact.value}", after
    question, answer = rng.choice((("Question: ", " Answer:"), ("Question: ", "\nAnswer:"), ("Q: ", " A:")))
    asked, _, lead = rng.choice(fact.frame.questions).format(*fact.key).partition(" Answer:")
    return f"{question}{asked}{answer}{lead}", f" {fact.value}", "."


def join_sentences(sentences: list[str], separators: list[str]) -> tuple[str, tuple[Span, ...]]:
    """The sentences with a separator after each, and where each stands."""
    text, spans = "", []
    for sentence, separator in zip(sentences, separators, strict=True):
        spans.append((len(text), len(text) + len(sentence)))
        text += sentence + separator
    return text, tuple(spans)


def tell(rng: random.Random, facts: list[Fact], distractors: int) -> tuple[list[str], list[str], list[int]]:
    """Sentences of the facts mixed with distractors, the separator after each, and where each fact went."""
    places: list[int | None] = [*range(len(facts)), *([None] * distractors)]
    rng.shuffle(places)
    others = iter(rng.choices(DISTRACTORS, k=distractors))
    sentences = [next(others) if place is None else facts[place].sentence for place in places]
    separator = rng.choice((" ", " ", "\n"))
    where = [places.index(number) for number in range(len(facts))]
    return sentences, [separator] * len(sentences), where


def recall(rng: random.Random, count: int, frame: Frame | None = None, style: str | None = None) -> Recall:
    """A held-out prompt with ``count`` facts, asking about a reserved one, of the given frame and style if named."""
    decisive = rng.randrange(count)
    frames = draw_frames(rng, count)
    if frame is not None:
        frames = [frame if one is frames[decisive] else one for one in frames]
    facts = draw_facts(rng, frames, reserve=decisive)
    sentences, separators, where = tell(rng, facts, rng.choice(_FEW))
    style = style or rng.choice(STYLES)
    separators[-1] = rng.choice((" ", "\n")) if style == "question" else separators[-1]
    text, spans = join_sentences(sentences, separators)
    before, target, _ = query_text(rng, facts[decisive], style)
    asked = facts[decisive].frame.name
    return Recall(text + before, target, tuple(sentences), where[decisive], spans, asked, style, count)


def held_out(n: int, seed: int, fewest: int = 1, most: int = 10) -> list[Recall]:
    """``n`` prompts that training never sees, frames and numbers of facts in equal shares."""
    rng = random.Random(f"held out {seed}")  # noqa: S311
    counts = range(fewest, most + 1)
    return [recall(rng, counts[i % len(counts)], FRAMES[i % len(FRAMES)]) for i in range(n)]


def lesson(
    rng: random.Random, count: int, queries: int, invented: float = 0.0, distractors: int | None = None
) -> Lesson:
    """A training text: ``count`` facts in order, then answered queries for up to ``queries`` of them, shuffled.

    ``invented`` is the share of names and cities made up for the occasion; distractors are few unless said.
    """
    facts = draw_facts(rng, draw_frames(rng, count), invented=invented)
    sentences, separators, _ = tell(rng, facts, rng.choice(_FEW) if distractors is None else distractors)
    text, _ = join_sentences(sentences, separators)
    asked, answers, styles = [], [], []
    for fact in rng.sample(facts, min(queries, count)):
        styles.append(rng.choice(STYLES))
        before, answer, after = query_text(rng, fact, styles[-1])
        asked.append((len(text), len(text) + len(before)))
        answers.append((len(text) + len(before), len(text) + len(before) + len(answer)))
        text += before + answer + after + rng.choice((" ", "\n"))
    return Lesson(text.rstrip(), tuple(asked), tuple(answers), tuple(styles))
