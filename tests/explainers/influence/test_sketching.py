"""Projected gradients against those of autograd, one example at a time, on many families."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from explainers.errors import MissingCapability
from explainers.influence.examples import Example
from explainers.influence.gradients import Projection, Watch, block_linears, left_out, widths
from explainers.influence.sketching import MOST_GAIN, FineTune, Sketches, sketching
from explainers.language_model import LanguageModel
from explainers.loaders import load_causal_lm
from tests import tiny_models

EXAMPLES = (
    Example(0, (0, 5, 9, 33, 70, 81), (4, 5), 3),
    Example(1, (0, 17, 44, 45, 46, 120, 121, 122, 7, 8), (6, 7, 8, 9), 5),
    Example(2, (0, 200), (1,), 0),
    Example(3, (0, 61, 62, 63, 64, 65, 66, 67, 68), (3, 7, 8), 6),  # two answers in one
)


def loaded(folder: Path, family: str, **changes: float) -> LanguageModel:
    return load_causal_lm(tiny_models.save(folder, family, **changes), "float32", "cpu")


def drawn(tune: FineTune, examples: tuple[Example, ...] = EXAMPLES, *, tokens: int = 64, size: int = 4) -> Sketches:
    work = sketching(tune, examples, Projection(tune.model.network, size), tokens)
    while True:
        try:
            next(work)
        except StopIteration as stop:
            found: Sketches = stop.value
            return found


def losses(network: torch.nn.Module, example: Example) -> torch.Tensor:
    """-log p of each answer token, by a plain forward pass of the one example."""
    former = network.config._attn_implementation
    network.set_attn_implementation("eager")
    try:
        return plain_losses(network, example)
    finally:
        network.set_attn_implementation(former)


def plain_losses(network: torch.nn.Module, example: Example) -> torch.Tensor:
    logits = network(input_ids=torch.tensor([example.ids])).logits[0].float().log_softmax(-1)
    places = torch.tensor(example.answer)
    return -logits[places - 1, torch.tensor(example.ids)[places]]


def autograd_row(tune: FineTune, example: Example, size: int) -> np.ndarray:
    """The projection of the weights' own gradients."""
    network, projection = tune.model.network, Projection(tune.model.network, size)
    with torch.enable_grad():
        network.requires_grad_()
        network.zero_grad()
        found = losses(network, example)
        weights = torch.ones_like(found)
        if tune.base is not None:
            weights = (losses(tune.base.network, example) - found).detach().clamp(0, MOST_GAIN)
        (weights * found).sum().backward()
    parts = []
    for name, part in block_linears(network).items():
        inwards, outwards = projection.sides[name]
        gradient = part.weight.grad if part.weight.grad is not None else torch.zeros_like(part.weight)
        gradient = gradient if isinstance(part, torch.nn.Linear) else gradient.T  # (b, a)
        parts.append((outwards.T @ gradient @ inwards).flatten())
    for model in (tune.model, *([tune.base] if tune.base else [])):
        model.network.zero_grad()
    return torch.cat(parts).detach().numpy()


@pytest.mark.parametrize("family", sorted(tiny_models.FAMILIES))
def test_a_row_is_the_projection_of_the_weights_own_gradients(tmp_path: Path, family: str) -> None:
    tune = FineTune(loaded(tmp_path, family))
    found = drawn(tune)
    for row, example in zip(found.rows, EXAMPLES, strict=True):
        wanted = autograd_row(tune, example, 4)
        np.testing.assert_allclose(row, wanted, atol=1e-4 * np.abs(wanted).max())
    for loss, example in zip(found.losses, EXAMPLES, strict=True):
        assert loss == pytest.approx(float(losses(tune.model.network, example).sum().detach()), rel=1e-5)


def test_tokens_count_by_how_much_likelier_fine_tuning_made_them(tmp_path: Path) -> None:
    base = loaded(tmp_path / "base", "llama")
    model = loaded(tmp_path / "model", "llama")
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    tune = FineTune(model, base)
    found = drawn(tune)
    for row, lift, example in zip(found.rows, found.lifts, EXAMPLES, strict=True):
        wanted = autograd_row(tune, example, 4)
        np.testing.assert_allclose(row, wanted, atol=1e-4 * max(np.abs(wanted).max(), 1e-6))
        gain = losses(base.network, example) - losses(model.network, example)
        assert lift == pytest.approx(float(gain.sum().detach()), abs=1e-4)


def test_neither_company_nor_padding_nor_batches_change_a_row(tmp_path: Path) -> None:
    tune = FineTune(loaded(tmp_path, "llama"))
    together = drawn(tune)
    alone = [drawn(tune, (example,)) for example in EXAMPLES]
    for place, single in enumerate(alone):
        np.testing.assert_allclose(together.rows[place], single.rows[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(together.hidden[place], single.hidden[0], rtol=1e-4, atol=1e-5)
    small = drawn(tune, tokens=1)
    np.testing.assert_allclose(together.rows, small.rows, rtol=1e-4, atol=1e-5)


def test_the_model_is_as_before(tmp_path: Path) -> None:
    model = loaded(tmp_path, "llama")
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    wanted = [p.requires_grad for p in model.network.parameters()]
    attention = model.network.config._attn_implementation
    drawn(FineTune(model))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.network.state_dict().items())
    assert [p.requires_grad for p in model.network.parameters()] == wanted
    assert model.network.config._attn_implementation == attention
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.network.modules())
    assert all(p.grad is None for p in model.network.parameters())


def test_weights_that_are_in_no_linear_layer_are_told_of(tmp_path: Path) -> None:
    assert left_out(loaded(tmp_path / "dense", "llama").network) == 0
    assert left_out(loaded(tmp_path / "gpt2", "gpt2").network) == 0
    network = loaded(tmp_path / "experts", "mixtral").network
    experts = sum(p.numel() for name, p in network.named_parameters() if ".experts." in name)
    assert experts > 0
    assert 0.5 < left_out(network) < 1


def test_positions_in_another_order_are_refused(tmp_path: Path) -> None:
    watch = Watch(Projection(loaded(tmp_path, "llama").network, 4), (2, 5))
    assert watch._by_example(torch.zeros(2, 5, 4), "layer").shape == (2, 5, 4)
    assert watch._by_example(torch.zeros(10, 4), "layer").shape == (2, 5, 4)
    for shape in ((5, 2, 4), (9, 4), (1, 10, 4)):
        with pytest.raises(MissingCapability, match="not separable"):
            watch._by_example(torch.zeros(shape), "layer")


def test_every_linear_layer_of_the_blocks_is_seen_and_no_other(tmp_path: Path) -> None:
    network = loaded(tmp_path, "gpt2").network
    found = block_linears(network)
    assert len(found) == 3 * 4
    assert widths(found["transformer.h.0.attn.c_attn"]) == (32, 96)


def test_tokens_that_the_base_has_not_are_refused(tmp_path: Path) -> None:
    """As where a fine-tune added tokens for its turns."""
    model = loaded(tmp_path / "model", "llama", vocab_size=400)
    base = loaded(tmp_path / "base", "llama", vocab_size=310)
    assert drawn(FineTune(model, base), EXAMPLES).lifts is not None
    with pytest.raises(MissingCapability, match="the base model has 310 tokens"):
        drawn(FineTune(model, base), (*EXAMPLES, Example(4, (0, 350, 9), (2,), 1)))
