"""Attention with one factor per column: what damping attention to a part of the prompt means, computed exactly.

Every attention layer of a served model calls `suppressed_attention` (through transformers' `AttentionInterface`). What
it does is laid down for one forward pass by an `AttentionPass`, active inside `with attention_pass.active():`. Without
one it raises: no forward pass can go unsuppressed by accident.

A pass works on a *packed row*: the rows `start..S-1` of one or more segments of the same sequence of S positions, one
behind the other. Each segment has its own factors F (S,). Rows before `start` are those of the recorded base pass,
which by causality no change at or after `start` can reach (Deiseroth et al. 2023 for the suppression; the reuse is
exact, not an approximation). The mask (causal, sliding window, chunks, ...) is the model's own: the base pass records
what the model hands to its attention and later passes cut their rows out of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from explainers.errors import MissingCapability

IMPLEMENTATION = "whence_suppressed"
"""The name under which models find this attention function."""


@dataclass(slots=True)
class Segment:
    """Rows `start..S-1` of one variant of the sequence; of these, rows from `scored` on are read afterwards."""

    start: int
    scored: int
    factors: Tensor  # (S,) float64 (a factor of 1e-60 is not yet 0), on the model's device
    biases: dict[tuple[int, int, torch.dtype], Tensor] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return int(self.factors.numel()) - self.start


@dataclass(slots=True)
class Recorded:
    """What the base pass leaves for the others: per layer the keys, values and mask of all S positions."""

    keys: dict[int, Tensor] = field(default_factory=dict)  # (H_kv, S, d)
    values: dict[int, Tensor] = field(default_factory=dict)  # (H_kv, S, d_v)
    masks: dict[int, Tensor] = field(default_factory=dict)  # (S, S) bool, True = visible


class AttentionPass:
    """One forward pass over `segments`, which must be ordered by descending `start`.

    Without `base` it is the base pass itself: one segment from row 0, recorded into `recorded`. In the layer
    `last_layer` only scored rows are computed, since nothing reads the others; its keys and values stay complete.
    """

    def __init__(
        self, segments: Sequence[Segment], *, log_additive: bool, last_layer: int, base: Recorded | None = None
    ) -> None:
        self.segments = segments
        self.log_additive = log_additive
        self.last_layer = last_layer
        self.base = base
        self.recorded = Recorded() if base is None else base
        self.calls: dict[int, int] = {}

    @contextmanager
    def active(self) -> Iterator[None]:
        token = _ACTIVE.set(self)
        try:
            yield
        finally:
            _ACTIVE.reset(token)

    def attend(
        self,
        layer: int,
        query: Tensor,  # (H, R, d)
        key: Tensor,  # (H_kv, R, d)
        value: Tensor,  # (H_kv, R, d_v)
        mask: Tensor | None,  # (S, S) bool, only in the base pass
        kernel: _Kernel,
    ) -> Tensor:  # (R, H, d_v)
        self.calls[layer] = self.calls.get(layer, 0) + 1
        if self.base is None:
            self._record(layer, key, value, mask)
            keys, values = key, value
        else:
            keys, values = self.base.keys[layer].clone(), self.base.values[layer].clone()
        mask = self.recorded.masks[layer]
        # (H_kv, G, R, d): grouped heads share keys without copies
        query = query.reshape(key.shape[0], -1, *query.shape[1:])
        output = value.new_zeros(*query.shape[:3], value.shape[-1])
        offset = 0
        for segment in self.segments:
            if self.base is not None:
                # Descending starts: what an earlier segment wrote lies at or after its own start, so it is overwritten.
                keys[:, segment.start :] = key[:, offset : offset + segment.rows]
                values[:, segment.start :] = value[:, offset : offset + segment.rows]
            first = max(segment.scored, segment.start) if layer == self.last_layer else segment.start
            rows = slice(offset + first - segment.start, offset + segment.rows)
            output[:, :, rows] = kernel(query[:, :, rows], keys, values, mask[first:], segment, first)
            offset += segment.rows
        return output.flatten(0, 1).transpose(0, 1)

    def _record(self, layer: int, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
        if mask is None:
            raise MissingCapability("the architecture hands its attention layers no mask, so suppression is not exact")
        self.recorded.keys[layer], self.recorded.values[layer], self.recorded.masks[layer] = key, value, mask


_ACTIVE: ContextVar[AttentionPass | None] = ContextVar("active_attention_pass", default=None)


@dataclass(frozen=True, slots=True)
class _Kernel:
    """The arithmetic of one layer: fused where torch can add a bias to the scores, in explicit steps where not."""

    scaling: float
    softcap: float | None
    sinks: Tensor | None  # (H_kv, G, 1, 1)
    log_additive: bool

    def __call__(
        self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, segment: Segment, first: int
    ) -> Tensor:
        keys = keys.unsqueeze(1).expand(-1, query.shape[1], -1, -1)  # (H_kv, G, S, d)
        values = values.unsqueeze(1).expand(-1, query.shape[1], -1, -1)
        if self.log_additive and self.softcap is None and self.sinks is None:
            bias = _log_bias(segment, mask, first, query.dtype)
            return scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=self.scaling)
        scores = query @ keys.transpose(-1, -2) * self.scaling  # (H_kv, G, rows, S)
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        scores = scores.float()
        if self.log_additive:
            scores = scores + _log_bias(segment, mask, first, torch.float32)
        else:
            scores = _stretched(scores, mask, segment.factors.float())
        return self._weights(scores).to(values.dtype) @ values

    def _weights(self, scores: Tensor) -> Tensor:
        if self.sinks is None:
            return scores.softmax(dim=-1)
        sinks = self.sinks.float().expand(*scores.shape[:-1], 1)
        return torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1]


def _log_bias(segment: Segment, mask: Tensor, first: int, dtype: torch.dtype) -> Tensor:
    """log F on visible columns, -inf elsewhere, (rows, S); a row that loses all its columns keeps its own diagonal."""
    key = (mask.data_ptr(), first, dtype)
    if key not in segment.biases:
        bias = torch.where(mask, segment.factors.log().float(), -torch.inf)
        if not bool(segment.factors.all()):
            lost = bias.isneginf().all(dim=-1).nonzero().squeeze(-1)
            bias[lost, first + lost] = 0.0
        segment.biases[key] = bias.to(dtype)
    return segment.biases[key]


def _stretched(scores: Tensor, mask: Tensor, factors: Tensor) -> Tensor:
    """Multiplicative form: a + (F - 1)(a - m), m = the row's smallest visible score; masked columns -inf."""
    smallest = scores.masked_fill(~mask, torch.inf).amin(dim=-1, keepdim=True)
    return (scores + (factors - 1) * (scores - smallest)).masked_fill(~mask, -torch.inf)


