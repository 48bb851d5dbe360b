"""How much the target's log-probability depends on attention to each column, to first order: one pass and its reverse.

Every column k gets a variable of its own, shared by all layers, heads and rows, that stands where its factor stands:
added to the attention scores in the log-additive form, added to the factor in the multiplicative one. One forward pass
with all variables at zero and one backward pass per explained number give the derivative for all columns at once.

Where torch's fused attention serves, the variable enters through one further dimension of queries (1) and keys (the
variable), so that no pass holds scores of all rows and columns for all layers. Elsewhere (soft-capping, sinks,
multiplicative form) the scores are made in explicit steps and made again on the way back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint as recomputed

from explainers.attention_control import AttentionPass, Segment
from explainers.errors import MissingCapability, OutOfMemory
from explainers.language_model import Inputs, LanguageModel, TokenSequence
from explainers.memory import told_alike
from explainers.types import Checkpoint, never_stop

EXTRA = 8
"""Dimensions added to queries and keys for the one that is needed: fused kernels want multiples of eight."""


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Derivatives of the target's log-probability; G = T, or 1 for the sum over the target's tokens."""

    base: NDArray[np.float64]  # (T,), log-probabilities
    gradients: NDArray[np.float64]  # (G, S)
    forwards: int
    backwards: int
    rows: int

    def predicted(
        self, base: NDArray[np.float64], variants: Sequence[NDArray[np.float64]], *, log_additive: bool
    ) -> NDArray[np.float64]:  # (G, F)
        """The fall of log-probability, to first order, when the factors `base` (S,) become each of `variants`."""
        steps = [_step(base, variant, log_additive) for variant in variants]
        return -(self.gradients @ np.array(steps).reshape(len(steps), base.size).T)


def sensitivity(
    model: LanguageModel,
    sequence: TokenSequence,
    factors: NDArray[np.float64],  # (S,)
    *,
    log_additive: bool,
    per_token: bool,
    checkpoint: Checkpoint = never_stop,
) -> Sensitivity:
    """Derivatives at `factors`; `per_token`: one row per target token, by one backward pass each.

    Raises OutOfMemory, and what `checkpoint` raises (it is called before each pass). Neither the model nor any of its
    weights is changed, and no gradient is left behind.
    """
    device = model.device
    change = torch.zeros(sequence.positions, device=device, requires_grad=True)
    attention = SensitivityPass(torch.as_tensor(factors, device=device), change, log_additive=log_additive)
    rows = torch.arange(sequence.first_scored, sequence.positions, device=device)
    try:
        checkpoint()
        logits = model.logits(_tracked(model.inputs(sequence)), rows, attention, differentiable=True).float()
        chosen = logits.gather(-1, torch.tensor(sequence.target, device=device).unsqueeze(-1)).squeeze(-1)
        scores = chosen - logits.logsumexp(dim=-1)  # (T,)
        explained = scores.unbind() if per_token else (scores.sum(),)
        gradients = []
        for output in explained:
            checkpoint()
            with told_alike():
                (gradient,) = torch.autograd.grad(output, change, retain_graph=True)
            gradients.append(gradient.double().cpu().numpy())
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"the gradient of {sequence.positions} positions does not fit into memory") from error
    base = scores.detach().double().cpu().numpy()
    return Sensitivity(base, np.stack(gradients), 1, len(gradients), sequence.positions)


def _tracked(inputs: Inputs) -> Inputs:
    """Inputs that were made without a thought of gradients (an image's embeddings) cannot take part in them."""
    made = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
    return replace(inputs, **{name: t.clone() for name, t in made.items() if t is not None and t.is_inference()})


