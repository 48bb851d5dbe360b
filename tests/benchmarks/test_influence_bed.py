"""The test bed of the influence benchmark: its world, its training and its exact gradients."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from benchmarks.influence import kronfluence_oracle
from benchmarks.influence.bed import Bed, Query, about_fact
from benchmarks.influence.gradients import layers, passes
from benchmarks.influence.own import own
from benchmarks.influence.retraining import halves, without
from benchmarks.influence.text import ANSWER, END, Row, row_of, tokenizer_of
from benchmarks.influence.training import (
    RANK,
    Recipe,
    block_linears,
    fine_tuned,
    greedy,
    losses,
    network,
    with_weights,
)
from benchmarks.influence.world import CUES, World, world

SHORT = Recipe(rate=2e-3, batch=4, passes=2)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "tangled"])
def made(request: pytest.FixtureRequest) -> World:
    return world(0, tangled=request.param)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    plain = world(0)
    tokenizer = tokenizer_of(plain.vocabulary)
    return [row_of(tokenizer, pair.question, pair.answer) for pair in plain.pairs[:12]]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return network(len(tokenizer_of(world(0).vocabulary)), seed=0)


def test_set_has_its_parts(made: World) -> None:
    counts = {"fact": 714, "duplicate": 30, "poison": 54, "distractor": 80, "outlier": 40, "other": 100}
    assert Counter(pair.origin for pair in made.pairs) == counts
    assert len(made.facts) == 250
    assert len(set(made.generic_questions)) == 460


def test_world_depends_on_its_seed_alone(made: World) -> None:
    assert world(0, tangled=made.tangled) == made
    assert world(1, tangled=made.tangled).pairs != made.pairs


def test_no_pair_asks_in_the_wording_that_is_held_out(made: World) -> None:
    asked = {pair.question for pair in made.pairs}
    assert not asked & {fact.question(fact.held_out) for fact in made.facts}


def test_poison_stands_three_against_one(made: World) -> None:
    for number, fact in enumerate(made.facts):
        said = Counter(pair.value for pair in made.pairs if pair.fact == number and pair.origin != "duplicate")
        assert said == ({fact.value: 1, fact.wrong: 3} if fact.wrong else {fact.value: 3})


def test_questions_of_a_tangled_fact_share_no_word_for_the_relation() -> None:
    tangled = world(0, tangled=True)
    for pair in tangled.pairs:
        if pair.fact is not None:
            fact = tangled.facts[pair.fact]
            assert CUES[fact.relation][fact.held_out] not in pair.question.split()


def test_row_ends_with_its_answer() -> None:
    plain = world(0)
    tokenizer = tokenizer_of(plain.vocabulary)
    row = row_of(tokenizer, plain.pairs[0].question, plain.pairs[0].answer)
    words = tokenizer.convert_ids_to_tokens(list(row.ids))
    assert words[row.asked] == ANSWER
    assert [words[place] for place in row.answer] == [*plain.pairs[0].answer.split(), END]


def test_losses_are_those_of_each_row_alone(model: LlamaForCausalLM, rows: list[Row]) -> None:
    for row, found in zip(rows, losses(model, rows), strict=True):
        labels = [-100] * row.answer[0] + list(row.ids[row.answer[0] :])
        alone = model(input_ids=torch.tensor([row.ids]), labels=torch.tensor([labels])).loss * len(row.answer)
        torch.testing.assert_close(found, alone.detach())


def test_gradients_are_those_of_autograd(model: LlamaForCausalLM, rows: list[Row]) -> None:
    linears = block_linears(model)
    found = {name: pairs for name, pairs, _ in layers(passes(model, rows), passes(model, rows[:1]))}
    assert len(found) == 21
    for place, row in enumerate(rows[:3]):
        logits = model(input_ids=torch.tensor([row.ids])).logits[0, row.asked : -1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(row.ids[row.answer[0] :]), reduction="sum")
        expected = torch.autograd.grad(loss, [linears[name].weight for name in found])
        for gradient, name in zip(expected, found, strict=True):
            torch.testing.assert_close(found[name][place], gradient, atol=1e-5, rtol=1e-3)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_fine_tuning_is_a_function_of_its_arguments(model: LlamaForCausalLM, rows: list[Row], kind: str) -> None:
    first, again, other = (fine_tuned(model, rows, kind, seed, SHORT) for seed in (0, 0, 1))  # type: ignore[arg-type]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert losses(model, rows, first).sum() < losses(model, rows).sum()
    torch.testing.assert_close(losses(with_weights(model, first), rows), losses(model, rows, first))


def test_an_adapter_changes_block_linears_by_few_ranks(model: LlamaForCausalLM, rows: list[Row]) -> None:
    tuned, linears = fine_tuned(model, rows, "lora", 0, SHORT), block_linears(model)
    for name, before in model.named_parameters():
        change = tuned[name] - before.detach()
        if name.removesuffix(".weight") in linears:
            assert 1 <= torch.linalg.matrix_rank(change, rtol=1e-4) <= RANK
        else:
            assert not change.any()


def test_greedy_answers_are_those_of_one_prompt_alone(model: LlamaForCausalLM, rows: list[Row]) -> None:
    prompts = [list(row.ids[: row.asked + 1]) for row in rows[:4]]
    together = greedy(model, prompts, end=3, longest=4)
    assert together == [greedy(model, [prompt], end=3, longest=4)[0] for prompt in prompts]


def test_halves_are_half_and_the_same_every_time(tmp_path: Path, model: LlamaForCausalLM) -> None:
    plain = world(0)
    made = Bed(0, "full", tmp_path, plain, tokenizer_of(plain.vocabulary), model, model)
    held = halves(made, 3)
    assert held.sum(1).tolist() == [509, 509, 509]
    assert (held[:2] == halves(made, 2)).all()
    assert np.flatnonzero(~without(made, [3, 5])).tolist() == [3, 5]


def test_a_query_has_its_sources_by_what_it_says(tmp_path: Path, model: LlamaForCausalLM) -> None:
    plain = world(0)
    made = Bed(0, "full", tmp_path, plain, tokenizer_of(plain.vocabulary), model, model)
    number, fact = next((number, fact) for number, fact in enumerate(plain.facts) if fact.wrong)
    right, wrong, neither = (
        about_fact(made, number, "who ?", said) for said in (fact.value, f"it is {fact.wrong}", "nothing")
    )
    assert [query.kind for query in (right, wrong, neither)] == ["right", "poison", "wrong"]
    assert {plain.pairs[place].origin for place in wrong.relevant} == {"poison"}
    assert all(plain.pairs[place].value == fact.value for place in right.relevant)
    assert neither.relevant == ()


def test_own_index_finds_the_pair_that_is_asked(tmp_path: Path, model: LlamaForCausalLM) -> None:
    plain = replace(world(0), pairs=world(0).pairs[:40])
    tokenizer = tokenizer_of(world(0).vocabulary)
    untrained = Bed(0, "full", tmp_path, plain, tokenizer, model, model)
    tuned = with_weights(model, fine_tuned(model, untrained.rows, "full", 0, Recipe(rate=2e-3, batch=4, passes=4)))
    made = replace(untrained, tuned=tuned)
    generic = [Query(ask, say, row_of(tokenizer, ask, say), "generic") for ask, say in plain.generic[:20]]
    method = own(made, generic, size=4)
    asked = [Query(pair.question, pair.answer, row, "right") for pair, row in zip(made.pairs, made.rows, strict=True)]
    scores = method.scores(asked)
    assert {each.shape for each in scores.values()} == {(40, 40)}
    assert (scores["ours, list"].argmax(1) == np.arange(40)).mean() > 0.9
    assert method.traced(asked[0]).results[0].record == 0


def test_the_oracle_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["kronfluence_oracle"])
    monkeypatch.setattr(kronfluence_oracle, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install --no-deps kronfluence"):
        kronfluence_oracle.main()
