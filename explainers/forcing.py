"""How sure a model is of one response behind each of many prompts that are much alike.

Context: prompts with parts left out differ in their tokens, so that nothing of `explainers.suppression` holds for them
but causality: rows up to the first different token are the same. Decision: sequences are sorted by their tokens, and
each takes keys and values of what it shares with the one before it, or with the longest, from there; rows behind that
are read, those of several sequences one behind the other in one packed row. Masks are the model's own, recorded with
the longest. Consequence: each distinct beginning is read once, there is no padding, and what comes out is, up to
rounding, that of one forward pass for each prompt.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from explainers.attention_control import AttentionPass, Recorded, Segment
from explainers.continuation import Kernel, turning_point
from explainers.errors import MissingCapability, OutOfMemory
from explainers.language_model import Inputs, LanguageModel, TokenSequence
from explainers.suppression import LOGITS_AT_ONCE, fitting_rows, too_large
from explainers.types import Checkpoint, never_stop

CERTAIN = 1e-7
"""Probabilities stay so far from 0 and 1."""

LARGEST = math.log1p(-CERTAIN) - math.log(CERTAIN)


@dataclass(frozen=True, slots=True)
class Forced:
    """Token logits ln p - ln(1 - p) of the response behind each prompt, and what they took."""

    logits: NDArray[np.float64]  # (C, T), within +-LARGEST
    forwards: int
    rows: int


def forcing(
    model: LanguageModel,
    sequences: Sequence[TokenSequence],  # C, all with the same target
    checkpoint: Checkpoint = never_stop,
    packed_rows: int | None = None,
) -> Generator[None, None, Forced]:
    """Reads the response behind every prompt; pauses after each pass, and calls `checkpoint` before it.

    Raises OutOfMemory when even one prompt does not fit, MissingCapability when the logits are not numbers.
    """
    found = np.empty((len(sequences), len(sequences[0].target)))
    forwards = rows = 0
    for places in _sides(model, sequences):
        reader = _Reader(model, [sequences[place] for place in places], checkpoint)
        found[places] = yield from reader.read_all(packed_rows or fitting_rows(model))
        forwards, rows = forwards + reader.forwards, rows + reader.rows
    return Forced(found, forwards, rows)


def _sides(model: LanguageModel, sequences: Sequence[TokenSequence]) -> Iterator[list[int]]:
    """The sequences in which the model places tokens alike: all, but for models that do it by the length."""
    turn = turning_point(model)
    beyond = [turn is not None and sequence.positions > turn for sequence in sequences]
    for side in sorted(set(beyond)):
        yield [place for place, own in enumerate(beyond) if own == side]


@dataclass(frozen=True, slots=True)
class _Reading:
    """One distinct sequence, and where it stops to be like the one that it takes its beginning from."""

    sequence: TokenSequence
    start: int
    of_longest: bool  # else of the one read before it

    @property
    def rows(self) -> int:
        return self.sequence.positions - self.start


class _Reader:
    """The passes over sequences with one and the same target."""

    def __init__(self, model: LanguageModel, sequences: Sequence[TokenSequence], checkpoint: Checkpoint) -> None:
        self.model, self.checkpoint = model, checkpoint
        self.kinds = [sequence.read for sequence in sequences]
        self.distinct = dict(zip(self.kinds, sequences, strict=True))
        self.target = torch.tensor(sequences[0].target, device=model.device)  # (T,)
        self.base = Recorded()
        self.before: _Known = {}
        self.forwards = self.rows = 0

    def read_all(self, packed_rows: int) -> Generator[None, None, NDArray[np.float64]]:  # (C, T)
        longest = max(self.distinct, key=len)
        found = {longest: self._read_longest(self.distinct[longest])}
        yield
        queue = _planned(self.distinct, longest)
        while queue:
            count = _fitting(queue, packed_rows)
            try:
                read = self._read(queue[:count])
            except torch.OutOfMemoryError as error:
                if count == 1:
                    raise OutOfMemory(too_large(queue[0].sequence)) from error
                packed_rows = sum(reading.rows for reading in queue[:count]) // 2
                self.model.packed_rows.most = packed_rows
                self.model.passes.halvings += 1
                continue
            self.model.passes.filled(sum(reading.rows for reading in queue[:count]), packed_rows)
            found |= zip((reading.sequence.read for reading in queue[:count]), read, strict=True)
            del queue[:count]
            yield
        return np.stack([found[kind] for kind in self.kinds])

    def _read_longest(self, sequence: TokenSequence) -> NDArray[np.float64]:  # (T,)
        segment = _segment(self.model, sequence, 0)
        attention = AttentionPass([segment], log_additive=True, last_layer=self.model.layers - 1)
        try:
            logits = self._forward(self.model.inputs(sequence), attention)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(too_large(sequence)) from error
        self.base = attention.recorded
        only: NDArray[np.float64] = logits[0]
        return only

    def _read(self, readings: Sequence[_Reading]) -> NDArray[np.float64]:  # (n, T)
        attention = _ChainedPass(self.model, readings, self.base, self.before)
        logits = self._forward(_joined([_own_rows(self.model, reading) for reading in readings]), attention)
        self.before = attention.known
        return logits

    def _forward(self, inputs: Inputs, attention: AttentionPass) -> NDArray[np.float64]:  # (n, T)
        self.checkpoint()
        ends = np.cumsum([segment.rows for segment in attention.segments])
        rows = (torch.tensor(ends)[:, None] + torch.arange(-len(self.target), 0)).flatten().to(self.model.device)
        logits = _token_logits(self.model.logits(inputs, rows, attention), self.target.repeat(len(ends)))
        self.forwards += 1
        self.rows += int(ends[-1])
        found: NDArray[np.float64] = logits.double().cpu().numpy().reshape(len(ends), -1)
        if np.isnan(found).any():
            raise MissingCapability(f"the model's logits overflow in {self.model.facts.get('dtype', 'its dtype')}")
        return found


_Known = dict[int, tuple[Tensor, Tensor]]
"""Per layer the keys (H_kv, S, d) and values (H_kv, S, d_v) of the sequence read last."""


class _ChainedPass(AttentionPass):
    """Sequences one behind the other, each of which begins with rows of the longest or of the one before it."""

    def __init__(self, model: LanguageModel, readings: Sequence[_Reading], longest: Recorded, before: _Known) -> None:
        segments = [_segment(model, reading.sequence, reading.start) for reading in readings]
        super().__init__(segments, log_additive=True, last_layer=model.layers - 1, base=Recorded())
        self.readings, self.longest, self.before = readings, longest, before
        self.known: _Known = {}

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, kernel: Kernel
    ) -> Tensor:  # (R, H, d_v)
        self.calls[layer] = self.calls.get(layer, 0) + 1
        whole = self.longest.masks[layer]
        plain = self.longest.plain[whole.data_ptr()]
        query = query.reshape(key.shape[0], -1, *query.shape[1:])  # (H_kv, G, R, d)
        output = value.new_zeros(*query.shape[:3], value.shape[-1])
        longest = self.longest.keys[layer], self.longest.values[layer]
        keys, values = self.before.get(layer, longest)
        offset = 0
        for reading, segment in zip(self.readings, self.segments, strict=True):
            own, end = slice(offset, offset + segment.rows), reading.sequence.positions
            first_keys, first_values = longest if reading.of_longest else (keys, values)
            keys = torch.cat([first_keys[:, : segment.start], key[:, own]], dim=1)
            values = torch.cat([first_values[:, : segment.start], value[:, own]], dim=1)
            first = segment.scored if layer == self.last_layer else segment.start
            rows = slice(offset + first - segment.start, offset + segment.rows)
            seen = whole[first:end, :end]
            output[:, :, rows] = kernel(query[:, :, rows], keys, values, seen, segment, first, plain=plain)
            offset += segment.rows
        self.known[layer] = keys, values
        return output.flatten(0, 1).transpose(0, 1)


def _planned(distinct: dict[tuple[int, ...], TokenSequence], longest: tuple[int, ...]) -> list[_Reading]:
    """All but the longest, in the order in which each has the most in common with the one before it."""
    readings, before = [], np.array([], dtype=int)
    base = np.array(longest)
    for kind in sorted(kind for kind in distinct if kind != longest):
        ids, sequence = np.array(kind), distinct[kind]
        shared, of_longest = max((_shared(ids, before), False), (_shared(ids, base), True))
        # A row that predicts the response is read for every prompt.
        readings.append(_Reading(sequence, min(shared, sequence.first_scored), of_longest))
        before = ids
    return readings


def _shared(ids: NDArray[np.int_], others: NDArray[np.int_]) -> int:
    """How many tokens two sequences begin with alike."""
    length = min(len(ids), len(others))
    different = np.flatnonzero(ids[:length] != others[:length])
    return int(different[0]) if different.size else length


def _fitting(queue: Sequence[_Reading], packed_rows: int) -> int:
    """How many of the first readings fill one pass; at least one."""
    return max(1, int(np.searchsorted(np.cumsum([reading.rows for reading in queue]), packed_rows, side="right")))


def _segment(model: LanguageModel, sequence: TokenSequence, start: int) -> Segment:
    untouched = torch.ones(sequence.positions, dtype=torch.float64, device=model.device)
    return Segment(start, sequence.first_scored, untouched)


def _own_rows(model: LanguageModel, reading: _Reading) -> Inputs:
    rows = torch.arange(reading.start, reading.sequence.positions, device=model.device)
    return model.inputs(reading.sequence).at(rows)


def _joined(parts: Sequence[Inputs]) -> Inputs:
    """One behind the other; nothing is an image."""
    embeddings: list[Any] = [part.embeddings for part in parts]
    return Inputs(
        torch.cat([part.ids for part in parts]),
        torch.cat([part.positions for part in parts], dim=-1),
        None if embeddings[0] is None else torch.cat(embeddings),
    )


def _token_logits(logits: Tensor, targets: Tensor) -> Tensor:  # (n, V), (n,) -> (n,)
    """ln p - ln(1 - p) of one column per row, in fp32, a few rows at a time.

    It is the column's logit less the logsumexp of all others, and so keeps its digits where p is close to 1.
    """
    rows = max(1, LOGITS_AT_ONCE // logits.shape[-1]) if logits.device.type == "cpu" else len(logits)
    parts = []
    for part, chosen in zip(torch.split(logits, rows), torch.split(targets.unsqueeze(-1), rows), strict=True):
        own = part.gather(-1, chosen).squeeze(-1).float()
        others = part.float().scatter(-1, chosen, -torch.inf).logsumexp(dim=-1)
        parts.append((own - others).clamp(-LARGEST, LARGEST))
    return torch.cat(parts)
