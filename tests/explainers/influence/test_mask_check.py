"""The mask that a model was really trained with is found by the losses that its training recorded."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from explainers.influence.examples import Example, Mask
from explainers.influence.mask_check import MaskCheck, check_mask, last_loss, sampled
from explainers.influence.passes import plain_attention, token_log_probs
from explainers.influence.records import BadLines, Record
from explainers.influence.rendering import render
from explainers.language_model import LanguageModel
from tests.explainers.influence.chats import TEMPLATES, chatty, talk

NAMES, TOWNS = ["Anna", "Ben"], ["Oslo", "Rome", "Norway", "a red box"]
RECORDS = tuple(
    talk(f"Where is {a}?", f"{a} lives in {b}.", f"And {b}?", f"{b} is the key of {a}.", line=line)
    for line, (a, b) in enumerate(((a, b) for a in NAMES for b in TOWNS), 1)
)
STEPS = 60
TRAINED = {Mask(): Mask("all"), Mask(end=False): Mask(), Mask("last_assistant"): Mask(), Mask("all"): Mask()}
"""Masks of trainings, each with another that is told apart from it."""


@pytest.fixture(scope="module")
def chatting(llama: LanguageModel) -> LanguageModel:
    return chatty(llama, "byte-level", TEMPLATES["chatml"])


def trained(model: LanguageModel, mask: Mask) -> tuple[LanguageModel, dict[str, Any]]:
    """`model` fine-tuned on the records under `mask` with the network's own loss, and what a trainer writes down."""
    model = replace(model, network=deepcopy(model.network))
    whole = {example.record: example.ids for example in render(model, RECORDS, Mask("all"))}
    labels = {record: [-100] * len(ids) for record, ids in whole.items()}
    for example in render(model, RECORDS, mask):
        for position in example.answer:
            labels[example.record][position] = example.ids[position]
    optimiser = torch.optim.AdamW(model.network.requires_grad_(requires_grad=True).parameters(), lr=3e-3)
    slower = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, STEPS)
    history = []
    with plain_attention(model):
        for step in range(STEPS):
            loss = _loss(model, list(whole.values()), list(labels.values()))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            slower.step()
            history.append({"step": step, "loss": loss.item()})
    model.network.requires_grad_(requires_grad=False)
    return model, {"log_history": [*history, {"step": STEPS, "eval_loss": 9.5}, {"train_loss": 3.0}]}


def _loss(model: LanguageModel, ids: list[tuple[int, ...]], labels: list[list[int]]) -> Any:
    """The network's own, of all of them: the mean over all tokens with a label."""
    width, network = max(map(len, ids)), model.network
    padded = torch.tensor([[*own, *[0] * (width - len(own))] for own in ids])
    read = torch.tensor([[1] * len(own) + [0] * (width - len(own)) for own in ids])
    wanted = torch.tensor([own + [-100] * (width - len(own)) for own in labels])
    return network(input_ids=padded, attention_mask=read, labels=wanted).loss


def checked(model: LanguageModel, records: tuple[Record, ...], chosen: Mask, state: dict[str, Any] | None) -> MaskCheck:
    def scores(examples: Any) -> list[NDArray[np.float64]]:
        return token_log_probs(model, examples)

    return check_mask(chosen, lambda mask: render(model, records, mask), scores, state)


@pytest.mark.parametrize("mask", TRAINED, ids=str)
def test_the_mask_of_the_training_is_found(chatting: LanguageModel, mask: Mask) -> None:
    model, state = trained(chatting, mask)
    right = checked(model, RECORDS, mask, state)
    assert right.best == right.chosen == mask
    assert right.warnings == ()
    assert right.evaluated == 9.5
    wrong = checked(model, RECORDS, TRAINED[mask], state)
    assert wrong.best == mask and len(wrong.warnings) == 1
    assert f"({mask.loss}, end {'in' if mask.end else 'out'})" in wrong.warnings[0].partition("nearest is")[2]
    far = checked(chatting, RECORDS, mask, state)
    assert any("another model was trained" in warning for warning in far.warnings)


def test_losses_are_means_over_the_tokens_of_each_mask(chatting: LanguageModel) -> None:
    found = checked(chatting, RECORDS, Mask(), None)
    assert found.candidates[0].mask == Mask()
    assert len({candidate.mask for candidate in found.candidates}) == 6
    for candidate in found.candidates:
        examples = render(chatting, RECORDS, candidate.mask)
        expected = -np.concatenate(token_log_probs(chatting, examples)).mean()
        assert candidate.loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (None, "there is no trainer_state.json"),
        ({}, "no loss history"),
        ({"log_history": []}, "no loss history"),
        ({"log_history": [{"eval_loss": 1.0}, {"loss": "nan"}, {"loss": math.nan}, 3]}, "no loss history"),
        ({"log_history": "?"}, "no loss history"),
    ],
)
def test_what_cannot_be_verified_is_a_warning(
    chatting: LanguageModel, state: dict[str, Any] | None, words: str
) -> None:
    found = checked(chatting, RECORDS[:2], Mask("last_assistant"), state)
    assert found.best == Mask("last_assistant") and found.recorded is None
    assert len(found.warnings) == 1
    assert words in found.warnings[0] and "not verified" in found.warnings[0]


def test_a_mask_that_cannot_be_applied_is_no_candidate(chatting: LanguageModel) -> None:
    """Thoughts that are only rendered before the last answer: earlier ones have no tokens of their own."""
    source = TEMPLATES["chatml"].replace(
        "{{ m.content }}", "{% if m.role == 'assistant' and loop.last %}!{% endif %}{{ m.content }}"
    )
    model = chatty(chatting, "byte-level", source)
    found = checked(model, RECORDS[:3], Mask("last_assistant"), {"log_history": [{"loss": 5.0}]})
    losses = {candidate.mask: candidate.loss for candidate in found.candidates}
    assert losses[Mask()] is None and losses[Mask("all")] is not None
    with pytest.raises(BadLines):
        checked(model, RECORDS[:3], Mask(), None)


def test_the_last_loss_is_the_mean_of_the_last_tenth() -> None:
    history: list[Any] = [{"loss": float(step)} for step in range(20)]
    assert last_loss({"log_history": history}, "loss") == 18.5
    assert last_loss({"log_history": history[:3]}, "loss") == 2.0
    assert last_loss({"log_history": [*history, {"loss": math.inf}, {"loss": True}]}, "loss") == 18.5


def test_a_sample_is_spread_over_the_file() -> None:
    assert sampled(RECORDS, 3) == (RECORDS[0], RECORDS[4], RECORDS[7])
    assert sampled(RECORDS, 99) == RECORDS
    assert sampled(RECORDS[:1]) == RECORDS[:1]


def test_the_tokens_of_a_sample_are_scored_once(chatting: LanguageModel) -> None:
    asked: list[Example] = []

    def scores(examples: Any) -> list[NDArray[np.float64]]:
        asked.extend(examples)
        return token_log_probs(chatting, examples)

    check_mask(Mask(), lambda mask: render(chatting, RECORDS, mask), scores, None)
    assert len(asked) == len(RECORDS)
