"""From controls on parts of a prompt to one factor per column of attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from explainers.errors import InvalidRequest
from explainers.language_model import LanguageModel, Token, TokenSequence
from explainers.types import Control, Image, Item, Overlap, Place, Prompt, Span, Text, TokenIds

Factors = Mapping[int, float]
"""Column -> factor, for the columns that one control addresses."""


def resolve(sequence: TokenSequence, prompt: Prompt, overlap: Overlap) -> list[Factors]:
    """The columns and factors of the caller's own controls; raises InvalidRequest where one lies outside its item."""
    resolved = []
    for item, part in enumerate(prompt):
        for index, control in enumerate(part.controls):
            _check(part, control, f"/prompt/{item}/controls/{index}")
            resolved.append(addressed(sequence, item, control, control.overlap or overlap))
    return resolved


def addressed(sequence: TokenSequence, item: int, control: Control, overlap: Overlap) -> Factors:
    """The factor of every column that `control` touches, weighed by how much of the token lies inside."""
    factors = {}
    for position, token in enumerate(sequence.tokens):
        share = _share(token, control.place) if token.item == item else 0.0
        if share > 0:
            factor = control.factor if overlap == "complete" else 1 + (control.factor - 1) * share
            factors[len(sequence.start) + position] = factor
    return factors


@dataclass(frozen=True)
class FactorRule:
    """How several controls make one factor per column.

    Explicit factors multiply. With a similarity threshold, each control also reaches columns whose input embedding is
    similar enough to one of its own, with 1 - (1 - F) s; an explicit factor wins over these, and among several the one
    farthest from 1 does. Start tokens are never reached.
    """

    model: LanguageModel
    sequence: TokenSequence
    threshold: float | None

    def combine(self, controls: Sequence[Factors]) -> NDArray[np.float64]:  # (S,)
        factors = np.ones(self.sequence.positions)
        if self.threshold is not None:
            for control in controls:
                derived = self._derived(control, self.threshold)
                factors = np.where(_farther(derived, factors), derived, factors)
        explicit: dict[int, float] = {}
        for control in controls:
            for column, factor in control.items():
                explicit[column] = explicit.get(column, 1.0) * factor
        factors[list(explicit)] = list(explicit.values())
        return factors

    def _derived(self, control: Factors, threshold: float) -> NDArray[np.float64]:  # (S,)
        if not control:
            return np.ones(self.sequence.positions)
        own = np.array(list(control.values()))[:, None]  # (C, 1)
        similarity = self.model.similarities(list(control), self.sequence.read)  # (C, S)
        derived = np.where(similarity >= threshold, 1 - (1 - own) * similarity.clip(min=0), 1.0)
        derived[:, : len(self.sequence.start)] = 1.0
        strongest = np.abs(derived - 1).argmax(axis=0)
        reached: NDArray[np.float64] = derived[strongest, np.arange(derived.shape[1])]
        return reached


def _farther(candidate: NDArray[np.float64], current: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Farther from 1; of two as far, the smaller factor, so that the order of the controls never matters."""
    distance, standing = np.abs(candidate - 1), np.abs(current - 1)
    farther: NDArray[np.bool_] = (distance > standing) | ((distance == standing) & (candidate < current))
    return farther


def _share(token: Token, place: Place) -> float:
    """The part of a token (0 to 1, in characters) that lies inside a control."""
    match token.body, place:
        case None, int(index):
            return float(token.index == index)
        case Span(start=end, length=0), Span(start=start, stop=stop):
            # White space that the tokenizer trimmed away; it ends where the empty span stands.
            return float(start < end <= stop)
        case Span() as body, Span(start=start, stop=stop):
            return max(0, min(body.stop, stop) - max(body.start, start)) / body.length
    return 0.0


def _check(item: Item, control: Control, pointer: str) -> None:
    match item, control.place:
        case Text(data=text), Span(start=start, stop=stop) if not 0 <= start <= stop <= len(text):
            raise InvalidRequest(f"characters {start} to {stop} are not inside the item of {len(text)}", pointer)
        case TokenIds(ids=ids), int(index) if not 0 <= index < len(ids):
            raise InvalidRequest(f"index {index} is not inside the item of {len(ids)} token ids", pointer)
        case (Text(), Span()) | (TokenIds(), int()) | (Image(), _):
            return
        case _:
            raise InvalidRequest("a control of this form does not fit the kind of its prompt item", pointer)
