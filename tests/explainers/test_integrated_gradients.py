"""Integrated gradients: completeness, captum's numbers, pieces, and an untouched model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from explainers.errors import InvalidRequest, MissingCapability
from explainers.loaders import load_text_classifier
from explainers.methods.integrated_gradients import IntegratedGradientsConfig, attribute
from explainers.sequence_classifier import SequenceClassifier
from explainers.types import Span, Target
from tests.explainers import tiny_classifiers

TEXT = "Anna lives in Oslo. The key"
WORDS = [Span(0, 4), Span(5, 10), Span(11, 13), Span(14, 18), Span(20, 23), Span(24, 27)]
FINE = IntegratedGradientsConfig(steps=200)


@pytest.fixture(scope="module", params=["bert", "llama"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SequenceClassifier:
    return load_text_classifier(tiny_classifiers.save(tmp_path_factory.mktemp("m") / "m", request.param))


def masked_output(model: SequenceClassifier, text: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """The output with every word's tokens replaced, computed apart."""
    encoding = model.encode(text)
    ids, there, types = model.tensors([encoding])
    for place, special in enumerate(encoding.special_tokens_mask):
        if not special:
            ids[0, place] = model.mask
    with torch.inference_mode():
        return np.asarray(model.outputs_of(ids, there, types)[0])


def test_scores_add_up_to_what_the_text_changes(model: SequenceClassifier) -> None:
    found = attribute(model, TEXT, WORDS, FINE)
    change = model.predict([TEXT])[0] - masked_output(model, TEXT)
    total = found.values.sum(axis=1) + np.array(found.facts["outside_pieces"])
    np.testing.assert_allclose(total, change, atol=found.facts["completeness_error"] + 1e-6)
    assert found.facts["completeness_error"] < 1e-3 and np.abs(change).max() > 0.01
    np.testing.assert_allclose(found.values.sum(axis=0), 0, atol=1e-5)  # shares of one
    assert found.base_values is not None
    np.testing.assert_allclose(found.base_values, masked_output(model, TEXT), atol=1e-6)
    assert found.targets == tuple(Target(name) for name in model.outputs)
    assert [feature.name for feature in found.features] == ["Anna", "lives", "in", "Oslo", "The", "key"]
    assert found.facts["baseline"] == "mask"


def test_a_plain_sum_over_the_line_gives_the_same(model: SequenceClassifier) -> None:
    """The definition, step by step, without captum."""
    found, layer = attribute(model, TEXT, WORDS, FINE), model.network.get_input_embeddings()
    ids, there, types = model.tensors([model.encode(TEXT)])
    masked = torch.where(torch.tensor(model.encode(TEXT).special_tokens_mask, dtype=torch.bool)[None], ids, model.mask)
    start, stop, total = layer(masked).detach(), layer(ids).detach(), torch.zeros(ids.shape[1], dtype=torch.float64)
    extra = {"token_type_ids": types} if model.network.config.model_type == "bert" else {}
    for step in range(400):
        point = (start + (step + 0.5) / 400 * (stop - start)).requires_grad_(True)
        logits = model.network(inputs_embeds=point, attention_mask=there, **extra).logits.double()
        (slope,) = torch.autograd.grad(logits.softmax(dim=-1)[0, 1], point)
        total += (slope * (stop - start)).sum(dim=-1)[0].double() / 400
    if model.network.config.model_type == "bert":
        np.testing.assert_allclose(found.values[1].sum() + found.facts["outside_pieces"][1], total.sum(), atol=1e-4)
    first = next(place for place, offset in enumerate(model.encode(TEXT).offsets) if offset == (0, 1) or offset[1] > 0)
    width = sum(1 for start, stop in model.encode(TEXT).offsets if stop > start and stop <= 4)
    assert found.values[1, 0] == pytest.approx(float(total[first : first + width].sum()), abs=1e-4)


def test_pieces_only_gather(model: SequenceClassifier) -> None:
    words, whole = attribute(model, TEXT, WORDS), attribute(model, TEXT, [Span(0, len(TEXT))])
    outside = np.array(words.facts["outside_pieces"])
    np.testing.assert_allclose(words.values.sum(axis=1) + outside, whole.values[:, 0] + whole.facts["outside_pieces"])
    nothing = attribute(model, TEXT, [])
    assert nothing.values.shape == (3, 0)
    assert attribute(model, "", []).facts["completeness_error"] < 1e-9


def test_the_model_is_left_as_it_was(model: SequenceClassifier) -> None:
    before = {name: value.clone() for name, value in model.network.state_dict().items()}

    def stop() -> None:
        raise InterruptedError

    attribute(model, TEXT, WORDS)
    with pytest.raises(InterruptedError):
        attribute(model, TEXT, WORDS, checkpoint=stop)
    for module in model.network.modules():
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        assert not any(getattr(module, name) for name in hooks)
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.network.parameters())
    assert not model.network.training


def test_the_same_question_has_the_same_answer(model: SequenceClassifier) -> None:
    np.testing.assert_array_equal(attribute(model, TEXT, WORDS).values, attribute(model, TEXT, WORDS).values)


def test_without_a_mask_the_padding_token_stands_for_nothing(tmp_path: Path) -> None:
    model = load_text_classifier(tiny_classifiers.save(tmp_path / "m", mask=False))
    assert attribute(model, TEXT, WORDS).facts["baseline"] == "pad"
    bare = SequenceClassifier(model.network, model.tokenizer, "", 64, model.classes, model.kind)
    with pytest.raises(MissingCapability, match="neither a mask nor a padding token"):
        attribute(bare, TEXT, WORDS)
    with pytest.raises(InvalidRequest, match="at least 2 steps"):
        attribute(model, TEXT, WORDS, IntegratedGradientsConfig(steps=1))