class SensitivityPass(AttentionPass):
    """One forward pass over all rows in which every column carries `factors` and the variable `change` (S,)."""

    def __init__(self, factors: Tensor, change: Tensor, *, log_additive: bool) -> None:
        super().__init__([Segment(0, 0, factors)], log_additive=log_additive, last_layer=-1)
        self.factors = factors
        self.change = change
        self.biases: dict[int, Tensor] = {}

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, kernel: Any
    ) -> Tensor:  # (R, H, d_v)
        self.calls[layer] = self.calls.get(layer, 0) + 1
        if mask is None:
            raise MissingCapability("the architecture hands its attention layers no mask, so suppression is not exact")
        query = query.reshape(key.shape[0], -1, *query.shape[1:])  # (H_kv, G, S, d)
        keys = key.unsqueeze(1).expand(-1, query.shape[1], -1, -1)
        values = value.unsqueeze(1).expand(-1, query.shape[1], -1, -1)
        output = self._outputs(query, keys, values, mask, kernel)  # (H_kv, G, S, d_v)
        return output.flatten(0, 1).transpose(0, 1)

    def _outputs(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, kernel: Any) -> Tensor:
        if self.log_additive and kernel.softcap is None and kernel.sinks is None:
            return self._fused(query, keys, values, self._bias(mask).to(query.dtype), kernel.scaling)
        output: Tensor = recomputed(self._explicit, query, keys, values, mask, kernel, use_reentrant=False)
        return output

    def _fused(self, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scaling: float) -> Tensor:
        size, width = values.shape[-1], query.shape[-1] + EXTRA
        ones = torch.ones_like(query[..., :1])
        variable = (self.change / scaling).to(keys.dtype)[:, None].expand(*keys.shape[:-1], 1)
        query = pad(torch.cat([query, ones], dim=-1), (0, EXTRA - 1))
        keys = pad(torch.cat([keys, variable], dim=-1), (0, EXTRA - 1))
        values = pad(values, (0, max(0, width - size)))
        output: Tensor = scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=scaling)
        return output[..., :size]

    def _explicit(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, kernel: Any) -> Tensor:
        scores = query @ keys.transpose(-1, -2) * kernel.scaling  # (H_kv, G, S, S)
        if kernel.softcap is not None:
            scores = torch.tanh(scores / kernel.softcap) * kernel.softcap
        scores = scores.float()
        if self.log_additive:
            scores = scores + self._bias(mask) + self.change
        else:
            smallest = scores.masked_fill(~mask, torch.inf).amin(dim=-1, keepdim=True)
            stretch = self.factors.float() + self.change - 1
            scores = (scores + stretch * (scores - smallest)).masked_fill(~mask, -torch.inf)
        if kernel.sinks is not None:
            scores = torch.cat([scores, kernel.sinks.float().expand(*scores.shape[:-1], 1)], dim=-1)
        weights = scores.softmax(dim=-1)[..., : keys.shape[-2]]
        output: Tensor = weights.to(values.dtype) @ values
        return output

    def _bias(self, mask: Tensor) -> Tensor:  # (S, S)
        """log F on visible columns, -inf elsewhere; a row that loses all its columns keeps its own diagonal."""
        if mask.data_ptr() not in self.biases:
            bias = torch.where(mask, self.factors.log().float(), -torch.inf)
            lost = bias.isneginf().all(dim=-1).nonzero().squeeze(-1)
            bias[lost, lost] = 0.0
            self.biases[mask.data_ptr()] = bias
        return self.biases[mask.data_ptr()]


def _step(base: NDArray[np.float64], variant: NDArray[np.float64], log_additive: bool) -> NDArray[np.float64]:  # (S,)
    """How far each column's variable moves. A column that is removed has no logarithm: such a variant moves in factors
    (the derivatives by F and by log F are equal where F is 1), a removed column then by -1."""
    if not log_additive:
        return variant - base
    moved = (variant != base) & (base > 0)
    ratio = np.divide(variant, base, out=np.ones_like(base), where=moved)
    step: NDArray[np.float64] = np.log(ratio) if ratio.all() else ratio - 1
    return step
