"""From controls on parts of a prompt to one factor per column of attention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from explainers.errors import InvalidRequest
from explainers.language_model import LanguageModel, Token, TokenSequence
from explainers.types import (
    Checkpoint,
    Control,
    Image,
    Item,
    Overlap,
    Place,
    Prompt,
    Span,
    Text,
    Tile,
    TokenIds,
    never_stop,
)

Factors = Mapping[int, float]
"""Column -> factor, for the columns that one control addresses, in ascending order."""

Number = TypeVar("Number", float, NDArray[np.float64])

LARGEST_FACTOR = 1e30
"""Beyond this the attention scores of the multiplicative form leave the range of their 32-bit numbers."""

EDGE = 1e-9
"""What rounding may put a rectangle beyond the edge of its image."""


def check_factor(factor: float, pointer: str) -> None:
    """Raise InvalidRequest for what is not a factor, or cannot be computed with."""
    if not (math.isfinite(factor) and factor >= 0):
        raise InvalidRequest("a factor must be a finite number, 0 or more", pointer)
    if factor > LARGEST_FACTOR:
        raise InvalidRequest(f"a factor can be {LARGEST_FACTOR:g} at most", pointer)


def resolve(
    sequence: TokenSequence, prompt: Prompt, overlap: Overlap, checkpoint: Checkpoint = never_stop
) -> list[Factors]:
    """The columns and factors of the caller's own controls; raises InvalidRequest where one lies outside its item."""
    resolved = []
    for item, part in enumerate(prompt):
        for index, control in enumerate(part.controls):
            checkpoint()
            _check(part, control, f"/prompt/{item}/controls/{index}")
            resolved.append(addressed(sequence, item, control, control.overlap or overlap))
    return resolved


def addressed(sequence: TokenSequence, item: int, control: Control, overlap: Overlap) -> Factors:
    """The factor of every column that `control` touches, weighed by how much of the token lies inside."""
    factors = {}
    for position in _candidates(sequence, item, control.place):
        share = _share(sequence.tokens[position], control.place)
        if share > 0:
            factor = control.factor if overlap == "complete" else _weighed(control.factor, share)
            factors[len(sequence.start) + position] = factor
    return factors


@dataclass(frozen=True, slots=True)
class Combined:
    """What a number of controls make of each column."""

    addressed: NDArray[np.bool_]  # (S,)
    explicit: NDArray[np.float64]  # (S,), the product of the factors of the controls that address the column
    derived: NDArray[np.float64]  # (S,), the factor for being similar to an addressed column

    @property
    def factors(self) -> NDArray[np.float64]:  # (S,)
        return np.where(self.addressed, self.explicit, self.derived)


@dataclass(frozen=True)
class FactorRule:
    """How several controls make one factor per column.

    Explicit factors multiply. With a similarity threshold, each control also reaches columns whose input embedding is
    similar enough to one of its own, with 1 - (1 - F) s; an explicit factor wins over these, and among several the one
    farthest from 1 does. A factor of 1 does nothing at all. Start tokens are never reached.
    """

    model: LanguageModel
    sequence: TokenSequence
    threshold: float | None
    checkpoint: Checkpoint = never_stop

    def combine(self, controls: Sequence[Factors], standing: Combined | None = None) -> Combined:
        """All of `controls` on top of those already `standing`; their order makes no difference, to the last bit."""
        combined = standing or self._untouched()
        for control in sorted(controls, key=lambda factors: tuple(factors.items())):
            self.checkpoint()
            acting = {column: factor for column, factor in control.items() if factor != 1}
            if acting:
                combined = self._with(combined, np.array(list(acting)), np.array(list(acting.values())))
        return combined

    def _untouched(self) -> Combined:
        ones = np.ones(self.sequence.positions)
        return Combined(np.zeros(self.sequence.positions, dtype=bool), ones, ones)

    def _with(self, standing: Combined, columns: NDArray[np.int_], factors: NDArray[np.float64]) -> Combined:
        addressed, explicit, derived = standing.addressed.copy(), standing.explicit.copy(), standing.derived
        addressed[columns] = True
        try:
            with np.errstate(over="raise", under="raise"):
                explicit[columns] *= factors
        except FloatingPointError as error:
            raise InvalidRequest("the factors on one token multiply to a number out of range") from error
        if explicit.max() > LARGEST_FACTOR:
            raise InvalidRequest(f"the factors on one token multiply to more than {LARGEST_FACTOR:g}")
        if self.threshold is not None:
            reached = self._reached(columns, factors, self.threshold)
            derived = np.where(_farther(reached, derived), reached, derived)
        return Combined(addressed, explicit, derived)

    def _reached(
        self, columns: NDArray[np.int_], factors: NDArray[np.float64], threshold: float
    ) -> NDArray[np.float64]:  # (S,)
        """The factor that each column gets for being similar to one of `columns`; 1 where it gets none."""
        kinds, similarity = self._kinds
        strongest = np.ones(len(similarity))
        weak_to_strong = np.abs(factors - 1).argsort(kind="stable")
        strongest[kinds[columns[weak_to_strong]]] = factors[weak_to_strong]  # the last one of a kind stays
        sources = np.unique(kinds[columns])
        candidates = np.where(
            similarity[sources] >= threshold, _weighed(strongest[sources, None], similarity[sources].clip(min=0)), 1.0
        )
        farthest = np.abs(candidates - 1).argmax(axis=0)
        reached: NDArray[np.float64] = candidates[farthest, np.arange(len(similarity))][kinds]
        reached[: len(self.sequence.start)] = 1.0
        return reached

    @cached_property
    def _kinds(self) -> tuple[NDArray[np.int_], NDArray[np.float64]]:  # (S,), (U, U)
        """For each column which of the U different embeddings it holds, and the similarity of these."""
        return self.model.similarities(self.sequence)


