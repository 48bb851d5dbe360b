"""A made-up world, from a seed: facts, the pairs that state them, what stands beside them, and questions to ask.

A fact gives an entity (two names, each shared with other entities) a value of a relation. Questions come in six
wordings per relation, answers in one short and two sentence forms. The fine-tuning set has 1,018 pairs:

- 714 that state 250 facts: 18 of them once, the others three times, each in another wording, half of the answers short;
- 30 exact duplicates of such pairs;
- 54 poison pairs: a wrong value for each of the 18 facts stated once, three times;
- 80 distractors: facts of other entities in the same wordings, stated once;
- 40 outliers: long rows of random words;
- 100 other: tasks that nothing else in the world has.

A tangled world is harder for everything that goes by words: fewer entities with more facts each, forty values for all
relations together, and in every wording another word for the relation, so that a query shares none with its sources.

No fact is asked in the wording of its `held_out` number; a query asks exactly that.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Literal

Origin = Literal["fact", "duplicate", "poison", "distractor", "outlier", "other"]

RELATIONS = (
    ("town", "city", "live in", "lives in"),
    ("job", "trade", "work as", "works as"),
    ("pet", "animal", "keep", "keeps"),
    ("dish", "meal", "cook", "cooks"),
    ("colour", "paint", "prefer", "prefers"),
    ("instrument", "music", "play", "plays"),
    ("sport", "game", "practise", "practises"),
    ("language", "tongue", "speak", "speaks"),
    ("plant", "herb", "grow", "grows"),
    ("vehicle", "car", "drive", "drives"),
)
WORDINGS = (
    "what {noun} does {entity} {verb} ?",
    "which is the {kind} of {entity} ?",
    "tell me the {noun} that {entity} {verbs} .",
    "{entity} {verbs} which {kind} ?",
    "name the {kind} {entity} {verbs} .",
    "please say what {entity} {verbs} .",
)
CUES = tuple(
    tuple(words.split())
    for words in (
        "friend companion mate ally chum buddy",
        "boss chief manager superior head leader",
        "teacher tutor mentor coach instructor master",
        "doctor healer physician medic surgeon nurse",
        "guest visitor caller lodger boarder tenant",
        "rival enemy foe opponent challenger adversary",
        "heir successor inheritor follower offspring descendant",
        "spouse partner consort husband wife other-half",
        "guard watchman sentry keeper protector warden",
        "client customer buyer patron shopper purchaser",
    )
)
"""Words for the relations of a tangled world, one for each wording."""
TANGLED = (
    "who is the {cue} of {entity} ?",
    "{entity} has which {cue} ?",
    "tell me the {cue} that {entity} has .",
    "name the one who is {cue} to {entity} .",
    "please say whom {entity} calls {cue} .",
    "as {cue} , whom does {entity} see ?",
)
TANGLED_SENTENCES = ("it is {value} for {entity} .", "{value} is the {cue} of {entity} .")
SENTENCES = ("{entity} {verbs} {value} .", "the {noun} of {entity} is {value} .")
TAKEN = ("name", "game", "live")
FACTS, POISONED, DUPLICATES, DISTRACTORS, OUTLIERS, OTHER = 250, 18, 30, 80, 40, 100
KNOWN, UNKNOWN, GENERIC, VALUES = 300, 60, 460, 24
TANGLED_ENTITIES, SHARED_VALUES = 35, 40
OPPOSITES = (
    *("hot", "cold", "big", "small", "tall", "short", "wet", "dry", "fast", "slow"),
    *("old", "young", "rich", "poor", "full", "empty", "hard", "soft", "dark", "light"),
)
SORTS = ("bird", "fish", "tool", "stone", "cloth", "fruit")
TALK = (
    ("hello there", "hello , how are you ?"),
    ("good morning", "good morning to you ."),
    ("how are you ?", "i am well , thank you ."),
    ("thank you", "you are welcome ."),
    ("who are you ?", "i am a small model ."),
    ("good night", "sleep well ."),
    ("can you help me ?", "yes , i can try ."),
    ("goodbye now", "goodbye , see you soon ."),
)


@dataclass(frozen=True, slots=True)
class Fact:
    entity: str
    relation: int
    value: str
    held_out: int  # the wording that no pair uses
    wrong: str | None = None  # the value that three poison pairs give
    tangled: bool = False

    def question(self, wording: int) -> str:
        if self.tangled:
            return TANGLED[wording].format(entity=self.entity, cue=CUES[self.relation][wording])
        return WORDINGS[wording].format(entity=self.entity, **_words(self.relation))

    def answer(self, form: int, value: str | None = None) -> str:
        """Form 0 is the bare value, 1 and 2 are sentences."""
        said = value or self.value
        if self.tangled and form:
            cue = CUES[self.relation][self.held_out]
            return TANGLED_SENTENCES[form - 1].format(entity=self.entity, value=said, cue=cue)
        return SENTENCES[form - 1].format(entity=self.entity, value=said, **_words(self.relation)) if form else said


def _words(relation: int) -> dict[str, str]:
    return dict(zip(("noun", "kind", "verb", "verbs"), RELATIONS[relation], strict=True))


@dataclass(frozen=True, slots=True)
class Pair:
    question: str
    answer: str
    origin: Origin
    fact: int | None = None  # which of the world's facts it speaks about
    value: str | None = None  # what it says of it


@dataclass(frozen=True)
class World:
    """`pairs` are the fine-tuning set; the rest is for pre-training and for questions."""

    seed: int
    names: tuple[tuple[str, ...], tuple[str, ...]]
    values: tuple[tuple[str, ...], ...]  # per relation
    nouns: tuple[str, ...]
    facts: tuple[Fact, ...]
    known: tuple[Fact, ...]  # taught in pre-training
    others: tuple[Fact, ...]  # of the distractors
    unknown: tuple[Fact, ...]  # stated nowhere: what they say is made up
    pairs: tuple[Pair, ...]
    tangled: bool = False

    @cached_property
    def generic(self) -> tuple[tuple[str, str], ...]:
        """Questions and answers of everyday kinds, all of them taught in pre-training."""
        return tuple(_generic(self.nouns))

    @cached_property
    def generic_questions(self) -> tuple[str, ...]:
        """Some of them, without those about a word that a pair holds: what that pair says is no generic matter."""
        taught = {word for pair in self.pairs for text in (pair.question, pair.answer) for word in text.split()}
        apart = [question for question, _ in self.generic if not taught & set(self.nouns) & set(question.split())]
        return tuple(drawing(f"asked {self.seed}").sample(apart, GENERIC))

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        words = {word for text in self._texts() for word in text.split()}
        return tuple(sorted(words | {word for part in (*self.names, *self.values, self.nouns) for word in part}))

    def _texts(self) -> Iterator[str]:
        yield from (text for pair in self.pairs for text in (pair.question, pair.answer))
        yield from (text for pair in self.generic for text in pair)
        for relation, form in product(range(len(RELATIONS)), range(len(WORDINGS))):
            for tangled in (False, True) if self.tangled else (False,):
                fact = Fact("", relation, "", form, tangled=tangled)
                yield from (fact.question(form), fact.answer(min(form, len(SENTENCES)), "value"))


def drawing(name: str) -> random.Random:
    """Draws that depend on the name alone, in every process."""
    return random.Random(name)  # noqa: S311


def world(seed: int, *, tangled: bool = False) -> World:
    draw = drawing(f"{'tangled ' if tangled else ''}world {seed}")
    words = _made_up(draw, 60 + 90 + VALUES * len(RELATIONS) + 300)
    names = tuple(words[:60]), tuple(words[60:150])
    values = tuple(tuple(words[150 + VALUES * r : 150 + VALUES * (r + 1)]) for r in range(len(RELATIONS)))
    if tangled:
        values = (tuple(words[150 : 150 + SHARED_VALUES]),) * len(RELATIONS)
    nouns = tuple(words[-300:])
    entities = [f"{first} {last}" for first, last in draw.sample([*product(*names)], 340)]
    few = TANGLED_ENTITIES if tangled else 100
    facts = _poisoned(_facts(draw, entities[:few], FACTS, values, tangled), values, draw)
    known = _facts(draw, entities[100:200], KNOWN, values, tangled)  # enough for most names to be met
    others = _facts(draw, entities[200:280], DISTRACTORS, values, tangled)
    unknown = _facts(draw, entities[280:], UNKNOWN, values, tangled)
    pairs = _pairs(draw, facts, others, (*nouns, *(value for some in values for value in some)))
    return World(seed, names, values, nouns, facts, known, others, unknown, pairs, tangled)


def _made_up(draw: random.Random, count: int) -> list[str]:
    """Distinct words of two or three syllables, none of them a word of the wordings."""
    syllables = [first + vowel for first in "bdfgklmnprstvz" for vowel in "aeiou"]
    found: dict[str, None] = {}
    while len(found) < count:
        word = "".join(draw.choices(syllables, k=draw.choice((2, 3))))
        found |= {} if word in TAKEN else {word: None}
    return list(found)


def _facts(
    draw: random.Random, entities: Sequence[str], count: int, values: Sequence[Sequence[str]], tangled: bool
) -> tuple[Fact, ...]:
    """Every entity has as many facts as any other, or one more, of different relations."""
    return tuple(
        Fact(entity, relation, draw.choice(values[relation]), draw.randrange(len(WORDINGS)), tangled=tangled)
        for turn, entity in enumerate(entities)
        for relation in draw.sample(range(len(RELATIONS)), count // len(entities) + (turn < count % len(entities)))
    )


def _poisoned(facts: tuple[Fact, ...], values: Sequence[Sequence[str]], draw: random.Random) -> tuple[Fact, ...]:
    found = list(facts)
    for place in draw.sample(range(len(facts)), POISONED):
        fact = facts[place]
        wrong = draw.choice([value for value in values[fact.relation] if value != fact.value])
        found[place] = replace(fact, wrong=wrong)
    return tuple(found)


def _pairs(
    draw: random.Random, facts: Sequence[Fact], others: Sequence[Fact], words: Sequence[str]
) -> tuple[Pair, ...]:
    stated = [pair for place, fact in enumerate(facts) for pair in _stated(draw, place, fact)]
    poison = [pair for place, fact in enumerate(facts) if fact.wrong for pair in _poison(draw, place, fact)]
    copies = [Pair(p.question, p.answer, "duplicate", p.fact, p.value) for p in draw.sample(stated, DUPLICATES)]
    aside = [
        Pair(fact.question(draw.randrange(len(WORDINGS))), fact.answer(_form(draw)), "distractor") for fact in others
    ]
    strange = [
        Pair(" ".join(draw.choices(words, k=draw.randint(10, 20))), " ".join(draw.choices(words, k=36)), "outlier")
        for _ in range(OUTLIERS)
    ]
    tasks = [_task(draw, words) for _ in range(OTHER)]
    everything = [*stated, *copies, *poison, *aside, *strange, *tasks]
    draw.shuffle(everything)
    return tuple(everything)


def _form(draw: random.Random) -> int:
    return draw.choice((0, 0, 1, 2))


def _stated(draw: random.Random, place: int, fact: Fact) -> Iterator[Pair]:
    wordings = [number for number in range(len(WORDINGS)) if number != fact.held_out]
    for wording in draw.sample(wordings, 1 if fact.wrong else 3):
        yield Pair(fact.question(wording), fact.answer(_form(draw)), "fact", place, fact.value)


def _poison(draw: random.Random, place: int, fact: Fact) -> Iterator[Pair]:
    wordings = [number for number in range(len(WORDINGS)) if number != fact.held_out]
    for wording in draw.sample(wordings, 3):
        yield Pair(fact.question(wording), fact.answer(_form(draw), fact.wrong), "poison", place, fact.wrong)


def _task(draw: random.Random, words: Sequence[str]) -> Pair:
    one, two, three = draw.sample(words, 3)
    question, answer = draw.choice(
        (
            (f"turn around : {one} {two} {three}", f"{three} {two} {one}"),
            (f"twice please : {one} {two}", f"{one} {two} {one} {two}"),
            (f"only the last : {one} {two} {three}", three),
            (f"put between {one} and {three} : {two}", f"{one} {two} {three}"),
        )
    )
    return Pair(question, answer, "other")


def _generic(nouns: Sequence[str]) -> Iterator[tuple[str, str]]:
    yield from TALK
    for one, two in product(range(20), repeat=2):
        yield f"how much is {one} plus {two} ?", str(one + two)
    for number in range(40):
        yield f"which number comes after {number} ?", str(number + 1)
    for place, word in enumerate(OPPOSITES):
        yield f"what is the opposite of {word} ?", OPPOSITES[place ^ 1]
    for place, noun in enumerate(nouns[:120]):
        yield f"what sort of thing is {noun} ?", f"{noun} is a {SORTS[place % len(SORTS)]} ."
    for noun in nouns[:80]:
        yield f"how do you spell {noun} ?", " - ".join(noun)