def suppressed_attention(
    module: nn.Module,
    query: Tensor,  # (1, H, R, d)
    key: Tensor,  # (1, H_kv, R, d)
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function of every served model; see the module's docstring."""
    attention = _ACTIVE.get()
    if attention is None:
        raise RuntimeError("a served model was called outside an attention pass")
    layer = module.layer_idx
    if not isinstance(layer, int):
        raise MissingCapability("an attention layer does not say which layer it is")
    kernel = _Kernel(
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        softcap=softcap,
        sinks=None if s_aux is None else s_aux.reshape(key.shape[1], -1, 1, 1),
        log_additive=attention.log_additive,
    )
    mask = None if attention_mask is None else attention_mask[0, 0]
    return attention.attend(layer, query[0], key[0], value[0], mask, kernel).unsqueeze(0), None


def recorded_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """The model's own mask, complete, for the base pass; later passes cut their rows out of it and need none."""
    attention = _ACTIVE.get()
    if attention is not None and attention.base is not None:
        return None
    mask: Tensor | None = sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})
    return mask


def register() -> None:
    """Make the attention function known to transformers (idempotent)."""
    AttentionInterface.register(IMPLEMENTATION, suppressed_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, recorded_mask)


@contextmanager
def only_rows(module: nn.Module | None, rows: Tensor) -> Iterator[None]:
    """Inside, `module` (position-wise, input (1, R, d)) computes only `rows`; all others come out as zeros."""
    if module is None:
        yield
        return

    def select(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0][:, rows], *inputs[1:])

    def scatter(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        first, *rest = output if isinstance(output, tuple) else (output,)
        whole = first.new_zeros(1, total[0], first.shape[-1])
        whole[:, rows] = first
        return (whole, *rest) if isinstance(output, tuple) else whole

    def measure(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        total[0] = inputs[0].shape[1]

    total = [0]
    hooks = [
        module.register_forward_pre_hook(measure),
        module.register_forward_pre_hook(select),
        module.register_forward_hook(scatter),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
