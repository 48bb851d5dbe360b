"""Muon: momentum whose update is made orthogonal, for the 2-D weights inside a transformer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor


def orthogonalise(stack: Tensor, steps: int = 5) -> Tensor:
    """Nearly orthogonal matrices for a stack of matrices, by the quintic Newton-Schulz iteration."""
    wide: Tensor = stack.mT if stack.size(-2) > stack.size(-1) else stack
    wide = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = wide @ wide.mT
        wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
    return wide.mT if stack.size(-2) > stack.size(-1) else wide


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; matrices of one shape are treated together."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply one update to every matrix that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    shapes[weight.shape].append(weight)
            for shape, weights in shapes.items():
                steps = [self._momentum(weight, group["momentum"]) for weight in weights]
                updates = orthogonalise(torch.stack(steps))
                size = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for weight, update in zip(weights, updates, strict=True):
                    weight.mul_(1 - group["lr"] * group["decay"]).add_(update, alpha=-size)

    def _momentum(self, weight: Tensor, momentum: float) -> Tensor:
        """The Nesterov-averaged gradient of one matrix."""
        gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
        average: Tensor = self.state[weight].setdefault("average", torch.zeros_like(weight))
        average.lerp_(gradient, 1 - momentum)
        return gradient.lerp(average, momentum)
