"""Reading on behind a prompt, one token of each branch at a time, while attention to its columns is damped.

Context: a generated token must see the prompt as `/evaluate` and `/explain` say it does, controls and the model's own
masks included, and the attention of served models has no cache of its own. Decision: one pass over the prompt and a
block of placeholders records keys, values and masks of every layer. Causality keeps the prompt's rows exact, and each
token that is read later takes the place of the placeholder in its column. When the block is full, a pass without
attention records the masks of one twice as long. Branches go side by side, one row each, and share what was recorded
of the prompt. Consequence: a step costs one row per branch; masks take memory that grows with the square of the length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from explainers.attention_control import AttentionPass, Recorded, Segment
from explainers.language_model import Inputs, LanguageModel, TokenSequence
from explainers.types import Checkpoint

FIRST_BLOCK = 64
"""Placeholders behind the prompt in the first pass."""

Kernel: TypeAlias = Callable[..., Tensor]
"""The arithmetic of one layer: query, keys, values, mask, segment, first row -> what the rows read."""


@dataclass(slots=True)
class Branch:
    """The tokens that were read behind the prompt: the factors, keys and values of their columns."""

    factors: list[float] = field(default_factory=list)
    keys: dict[int, Tensor] = field(default_factory=dict)  # per layer (H_kv, room, d), the first len(factors) in use
    values: dict[int, Tensor] = field(default_factory=dict)  # per layer (H_kv, room, d_v)


@dataclass(slots=True)
class _Columns:
    """Of one layer: the prompt's keys and values, room behind them for those of one branch, and the mask."""

    keys: Tensor  # (H_kv, C, d)
    values: Tensor  # (H_kv, C, d_v)
    mask: Tensor  # (C, C) bool, True = visible


class Continuation:
    """One prompt of P positions, and the passes that go on behind it for at most `longest` tokens."""

    def __init__(
        self,
        model: LanguageModel,
        sequence: TokenSequence,  # whose target is one placeholder
        factors: NDArray[np.float64],  # (P,)
        longest: int,
        *,
        log_additive: bool,
        checkpoint: Checkpoint,
    ) -> None:
        self.model, self.sequence, self.factors = model, sequence, factors
        self.log_additive, self.checkpoint = log_additive, checkpoint
        self.prompt = sequence.positions
        self.most = self.prompt + longest
        self.layers: dict[int, _Columns] = {}
        self.capacity = min(self.most, self.prompt + FIRST_BLOCK)
        self.inputs = self._inputs()

    def read_prompt(self, first: int) -> Tensor:  # (P - first, V)
        """Logits at the prompt's rows from `first` on; comes before any `read`."""
        self.checkpoint()
        factors = torch.ones(self.capacity, dtype=torch.float64, device=self.model.device)
        factors[: self.prompt] = torch.as_tensor(self.factors)
        attention = AttentionPass(
            [Segment(0, first, factors)], log_additive=self.log_additive, last_layer=self.model.layers - 1
        )
        rows = torch.arange(first, self.prompt, device=self.model.device)
        logits = self.model.logits(self.inputs, rows, attention)
        seen = attention.recorded
        with torch.inference_mode():
            self.layers = {
                layer: _Columns(keys.contiguous(), seen.values[layer].contiguous(), seen.masks[layer])
                for layer, keys in seen.keys.items()
            }
        return logits

    def read(self, tokens: Sequence[tuple[Branch, int, float]]) -> Tensor:  # (n, V)
        """Logits behind one more token of each branch, given with the factor of its column.

        All branches must have the same length.
        """
        row = self.prompt + len(tokens[0][0].factors)
        if row >= self.capacity:
            self._extend()
        self.checkpoint()
        for branch, _, factor in tokens:
            branch.factors.append(factor)
        branches, ids, _ = zip(*tokens, strict=True)
        attention = _Step(self, branches)
        rows = torch.arange(len(tokens), device=self.model.device)
        return self.model.logits(self._rows(ids, row), rows, attention)

    def _rows(self, ids: tuple[int, ...], row: int) -> Inputs:
        """What the network reads at position `row` of each branch."""
        plain = self.model.inputs(TokenSequence((), ids, self.sequence.target, (), ()))
        positions = self.inputs.at(torch.tensor([row] * len(ids), device=self.model.device)).positions
        return replace(plain, positions=positions)

    def _inputs(self) -> Inputs:
        """The prompt and placeholders up to the capacity."""
        placeholders = self.sequence.target * (self.capacity - self.prompt + 1)
        return self.model.inputs(replace(self.sequence, target=placeholders))

    def _extend(self) -> None:
        """Makes room for twice as many tokens behind the prompt."""
        self.checkpoint()
        self.capacity = min(self.most, self.prompt + 2 * (self.capacity - self.prompt))
        self.inputs = self._inputs()
        masks = _MaskPass()
        self.model.logits(self.inputs, torch.tensor([0], device=self.model.device), masks)
        with torch.inference_mode():
            for layer, columns in self.layers.items():
                columns.keys = _wider(columns.keys, self.prompt, self.capacity)
                columns.values = _wider(columns.values, self.prompt, self.capacity)
                columns.mask = masks.recorded.masks[layer]


