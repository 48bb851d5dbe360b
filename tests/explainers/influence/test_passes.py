"""Scores of answers in padded batches: those of one plain forward pass at a time, on every family."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from explainers.attention_control import IMPLEMENTATION
from explainers.continuation import turning_point
from explainers.errors import MissingCapability, OutOfMemory
from explainers.influence import passes
from explainers.influence.examples import Example
from explainers.influence.passes import (
    Batch,
    answer_pass,
    batch_of,
    batches,
    middle_layer,
    plain_attention,
    token_log_probs,
)
from explainers.language_model import LanguageModel
from explainers.loaders import load_causal_lm, load_image_text_lm
from tests import tiny_models


def drawn(count: int, longest: int = 30, vocabulary: int = 298) -> list[Example]:
    """Examples of 2 to `longest` tokens; every other one is scored at scattered positions."""
    random = np.random.default_rng(count)
    examples = []
    for record in range(count):
        length = int(random.integers(2, longest + 1))
        first = int(random.integers(1, length))
        answer = tuple(range(first, length))[:: 1 + record % 2]
        ids = tuple(int(token) for token in random.integers(0, vocabulary, length))
        examples.append(Example(record, ids, answer, first - 1))
    return examples


def alone(model: LanguageModel, example: Example) -> tuple[np.ndarray[Any, Any], torch.Tensor]:
    """The same by the network's own forward over one example, all logits made; and its two states."""
    with torch.inference_mode(), plain_attention(model):
        ids = torch.tensor([example.ids], device=model.device)
        # A copy: transformers leaves hooks behind in a network that was asked for its hidden states.
        output: Any = deepcopy(model.network)(input_ids=ids, use_cache=False, output_hidden_states=True)
    scores = output.logits[0].double().log_softmax(dim=-1)
    found = scores[[at - 1 for at in example.answer], list(example.targets)].cpu().numpy()
    places = [place - 1 for place in example.answer]
    middle, last = output.hidden_states[middle_layer(model)][0], output.hidden_states[-1][0]
    return found, torch.stack([middle[example.asked], last[places].mean(dim=0)])


def test_batches_score_like_single_passes_on_every_family(any_model: LanguageModel) -> None:
    examples = drawn(11)
    found = token_log_probs(any_model, examples, token_budget=120)
    assert len(list(batches(any_model, examples, 120))) > 1
    for example, scores in zip(examples, found, strict=True):
        np.testing.assert_allclose(scores, alone(any_model, example)[0], atol=2e-4)


def test_states_are_those_of_the_question_and_of_the_answer(any_model: LanguageModel) -> None:
    examples = drawn(5)
    with torch.inference_mode(), plain_attention(any_model):
        answers = answer_pass(any_model, batch_of(any_model, examples))
    states = torch.stack([answers.questions, answers.replies], dim=1)
    for example, state in zip(examples, states, strict=True):
        torch.testing.assert_close(state, alone(any_model, example)[1], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_texts_of_models_that_also_read_images(family: str, tmp_path: Path) -> None:
    model = load_image_text_lm(tiny_models.save_image_text(tmp_path / family, family))
    examples = drawn(6)
    for example, scores in zip(examples, token_log_probs(model, examples), strict=True):
        np.testing.assert_allclose(scores, alone(model, example)[0], atol=2e-4)


@pytest.mark.parametrize(
    ("family", "scaling"),
    [
        ("gemma2", {"final_logit_softcapping": 2.0}),
        ("cohere", {"logit_scale": 0.3}),
        ("granite", {"logits_scaling": 4.0}),
    ],
)
def test_what_an_architecture_does_to_its_logits_is_kept(
    family: str, scaling: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tiny_models.FAMILIES, "granite", tiny_models.GROUPED)
    model = load_causal_lm(tiny_models.save(tmp_path / "scaled", family, **scaling))
    unscaled: dict[str, Any] = dict.fromkeys(scaling, 1.0)
    other = load_causal_lm(tiny_models.save(tmp_path / "other", family, **unscaled))
    examples = drawn(4)
    for example, scores, moved in zip(
        examples, token_log_probs(model, examples), token_log_probs(other, examples), strict=True
    ):
        np.testing.assert_allclose(scores, alone(model, example)[0], atol=2e-4)
        assert np.abs(scores - moved).max() > 0.01


def test_the_order_and_the_company_of_examples_do_not_matter(llama: LanguageModel) -> None:
    examples = drawn(9)
    together = token_log_probs(llama, examples)
    backwards = token_log_probs(llama, examples[::-1], token_budget=1)[::-1]
    for one, other in zip(together, backwards, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_batches_hold_every_example_once_within_the_budget(llama: LanguageModel) -> None:
    examples = drawn(40)
    found = list(batches(llama, examples, 100))
    assert sorted(index for batch in found for index in batch) == list(range(40))
    assert all(len(batch) * max(len(examples[index].ids) for index in batch) <= 100 for batch in found)
    assert list(batches(llama, examples, 1)) == [[index] for batch in found for index in batch]
    assert list(batches(llama, [], 100)) == []


def test_few_logits_are_made_at_once(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "LOGITS", 40 * llama.vocabulary_size)
    examples = drawn(12)
    for batch in batches(llama, examples, 10_000):
        assert len(batch) == 1 or sum(len(examples[index].answer) for index in batch) <= 40


def test_examples_on_both_sides_of_a_turning_point_are_read_apart(tmp_path: Path) -> None:
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 10000.0}
    places = {**scaling, "original_max_position_embeddings": 16}
    overrides: dict[str, Any] = {"rope_parameters": places, "original_max_position_embeddings": 16}
    model = load_causal_lm(tiny_models.save(tmp_path / "phi3", "phi3", **overrides))
    assert turning_point(model) == 16
    examples = drawn(12)
    for example, scores in zip(examples, token_log_probs(model, examples), strict=True):
        np.testing.assert_allclose(scores, alone(model, example)[0], atol=2e-4)


def test_a_batch_that_does_not_fit_is_halved(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def tight(model: LanguageModel, batch: Batch) -> passes.Answers:
        if len(batch.counts) > 2:
            raise torch.OutOfMemoryError("no")
        return answer_pass(model, batch)

    examples = drawn(7)
    roomy = token_log_probs(llama, examples)
    monkeypatch.setattr(passes, "answer_pass", tight)
    for one, other in zip(token_log_probs(llama, examples), roomy, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_an_example_that_does_not_fit_is_an_error(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> passes.Answers:
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(passes, "answer_pass", full)
    with pytest.raises(OutOfMemory, match="an example of"):
        token_log_probs(llama, drawn(3))


def test_the_model_is_left_as_it_was(llama: LanguageModel) -> None:
    def stopped() -> None:
        raise TimeoutError

    before = {name: tensor.clone() for name, tensor in llama.network.state_dict().items()}
    token_log_probs(llama, drawn(5))
    with pytest.raises(TimeoutError):
        token_log_probs(llama, drawn(5), checkpoint=stopped)
    assert llama.network.config._attn_implementation == IMPLEMENTATION
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in llama.network.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in llama.network.state_dict().items())
    assert not llama.network.training


def test_without_one_output_layer_nothing_is_scored(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(llama.network), "get_output_embeddings", lambda self: None)
    with pytest.raises(MissingCapability, match="no output layer"):
        token_log_probs(llama, drawn(2))