def _weighed(factor: Number, weight: Number) -> Number:
    """1 - (1 - F) w, in the form that gives F itself for w = 1 however small F is."""
    return (1 - weight) + weight * factor


def _farther(candidate: NDArray[np.float64], current: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Farther from 1; of two as far (but for rounding) the smaller, so that neither order nor rounding decides."""
    distance, standing = np.abs(candidate - 1), np.abs(current - 1)
    as_far = np.isclose(distance, standing, rtol=1e-12, atol=1e-12)
    return np.where(as_far, candidate < current, distance > standing)


def _candidates(sequence: TokenSequence, item: int, place: Place) -> range:
    """The tokens of an item that `place` may touch."""
    own = sequence.tokens_of(item)
    match place:
        case Span():
            return sequence.tokens_near(item, place)
        case int(index):
            return own[index : index + 1]
    return own


def _share(token: Token, place: Place) -> float:
    """The part of a token (0 to 1, in characters or area) that lies inside a control."""
    if token.area is not None:
        return _covered(token.area, place) if isinstance(place, Tile) else 0.0
    match token.body, place:
        case None, int(index):
            return float(token.index == index)
        case Span(start=end, length=0), Span(start=start, stop=stop):
            # White space that the tokenizer trimmed away; it ends where the empty span stands, or starts the text.
            return float(start < end <= stop or start == end == 0 < stop)
        case Span() as body, Span(start=start, stop=stop):
            return max(0, min(body.stop, stop) - max(body.start, start)) / body.length
    return 0.0


def _covered(area: Tile, tile: Tile) -> float:
    """The part of `area` inside `tile`; edges that agree but for rounding do agree."""
    across = min(area.left + area.width, tile.left + tile.width) - max(area.left, tile.left)
    down = min(area.top + area.height, tile.top + tile.height) - max(area.top, tile.top)
    share = max(0.0, across / area.width) * max(0.0, down / area.height)
    return min(1.0, round(share, 9))


def _is_inside(tile: Tile) -> bool:
    sides = (tile.left, tile.top, tile.width, tile.height)
    ends = (tile.left + tile.width, tile.top + tile.height)
    return all(math.isfinite(side) and side >= 0 for side in sides) and max(ends) <= 1 + EDGE


def _check(item: Item, control: Control, pointer: str) -> None:
    check_factor(control.factor, f"{pointer}/factor")
    match item, control.place:
        case Text(data=text), Span(start=start, stop=stop) if not 0 <= start <= stop <= len(text):
            raise InvalidRequest(f"characters {start} to {stop} are not inside the item of {len(text)}", pointer)
        case TokenIds(ids=ids), int(index) if not 0 <= index < len(ids):
            raise InvalidRequest(f"index {index} is not inside the item of {len(ids)} token ids", pointer)
        case Image(), Tile() as tile if not _is_inside(tile):
            raise InvalidRequest("the rectangle is not inside the image, which is 0 to 1 in both directions", pointer)
        case (Text(), Span()) | (TokenIds(), int()) | (Image(), Tile()):
            return
        case _:
            raise InvalidRequest("a control of this form does not fit the kind of its prompt item", pointer)
