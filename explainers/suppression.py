"""Log-probabilities of a target while attention to parts of the sequence is damped: the engine of `/explain`.

One base pass over all S positions records keys and values. Each variant then recomputes only the rows at or after the
first column whose factor it changes, which by causality is exact, and several variants share one forward pass as
segments of one packed row. Linear layers see one long matrix; only attention is split. Logits are computed at the T
rows that predict target tokens and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from explainers.attention_control import AttentionPass, Recorded, Segment
from explainers.errors import OutOfMemory
from explainers.language_model import LanguageModel, TokenSequence
from explainers.types import Checkpoint, never_stop

PACKED_ROWS = {"cpu": 1024, "cuda": 16_384}
"""Rows per packed pass that fill the matrix units; more gain nothing (a CPU core: measured; a GPU: expected)."""
LOGITS_AT_ONCE = 1 << 19
"""So many stay in a processor's cache while they are reduced to one log-probability per row."""


@dataclass(frozen=True, slots=True)
class Suppressed:
    """Log-probabilities in nats; `variants` hold their base value wherever a variant cannot change it."""

    base: NDArray[np.float64]  # (T,)
    variants: NDArray[np.float64]  # (C, T)
    forwards: int
    rows: int


def log_probabilities(
    model: LanguageModel,
    sequence: TokenSequence,
    base_factors: NDArray[np.float64],  # (S,)
    variants: Sequence[NDArray[np.float64]],  # C of (S,)
    *,
    log_additive: bool,
    checkpoint: Checkpoint = never_stop,
    packed_rows: int | None = None,
) -> Suppressed:
    """Log p of each target token with `base_factors` on the columns, and with each of `variants` instead.

    Raises OutOfMemory when even one variant at a time does not fit, MissingCapability when the architecture turns out
    to escape the suppression, and whatever `checkpoint` raises (it is called before each forward pass). `packed_rows`
    None: as many as fit into memory, which the model remembers once more did not.
    """
    engine = _Engine(model, sequence, log_additive, checkpoint)
    base = engine.base_pass(base_factors)
    result = np.tile(base, (len(variants), 1))  # (C, T)
    may_skip = sequence.first_scored if log_additive else 0
    changed = [(_first_row(base_factors, variant, may_skip), index) for index, variant in enumerate(variants)]
    packed_rows = packed_rows or fitting_rows(model)
    queue = sorted(((start, index) for start, index in changed if start is not None), reverse=True)
    while queue:
        count = _fitting(queue, sequence.positions, packed_rows)
        try:
            scores = engine.packed_pass([(start, variants[index]) for start, index in queue[:count]])
        except torch.OutOfMemoryError as error:
            if count == 1:
                raise OutOfMemory(too_large(sequence)) from error
            packed_rows = sum(sequence.positions - start for start, _ in queue[:count]) // 2
            model.packed_rows.most = packed_rows
            model.passes.halvings += 1
            continue
        model.passes.filled(sum(sequence.positions - start for start, _ in queue[:count]), packed_rows)
        for (_, index), values in zip(queue[:count], scores, strict=True):
            result[index, len(base) - len(values) :] = values
        del queue[:count]
    return Suppressed(base, result, engine.forwards, engine.rows)


class _Engine:
    """The passes over one sequence: the base pass first, then packed passes on what it recorded."""

    def __init__(
        self, model: LanguageModel, sequence: TokenSequence, log_additive: bool, checkpoint: Checkpoint
    ) -> None:
        self.model, self.sequence = model, sequence
        self.log_additive, self.checkpoint = log_additive, checkpoint
        self.inputs = model.inputs(sequence)
        self.target = torch.tensor(sequence.target, device=model.device)  # (T,)
        self.recorded: Recorded | None = None
        self.forwards = self.rows = 0

    def base_pass(self, factors: NDArray[np.float64]) -> NDArray[np.float64]:  # (T,)
        try:
            (scores,) = self._forward([self._segment(0, factors)])
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(too_large(self.sequence)) from error
        return scores

    def packed_pass(self, variants: Sequence[tuple[int, NDArray[np.float64]]]) -> list[NDArray[np.float64]]:
        """Log-probabilities from each variant's first recomputed scored row on, shorter than T for late starts."""
        return self._forward([self._segment(start, factors) for start, factors in variants])

    def _segment(self, start: int, factors: NDArray[np.float64]) -> Segment:
        column_factors = torch.as_tensor(factors, dtype=torch.float64, device=self.model.device)
        return Segment(start, max(start, self.sequence.first_scored), column_factors)

    def _forward(self, segments: list[Segment]) -> list[NDArray[np.float64]]:
        self.checkpoint()
        rows = torch.cat(list(_scored_rows(segments))).to(self.model.device)
        attention = AttentionPass(
            segments, log_additive=self.log_additive, last_layer=self.model.layers - 1, base=self.recorded
        )
        logits = self.model.logits(self.inputs.at(attention.positions), rows, attention)
        self.recorded = attention.recorded
        self.forwards += 1
        self.rows += len(attention.positions)
        targets = torch.cat([self.target[s.scored - self.sequence.first_scored :] for s in segments])
        scores = _log_softmax_at(logits, targets)
        cuts = np.cumsum([s.start + s.rows - s.scored for s in segments])[:-1]
        return np.split(scores.double().cpu().numpy(), cuts)


def _scored_rows(segments: Sequence[Segment]) -> Iterator[Tensor]:
    """The packed rows that predict target tokens, segment by segment."""
    offset = 0
    for segment in segments:
        yield torch.arange(offset + segment.scored - segment.start, offset + segment.rows)
        offset += segment.rows


def _log_softmax_at(logits: Tensor, targets: Tensor) -> Tensor:  # (n, V), (n,) -> (n,)
    """Log-softmax in fp32 at one column per row, a few rows at a time."""
    chosen = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1).float()
    rows = max(1, LOGITS_AT_ONCE // logits.shape[-1]) if logits.device.type == "cpu" else len(logits)
    return chosen - torch.cat([part.float().logsumexp(dim=-1) for part in torch.split(logits, rows)])


def _first_row(base: NDArray[np.float64], variant: NDArray[np.float64], may_skip: int) -> int | None:
    """The first row to recompute: that of the first changed column, or a later one where nobody sees the rows between.

    Nobody sees columns with factor 0 in the log-additive form, and up to `may_skip` nothing else is read of their rows.
    """
    columns = np.flatnonzero(base != variant)
    if not columns.size:
        return None
    start = int(columns[0])
    seen = np.flatnonzero(variant[start:may_skip])
    return start + int(seen[0]) if seen.size else max(start, may_skip)


def fitting_rows(model: LanguageModel) -> int:
    """How many rows one packed pass may have: enough, and on a GPU no more than half the free memory holds."""
    rows = PACKED_ROWS[model.device.type]
    if model.device.type == "cuda":
        cached = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
        rows = min(rows, (torch.cuda.mem_get_info(model.device)[0] + cached) // 2 // model.sizes.bytes_per_row)
    return max(1, min(rows, model.packed_rows.most or rows))


def _fitting(queue: Sequence[tuple[int, int]], positions: int, packed_rows: int) -> int:
    """How many of the queue's first variants fill one packed pass; at least one."""
    rows = np.cumsum([positions - start for start, _ in queue])
    return max(1, int(np.searchsorted(rows, packed_rows, side="right")))


def too_large(sequence: TokenSequence) -> str:
    return f"{sequence.positions} positions do not fit into the memory of the device"
