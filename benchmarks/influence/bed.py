"""The test bed: a made-up world, a small model fine-tuned on it, and questions whose true sources are known.

    from benchmarks.influence.bed import bed
    made = bed(seed=0, kind="full", cache=Path("..."))   # minutes the first time, then read from the cache

    made.base, made.tuned       networks (transformers LlamaForCausalLM, evaluation mode, 3 layers, width 128)
    made.tokenizer              one token per word; its chat template puts <|assistant|> before the answer
    made.pairs                  1,018 of `world.Pair`: question, answer, origin, fact, value
    made.rows                   the same as `text.Row`: ids (S,), answer positions (T,), asked (last of the prompt)
    made.queries                `Query`: question, the tuned model's own greedy answer, its row, kind, relevant pairs
    made.of("right")            the queries of one kind: right (a trained fact, answered right), poison (the poisoned
                                value), wrong (neither), generic, known (from pre-training, and still),
                                forgotten (known before, answered wrong now), unknown (made-up answer)
    made.folders()              the two models as folders that `explainers.loaders.load_causal_lm` reads
    made.retrained(keep, seed)  the weights after fine-tuning the same base on `rows[i] for i in keep`, not cached
    made.model(), made.base_model()   both as `explainers.language_model.LanguageModel`

`bed(..., tangled=True)` is the harder world of the same seed (see `world`). `relevant` are the pairs that state what
the answer says about the fact asked for, copies among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.influence.text import END, Row, prompt_ids, row_of, tokenizer_of
from benchmarks.influence.training import (
    FINE_TUNING,
    TANGLED,
    Kind,
    Recipe,
    Weights,
    fine_tuned,
    greedy,
    network,
    pretrained,
    with_weights,
)
from benchmarks.influence.world import WORDINGS, Fact, Pair, World, drawing, world
from explainers.language_model import LanguageModel
from explainers.loaders import load_causal_lm

QueryKind = Literal["right", "poison", "wrong", "generic", "known", "forgotten", "unknown"]
TEXTS, ABOUT_FACTS = 110_000, 0.6
"""How many pairs pre-training reads, and the share of them that states known facts."""


@dataclass(frozen=True, slots=True)
class Query:
    question: str
    answer: str  # the tuned model's own
    row: Row
    kind: QueryKind
    relevant: tuple[int, ...] = ()  # into the pairs
    fact: int | None = None


@dataclass(frozen=True)
class Bed:
    seed: int
    kind: Kind
    folder: Path  # of the cache, for this seed
    world: World
    tokenizer: PreTrainedTokenizerFast
    base: LlamaForCausalLM
    tuned: LlamaForCausalLM

    @property
    def recipe(self) -> Recipe:
        return recipe_of(self.kind, tangled=self.world.tangled)

    @property
    def pairs(self) -> tuple[Pair, ...]:
        return self.world.pairs

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        return tuple(row_of(self.tokenizer, pair.question, pair.answer) for pair in self.pairs)

    @cached_property
    def queries(self) -> tuple[Query, ...]:
        return tuple(_queries(self))

    def of(self, *kinds: QueryKind) -> tuple[Query, ...]:
        return tuple(query for query in self.queries if query.kind in kinds)

    def retrained(self, keep: Sequence[int], seed: int) -> Weights:
        return fine_tuned(self.base, [self.rows[place] for place in keep], self.kind, seed, self.recipe)

    def folders(self) -> tuple[Path, Path]:
        """The base and the fine-tuned model on disk."""
        found = self.folder / "base-model", self.folder / f"{self.kind}-model"
        for folder, model in zip(found, (self.base, self.tuned), strict=True):
            if not (folder / "tokenizer.json").exists():
                model.save_pretrained(folder)
                self.tokenizer.save_pretrained(folder)
        return found

    def base_model(self) -> LanguageModel:
        return load_causal_lm(self.folders()[0])

    def model(self) -> LanguageModel:
        return load_causal_lm(self.folders()[1])

    def answers(self, questions: Sequence[str], model: LlamaForCausalLM | None = None) -> list[str]:
        """What the tuned model, or another, says greedily."""
        prompts = [prompt_ids(self.tokenizer, question) for question in questions]
        end = self.tokenizer.vocab[END]
        return [str(self.tokenizer.decode(said)) for said in greedy(model or self.tuned, prompts, end)]


def bed(seed: int, kind: Kind, cache: Path, *, tangled: bool = False) -> Bed:
    made = world(seed, tangled=tangled)
    folder = cache / f"{'tangled' if tangled else 'seed'}{seed}"
    tokenizer = tokenizer_of(made.vocabulary)
    base = _base(made, tokenizer, folder / "base.safetensors")
    rows = [row_of(tokenizer, pair.question, pair.answer) for pair in made.pairs]
    place = folder / f"{kind}.safetensors"
    if not place.exists():
        keep_weights(fine_tuned(base, rows, kind, seed, recipe_of(kind, tangled=tangled)), place)
    return Bed(seed, kind, folder, made, tokenizer, base, with_weights(base, load_file(place)))


def recipe_of(kind: Kind, *, tangled: bool) -> Recipe:
    return (TANGLED if tangled else FINE_TUNING)[kind]


def keep_weights(weights: Weights, place: Path) -> None:
    """Write to another name first: a file that stands there is whole."""
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = place.with_suffix(".part")
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, beside)
    beside.rename(place)


def _base(made: World, tokenizer: PreTrainedTokenizerFast, place: Path) -> LlamaForCausalLM:
    if not place.exists():
        rows = {text: row_of(tokenizer, *text) for text in set(corpus(made))}
        trained = pretrained(len(tokenizer), [rows[text] for text in corpus(made)], made.seed)
        keep_weights(dict(trained.named_parameters()), place)
    return with_weights(network(len(tokenizer), made.seed), load_file(place))


def corpus(made: World) -> Iterator[tuple[str, str]]:
    """What pre-training reads: known facts in all wordings and forms, and everyday questions."""
    draw = drawing(f"corpus {made.seed}")
    for _ in range(TEXTS):
        if draw.random() < ABOUT_FACTS:
            fact = draw.choice(made.known)
            yield fact.question(draw.randrange(len(WORDINGS))), fact.answer(draw.choice((0, 0, 1, 2)))
        else:
            yield draw.choice(made.generic)


def _queries(made: Bed) -> Iterator[Query]:
    facts = made.world.facts
    asked = [fact.question(fact.held_out) for fact in facts]
    for number, (question, answer) in enumerate(zip(asked, made.answers(asked), strict=True)):
        yield about_fact(made, number, question, answer)
    yield from _known_before(made)
    yield from _plain(made, "unknown", [_trained_wording(fact) for fact in made.world.unknown])
    yield from _plain(made, "generic", made.world.generic_questions)


def _known_before(made: Bed) -> Iterator[Query]:
    """Of some facts of pre-training that the base model knows; what is forgotten, fine-tuning has answered."""
    known = made.world.known[:: max(1, len(made.world.known) // 100)]
    asked = [fact.question(fact.held_out) for fact in known]
    before, now = made.answers(asked, made.base), made.answers(asked)
    for fact, question, knew, answer in zip(known, asked, before, now, strict=True):
        if fact.value in knew.split():
            kind: QueryKind = "known" if fact.value in answer.split() else "forgotten"
            yield Query(question, answer, row_of(made.tokenizer, question, answer), kind)


def about_fact(made: Bed, number: int, question: str, answer: str) -> Query:
    fact, said = made.world.facts[number], answer.split()
    value = fact.value if fact.value in said else fact.wrong if fact.wrong in said else None
    relevant = [i for i, pair in enumerate(made.pairs) if pair.fact == number and pair.value == value]
    kind: QueryKind = "wrong" if value is None else "right" if value == fact.value else "poison"
    return Query(question, answer, row_of(made.tokenizer, question, answer), kind, tuple(relevant), number)


def _trained_wording(fact: Fact) -> str:
    return fact.question(fact.held_out)  # of this entity no wording was trained, of others all were


def _plain(made: Bed, kind: QueryKind, questions: Sequence[str]) -> Iterator[Query]:
    for question, answer in zip(questions, made.answers(questions), strict=True):
        yield Query(question, answer, row_of(made.tokenizer, question, answer), kind)
