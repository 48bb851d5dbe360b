"""Attention with one factor per column: what damping attention to a part of the prompt means, computed exactly.

Every attention layer of a served model calls `suppressed_attention` (through transformers' `AttentionInterface`). What
it does is laid down for one forward pass by an `AttentionPass`, active inside `with attention_pass.active():`. Without
one it raises: no forward pass can go unsuppressed by accident.

A pass works on a *packed row*: the rows `start..S-1` of one or more segments of the same sequence of S positions, one
behind the other. Each segment has its own factors F (S,). Rows before `start` are those of the recorded base pass,
which by causality no change at or after `start` can reach (Deiseroth et al. 2023 for the suppression; the reuse is
exact, not an approximation). The mask (causal, sliding window, chunks, ...) is the model's own: the base pass records
what the model hands to its attention and later passes cut their rows out of it.

Rows go to the arithmetic in blocks that see no column behind their last row, so that half a square of scores is never
made and no mask is larger than a block. On a GPU, where a mask rules out the fastest fused kernels, a plain causal mask
is none: log F travels in further dimensions of queries and keys. On a CPU that gained nothing up to 2,000 columns.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from explainers.errors import MissingCapability
from explainers.undivided import undivided

IMPLEMENTATION = "whence_suppressed"
"""The name under which models find this attention function."""

BLOCK = {"cpu": 256, "cuda": 2048}
"""Rows per call of the arithmetic: as few as lose nothing by it."""
UNMASKED = frozenset({"cuda"})
"""Devices whose fused kernels are much faster without a mask."""
PARTS, EXTRA = 3, 8
"""A 32-bit number is exactly the sum of three of 16 bits; fused kernels want head dimensions in steps of eight."""


@dataclass(slots=True)
class Segment:
    """Rows `start..S-1` of one variant of the sequence; of these, rows from `scored` on are read afterwards."""

    start: int
    scored: int
    factors: Tensor  # (S,) float64 (a factor of 1e-60 is not yet 0), on the model's device
    made: dict[Hashable, Any] = field(default_factory=dict)
    """What the arithmetic of several layers has in common."""

    @property
    def rows(self) -> int:
        return int(self.factors.numel()) - self.start

    @property
    def removes(self) -> bool:
        """Whether any column has factor 0."""
        if "removes" not in self.made:
            self.made["removes"] = not bool(self.factors.all())
        return bool(self.made["removes"])


@dataclass(slots=True)
class Recorded:
    """What the base pass leaves for the others: per layer the keys, values and mask of all S positions."""

    keys: dict[int, Tensor] = field(default_factory=dict)  # (H_kv, S, d)
    values: dict[int, Tensor] = field(default_factory=dict)  # (H_kv, S, d_v)
    masks: dict[int, Tensor] = field(default_factory=dict)  # (S, S) bool, True = visible
    queries: Tensor | None = None  # (H, S, d), of the first layer
    plain: dict[int, bool] = field(default_factory=dict)  # address of a mask -> each row sees all columns up to its own

    def add(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
        if mask is None:
            raise MissingCapability("the architecture hands its attention layers no mask, so suppression is not exact")
        self.keys[layer], self.values[layer], self.masks[layer] = key, value, mask
        if layer == 0:
            self.queries = query
        if mask.data_ptr() not in self.plain:
            if bool(mask.triu(1).any()):
                raise MissingCapability("the architecture lets positions see later ones, so suppression is not exact")
            self.plain[mask.data_ptr()] = bool((mask | mask.new_ones(mask.shape).triu(1)).all())


class AttentionPass:
    """One forward pass over `segments`, which must be ordered by descending `start`.

    Without `base` it is the base pass itself: one segment from row 0, recorded into `recorded`. In the layer
    `last_layer` only scored rows are computed, since nothing reads the others; its keys and values stay complete.
    Nothing has been suppressed yet where the first layer begins, so its queries, keys and values are those of the base.
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

    @property
    def knows_first_layer(self) -> bool:
        return self.base is not None and self.base.queries is not None

    @cached_property
    def positions(self) -> Tensor:  # (R,)
        """The position of each row."""
        return torch.cat([torch.arange(s.start, s.start + s.rows, device=s.factors.device) for s in self.segments])

    @contextmanager
    def active(self) -> Iterator[None]:
        token = _ACTIVE.set(self)
        try:
            with undivided():
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
            self.recorded.add(layer, query, key, value, mask)
            keys, values = key, value
        else:
            keys, values = self.base.keys[layer].clone(), self.base.values[layer].clone()
            if layer == 0 and self.base.queries is not None:
                query, key, value = (known[:, self.positions] for known in (self.base.queries, keys, values))
        mask = self.recorded.masks[layer]
        plain = self.recorded.plain[mask.data_ptr()]
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
            output[:, :, rows] = kernel(query[:, :, rows], keys, values, mask[first:], segment, first, plain=plain)
            offset += segment.rows
        return output.flatten(0, 1).transpose(0, 1)


_ACTIVE: ContextVar[AttentionPass | None] = ContextVar("active_attention_pass", default=None)


