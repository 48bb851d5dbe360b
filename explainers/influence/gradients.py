"""Gradients of an answer's loss, projected layer by layer while the backward pass runs.

For a linear layer with inputs X (S, a) and output gradients G (S, b) the gradient of its weights is G^T X. Its
projection from both sides, (G P)^T (X Q) with Gaussian P (b, k) and Q (a, k), is a sum over tokens of what hooks see,
so that no gradient of a weight is ever made: weights stay frozen, and the pass costs no more than one of training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from explainers.errors import MissingCapability
from explainers.influence.blocks import blocks_of
from explainers.seeds import generator
from explainers.undivided import undivided


def block_linears(network: PreTrainedModel) -> dict[str, nn.Module]:
    """The linear layers of the transformer's blocks by name; neither embeddings nor the head."""
    blocks, _ = blocks_of(network)
    parts: dict[str, nn.Module] = dict(network.named_modules())
    return {
        name: part
        for name, part in parts.items()
        if name.startswith(f"{blocks}.") and isinstance(part, nn.Linear | Conv1D)
    }


def widths(linear: nn.Module) -> tuple[int, int]:
    """Input and output width."""
    if isinstance(linear, nn.Linear):
        return linear.in_features, linear.out_features
    weight: Any = linear.weight  # Conv1D keeps it the other way round
    return int(weight.shape[0]), int(weight.shape[1])


def left_out(network: PreTrainedModel) -> float:
    """The share of the blocks' weights that are in no linear layer of their own, as those of packed experts are not."""
    linears = block_linears(network).values()
    seen = {id(parameter) for part in linears for parameter in part.parameters()}
    matrices = [parameter for parameter in blocks_of(network)[1].parameters() if parameter.dim() > 1]
    whole = sum(parameter.numel() for parameter in matrices)
    return sum(parameter.numel() for parameter in matrices if id(parameter) not in seen) / max(1, whole)


@dataclass(frozen=True)
class Projection:
    """The Gaussian matrices of all linear layers: `size` columns a side, scaled to keep lengths on average."""

    network: PreTrainedModel
    size: int
    seed: int = 0

    @cached_property
    def layers(self) -> Mapping[str, nn.Module]:
        return block_linears(self.network)

    @property
    def dimensions(self) -> int:
        """D of a row."""
        return len(self.layers) * self.size**2

    @cached_property
    def sides(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Of each layer Q (a, k) for its inputs and P (b, k) for its output gradients."""
        return {
            name: (self._matrix(name, "in", widths(part)[0]), self._matrix(name, "out", widths(part)[1]))
            for name, part in self.layers.items()
        }

    def _matrix(self, name: str, side: str, width: int) -> Tensor:  # (width, k)
        seed = int.from_bytes(hashlib.sha256(f"{self.seed}/{name}/{side}".encode()).digest()[:8])
        drawn = generator(seed).standard_normal((width, self.size)) / self.size**0.5
        return torch.as_tensor(drawn, dtype=self.network.dtype, device=self.network.device)


class Watch:
    """Projected gradients of the layers that were used in one pass over a batch of B examples."""

    def __init__(self, projection: Projection, shape: tuple[int, int]) -> None:
        self.projection = projection
        self.shape = shape  # (B, S)
        self.features: dict[str, Tensor] = {}  # (B, k, k), float32

    @contextmanager
    def active(self) -> Iterator[None]:
        handles = [part.register_forward_hook(self._hook(name)) for name, part in self.projection.layers.items()]
        try:
            with undivided():
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Any:
        inwards, outwards = self.projection.sides[name]

        def saw(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if not output.requires_grad:
                return
            seen = self._by_example(inputs[0].detach() @ inwards, name)

            def pulled(gradient: Tensor) -> None:
                found = self._by_example(gradient @ outwards, name).transpose(1, 2) @ seen  # (B, k, k)
                known = self.features.get(name)
                self.features[name] = found if known is None else known + found  # a layer may be used twice

            output.register_hook(pulled)  # type: ignore[no-untyped-call]

        return saw

    def _by_example(self, projected: Tensor, name: str) -> Tensor:  # (..., k) -> (B, S, k)
        """Some architectures hand a layer all positions of the batch in one row."""
        if tuple(projected.shape[:-1]) not in (self.shape, (self.shape[0] * self.shape[1],)):
            raise MissingCapability(f"layer {name} does not see each position once: its gradients are not separable")
        return projected.float().reshape(*self.shape, -1)

    @property
    def rows(self) -> Tensor:  # (B, D)
        """All layers side by side; a layer that was not used has zeros."""
        size, device = self.projection.size, self.projection.network.device
        nothing = torch.zeros(self.shape[0], size, size, device=device)
        parts = [self.features.get(name, nothing) for name in self.projection.layers]
        return torch.cat([part.flatten(1) for part in parts], dim=1)


@contextmanager
def frozen(network: PreTrainedModel) -> Iterator[None]:
    """Inside, no weight collects a gradient and dropout is off; afterwards everything is as before."""
    required, training = [p for p in network.parameters() if p.requires_grad], network.training
    try:
        network.requires_grad_(requires_grad=False)
        network.train(mode=False)
        with undivided():
            yield
    finally:
        for parameter in required:
            parameter.requires_grad_()
        network.train(training)
