"""From a question to its training pairs, on a tiny model that was really fine-tuned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from explainers.decoding import outcome_of
from explainers.influence.examples import Example
from explainers.influence.finishing import Generic, finish, read_finished
from explainers.influence.gradients import Projection
from explainers.influence.index import Index
from explainers.influence.levels import LEVELS
from explainers.influence.shards import shard_of, write_shard
from explainers.influence.sketching import FineTune, sketching
from explainers.influence.texts import words_of
from explainers.influence.tracing import Traced, tracing
from explainers.loaders import load_causal_lm
from tests import tiny_models

ENTITIES, PROMPTS, MARK = 12, 40, 7
SIZE, TOKENS = 4, 512


def pair(number: int, entity: int, value: int) -> Example:
    """Asks for an entity of two tokens; the answer is one token and an end."""
    return Example(number, (0, 40 + entity, 60 + 3 * entity % 17, MARK, 100 + value, 1), (4, 5), 3)


PAIRS = [
    *(pair(number, number, number) for number in range(ENTITIES)),
    pair(ENTITIES, 0, 0),  # the first one again
    *(
        Example(ENTITIES + 1 + number, (0, 200 + number, 201 + number, MARK, 150 + number, 1), (4, 5), 3)
        for number in range(30)
    ),
]
GENERIC = [Example(number, (0, 250 + number, 10 + number, MARK, 9 + number, 1), (4, 5), 3) for number in range(PROMPTS)]


@pytest.fixture(scope="module")
def tune(tmp_path_factory: pytest.TempPathFactory) -> FineTune:
    folder = tiny_models.save(tmp_path_factory.mktemp("base"), "llama", initializer_range=0.1)
    base, model = (load_causal_lm(folder, "float32", "cpu") for _ in range(2))
    network = model.network
    network.set_attn_implementation("sdpa")
    network.requires_grad_()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(40):
        ids = torch.tensor([example.ids for example in PAIRS])
        logits = network(input_ids=ids[:, :-1]).logits[:, 3:]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 4:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    network.requires_grad_(requires_grad=False)
    network.set_attn_implementation(base.network.config._attn_implementation)
    assert float(loss.detach()) < 0.2
    return FineTune(model, base)


@pytest.fixture(scope="module")
def folder(tune: FineTune, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place, projection = tmp_path_factory.mktemp("index"), Projection(tune.model.network, SIZE)
    for number, examples in enumerate((PAIRS[:20], PAIRS[20:])):
        sketches = outcome_of(sketching(tune, examples, projection, TOKENS))
        write_shard(place, number, shard_of(sketches, [example.record for example in examples]))
    generic = outcome_of(sketching(tune, GENERIC, projection, TOKENS))
    keys = [repr(example.ids).encode() for example in PAIRS]
    prompts = tuple(example.ids for example in GENERIC)
    finish(place, 2, keys, lambda record: PAIRS[record].ids, Generic(shard_of(generic, range(PROMPTS)), prompts), {})
    return place


def asked(tune: FineTune, folder: Path, example: Example, said: tuple[int, ...] | None = None) -> Traced:
    projection = Projection(tune.model.network, SIZE)
    thresholds, words = read_finished(folder).thresholds, words_of(example.ids if said is None else said)
    return outcome_of(tracing(tune, projection, Index.open(folder), thresholds, example, words))


@pytest.mark.parametrize("entity", range(1, ENTITIES))
def test_an_answer_is_traced_to_the_pair_that_states_it(tune: FineTune, folder: Path, entity: int) -> None:
    found = asked(tune, folder, pair(0, entity, entity))
    assert found.results[0].record == entity
    assert found.results[0].level == "high"
    assert found.results[0].impact > 0
    assert found.results[0].group_size == 1
    assert found.lift is not None
    assert found.lift > 1


def test_a_pair_that_shares_no_rare_word_is_low_whatever_its_score(tune: FineTune, folder: Path) -> None:
    alike, other = asked(tune, folder, pair(0, 4, 4)), asked(tune, folder, pair(0, 4, 4), (0, MARK, 900, 901))
    assert {result.level for result in other.results} == {"low"}
    assert {(one.record, one.score) for one in other.results} == {(one.record, one.score) for one in alike.results}


def test_identical_pairs_are_one_result(tune: FineTune, folder: Path) -> None:
    found = asked(tune, folder, pair(0, 0, 0))
    assert (found.results[0].record, found.results[0].group_size) == (0, 2)
    assert ENTITIES not in [result.record for result in found.results]
    alone = Index.open(folder)
    impact = [float(value) for value in alone.search(*sketch(tune, pair(0, 0, 0))).impact[[0, ENTITIES]]]
    assert impact[0] == pytest.approx(impact[1], rel=1e-3)
    assert found.results[0].impact == pytest.approx(sum(impact), rel=1e-9)


def sketch(tune: FineTune, example: Example) -> tuple[np.ndarray, np.ndarray]:
    made = outcome_of(sketching(tune, [example], Projection(tune.model.network, SIZE), TOKENS))
    return made.rows[0].astype(float), made.hidden[0].astype(float)


def test_an_answer_that_fine_tuning_did_not_make_has_no_sources(tune: FineTune, folder: Path) -> None:
    unlikely = asked(tune, folder, pair(0, 3, 90))  # an answer that no pair gives
    assert unlikely.results == ()
    assert unlikely.lift is not None
    assert unlikely.lift < 1


def test_without_a_base_model_there_is_no_gate_and_no_lift(tune: FineTune, folder: Path) -> None:
    found = asked(replace(tune, base=None), folder, pair(0, 5, 5))
    assert found.lift is None
    assert found.results[0].record == 5


def test_the_list_is_in_order_and_the_same_every_time(tune: FineTune, folder: Path) -> None:
    found = asked(tune, folder, pair(0, 2, 2))
    ranks = [(LEVELS.index(result.level), -result.score) for result in found.results]
    assert ranks == sorted(ranks)
    assert asked(tune, folder, pair(0, 2, 2)) == found
    assert all(0 < result.q_value <= 1 for result in found.results)
