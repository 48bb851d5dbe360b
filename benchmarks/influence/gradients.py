"""Exact gradients of single rows with respect to the weights of every linear layer of the blocks, layer by layer.

Written for clarity and for being right, not for size: all activations of the bed are kept (half a gigabyte).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from benchmarks.influence.text import Row, padded
from benchmarks.influence.training import block_linears, token_losses

TOGETHER = 64
"""Rows of a pass."""


@dataclass
class Seen:
    """Inputs (B, S, d_in) and gradients of outputs (B, S, d_out) of one linear layer, batch by batch."""

    inputs: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)

    def per_row(self, order: Tensor) -> Tensor:  # (n, d_out, d_in)
        """Gradient of each row's loss with respect to the layer's weights."""
        parts = [torch.einsum("bso,bsi->boi", *both) for both in zip(self.gradients, self.inputs, strict=True)]
        return torch.cat(parts)[order]

    def tokens(self) -> tuple[Tensor, Tensor]:  # (N, d_in), (N, d_out)
        """Of all positions that the loss depends on through this layer."""
        inputs = torch.cat([part.flatten(0, 1) for part in self.inputs])
        gradients = torch.cat([part.flatten(0, 1) for part in self.gradients])
        used = gradients.abs().amax(1) > 0
        return inputs[used], gradients[used]


@dataclass(frozen=True)
class Passes:
    """What the layers saw of a list of rows."""

    layers: dict[str, Seen]
    order: Tensor  # (n,) where each row stands among the batches, which are sorted by length


def passes(model: LlamaForCausalLM, rows: Sequence[Row]) -> Passes:
    """One forward and backward pass of the summed loss of each row's answer."""
    by_length = sorted(range(len(rows)), key=lambda place: len(rows[place].ids))
    layers = {name: Seen() for name in block_linears(model)}
    handles = [part.register_forward_hook(_keeping(layers[name])) for name, part in block_linears(model).items()]
    try:
        for start in range(0, len(rows), TOGETHER):
            batch = padded([rows[place] for place in by_length[start : start + TOGETHER]])
            token_losses(model, batch).sum().backward()  # type: ignore[no-untyped-call]
    finally:
        for handle in handles:
            handle.remove()
        model.zero_grad(set_to_none=True)
    return Passes(layers, torch.argsort(torch.tensor(by_length)))


def _keeping(seen: Seen) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        seen.inputs.append(arguments[0].detach())
        output.register_hook(seen.gradients.append)  # type: ignore[no-untyped-call]

    return hook


def layers(train: Passes, asked: Passes) -> Iterator[tuple[str, Tensor, Tensor]]:  # name, (n, o, i), (Q, o, i)
    """Gradients of training rows and queries, one layer after the other."""
    for name, seen in train.layers.items():
        yield name, seen.per_row(train.order), asked.layers[name].per_row(asked.order)