@dataclass(frozen=True, slots=True)
class _Kernel:
    """The arithmetic of one layer: fused where torch can add a bias to the scores, in explicit steps where not."""

    scaling: float
    softcap: float | None
    sinks: Tensor | None  # (H_kv, G, 1, 1)
    log_additive: bool

    def __call__(
        self,
        query: Tensor,  # (H_kv, G, n, d), of the rows from `first` on
        keys: Tensor,  # (H_kv, C, d)
        values: Tensor,  # (H_kv, C, d_v)
        mask: Tensor,  # (n, C); no row sees a column behind its own
        segment: Segment,
        first: int,
        *,
        plain: bool = False,  # every row sees all columns up to its own
    ) -> Tensor:  # (H_kv, G, n, d_v)
        device = query.device.type
        if plain and device in UNMASKED and self._fused and not segment.removes:
            return self._unmasked(
                query, keys[:, : first + query.shape[2]], values[:, : first + query.shape[2]], segment
            )
        outputs = []
        for start in range(0, query.shape[2], BLOCK[device]):
            rows = slice(start, min(start + BLOCK[device], query.shape[2]))
            seen = slice(first + rows.stop)
            block = (query[:, :, rows], keys[:, seen], values[:, seen], mask[rows, seen])
            outputs.append(self._masked(*block, segment, first + start))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)

    @property
    def _fused(self) -> bool:
        return self.log_additive and self.softcap is None and self.sinks is None

    def _unmasked(self, query: Tensor, keys: Tensor, values: Tensor, segment: Segment) -> Tensor:
        """Plain causal attention with log F in further dimensions: q' = [q, 1, 1, 1], k' = [k, log F in 3 parts]."""
        size = values.shape[-1]
        ones, columns = _extra_dimensions(segment, self.scaling, query.dtype)  # (8,), (S, 8)
        query = torch.cat([query, ones.expand(*query.shape[:-1], -1)], dim=-1)
        keys = torch.cat([keys, columns[: keys.shape[1]].expand(len(keys), -1, -1)], dim=-1)
        width = max(size, keys.shape[-1])
        query, keys, values = (pad(tensor, (0, width - tensor.shape[-1])) for tensor in (query, keys, values))
        output = scaled_dot_product_attention(
            query,
            _grouped(keys, query),
            _grouped(values, query),
            attn_mask=causal_lower_right(query.shape[2], keys.shape[1]),
            scale=self.scaling,
        )
        return output[..., :size]

    def _masked(
        self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, segment: Segment, first: int
    ) -> Tensor:
        keys, values = _grouped(keys, query), _grouped(values, query)
        if self._fused:
            bias = _log_bias(segment, mask, first, query.dtype)
            return scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=self.scaling)
        scores = query @ keys.transpose(-1, -2) * self.scaling  # (H_kv, G, n, C)
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        scores = scores.float()
        if self.log_additive:
            scores = scores + _log_bias(segment, mask, first, torch.float32)
        else:
            scores = _stretched(scores, mask, segment.factors[: mask.shape[1]].float())
        return self._weights(scores).to(values.dtype) @ values

    def _weights(self, scores: Tensor) -> Tensor:
        if self.sinks is None:
            return scores.softmax(dim=-1)
        sinks = self.sinks.float().expand(*scores.shape[:-1], 1)
        return torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1]


def _grouped(tensor: Tensor, query: Tensor) -> Tensor:  # (H_kv, C, d) -> (H_kv, G, C, d), without a copy
    return tensor.unsqueeze(1).expand(-1, query.shape[1], -1, -1)


def _log_bias(segment: Segment, mask: Tensor, first: int, dtype: torch.dtype) -> Tensor:
    """log F on visible columns, -inf elsewhere, (n, C); a row that loses all its columns keeps its own diagonal."""
    key = (mask.data_ptr(), first, dtype)
    if key not in segment.made:
        bias = torch.where(mask, segment.factors[: mask.shape[1]].log().float(), -torch.inf)
        if segment.removes:
            lost = bias.isneginf().all(dim=-1).nonzero().squeeze(-1)
            bias[lost, first + lost] = 0.0
        segment.made[key] = bias.to(dtype)
    found: Tensor = segment.made[key]
    return found


def _extra_dimensions(segment: Segment, scaling: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:  # (8,), (S, 8)
    """What queries and keys get so that their scaled product gains log F, to all the digits it has in 32 bits."""
    key = ("extra", scaling, dtype)
    if key not in segment.made:
        rest = segment.factors.log() / scaling
        columns = rest.new_zeros(len(rest), EXTRA, dtype=dtype)
        for part in range(PARTS):
            columns[:, part] = rest.to(dtype)
            rest = rest - columns[:, part].double()
        segment.made[key] = (torch.arange(EXTRA, device=rest.device) < PARTS).to(dtype), columns
    found: tuple[Tensor, Tensor] = segment.made[key]
    return found


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
def only_rows(modules: Iterable[nn.Module], rows: Tensor) -> Iterator[None]:
    """Inside, `modules` (position-wise, input (1, R, d)) compute only `rows`; all others come out as zeros."""

    def select(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        whole[0] = inputs[0].shape[1]
        return (inputs[0][:, rows], *inputs[1:])

    def scatter(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        first, *rest = output if isinstance(output, tuple) else (output,)
        found = first.new_zeros(1, whole[0], first.shape[-1])
        found[:, rows] = first
        return (found, *rest) if isinstance(output, tuple) else found

    whole = [0]
    hooks = []
    with undivided():
        try:
            for module in modules:
                hooks += [module.register_forward_pre_hook(select), module.register_forward_hook(scatter)]
            yield
        finally:
            for hook in hooks:
                hook.remove()