def turning_point(model: LanguageModel) -> int | None:
    """The length up to which a model places tokens in one way, and beyond which, all of them, in another (LongRoPE).

    Keys that were recorded on one side of it are wrong on the other.
    """
    places: dict[str, Any] = getattr(model.network.config.get_text_config(), "rope_parameters", None) or {}
    kinds = [places, *(kind for kind in places.values() if isinstance(kind, dict))]  # one for each kind of layer
    turns = [kind["original_max_position_embeddings"] for kind in kinds if kind.get("rope_type") == "longrope"]
    return min(turns, default=None)


class _Step(AttentionPass):
    """One row per branch, each behind the prompt and that branch's own tokens."""

    def __init__(self, continuation: Continuation, branches: Sequence[Branch]) -> None:
        self.row = continuation.prompt + len(branches[0].factors) - 1
        self.continuation, self.branches = continuation, branches
        segments = [Segment(self.row, self.row, self._factors(branch)) for branch in branches]
        super().__init__(
            segments,
            log_additive=continuation.log_additive,
            last_layer=continuation.model.layers - 1,
            base=Recorded(),
        )

    def _factors(self, branch: Branch) -> Tensor:
        factors = np.concatenate([self.continuation.factors, branch.factors])
        return torch.as_tensor(factors, dtype=torch.float64, device=self.continuation.model.device)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, kernel: Kernel
    ) -> Tensor:  # (n, H, d_v)
        self.calls[layer] = self.calls.get(layer, 0) + 1
        columns = self.continuation.layers[layer]
        visible = columns.mask[self.row : self.row + 1, : self.row + 1]
        own = slice(self.continuation.prompt, self.row + 1)
        query = query.reshape(key.shape[0], -1, *query.shape[1:])  # (H_kv, G, n, d)
        output = value.new_empty(*query.shape[:3], value.shape[-1])
        for place, (branch, segment) in enumerate(zip(self.branches, self.segments, strict=True)):
            at = slice(place, place + 1)
            columns.keys[:, own] = _longer(branch.keys, layer, key[:, at], len(branch.factors))
            columns.values[:, own] = _longer(branch.values, layer, value[:, at], len(branch.factors))
            keys, values = columns.keys[:, : self.row + 1], columns.values[:, : self.row + 1]
            output[:, :, at] = kernel(query[:, :, at], keys, values, visible, segment, self.row)
        return output.flatten(0, 1).transpose(0, 1)


class _MaskPass(AttentionPass):
    """Records the masks of every layer and computes no attention at all."""

    def __init__(self) -> None:
        super().__init__([], log_additive=True, last_layer=-1)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, kernel: Kernel
    ) -> Tensor:  # (R, H, d_v)
        if mask is not None:
            self.recorded.masks[layer] = mask
        return value.new_zeros(query.shape[1], query.shape[0], value.shape[-1])


def _longer(known: dict[int, Tensor], layer: int, column: Tensor, length: int) -> Tensor:  # (H, length, d)
    """The branch's own columns of one layer with `column` as the newest of `length`."""
    if layer not in known:
        known[layer] = column.new_empty(column.shape[0], FIRST_BLOCK, column.shape[2])
    if known[layer].shape[1] < length:
        known[layer] = _wider(known[layer], length - 1, 2 * length)
    known[layer][:, length - 1 : length] = column
    return known[layer][:, :length]


def _wider(columns: Tensor, kept: int, width: int) -> Tensor:
    """The first `kept` columns, with room for `width`."""
    wide = columns.new_empty(columns.shape[0], width, columns.shape[2])
    wide[:, :kept] = columns[:, :kept]
    return wide
