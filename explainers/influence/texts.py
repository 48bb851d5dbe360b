"""What two texts have in common, by their tokens alone: evidence that knows nothing of gradients and hidden states."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.int32]
"""The distinct tokens of a text, ascending."""


def words_of(ids: Collection[int]) -> Words:
    return np.unique(np.fromiter(ids, np.int32, len(ids)))


@dataclass(frozen=True)
class Rarity:
    """How much a token tells: the logarithm of its rarity among some texts, nothing if all of them have it."""

    weights: NDArray[np.float64]  # (v + 1,), of the tokens 0 to v, and of all that no text has

    @classmethod
    def among(cls, texts: Sequence[Words]) -> Rarity:
        counts = np.append(np.bincount(np.concatenate(texts)), 0)
        return cls(np.log((len(texts) + 1) / (counts + 1)))

    def squares(self, tokens: Words) -> NDArray[np.float64]:
        """Of the tokens' weights."""
        found: NDArray[np.float64] = self.weights[np.minimum(tokens, len(self.weights) - 1)] ** 2
        return found


class Texts:
    """Some texts, m > 0 of one token at least, which others are held against."""

    def __init__(self, texts: Sequence[Words], rarity: Rarity) -> None:
        self._rarity, self._tokens = rarity, np.concatenate(texts)
        self._starts = np.cumsum([0, *(len(text) for text in texts[:-1])])
        self._squares = rarity.squares(self._tokens)
        self._totals = np.add.reduceat(self._squares, self._starts)

    def likeness(self, asked: Words) -> NDArray[np.float64]:  # (m,)
        """Cosines of the texts as vectors of their tokens' weights with what is asked.

        A text that is longer counts as no longer than that: a page may say more than an answer that comes of it.
        """
        own = float(self._rarity.squares(asked).sum())
        shared = np.add.reduceat(np.where(np.isin(self._tokens, asked), self._squares, 0.0), self._starts)
        lengths = np.sqrt(own * np.minimum(self._totals, own))
        return np.divide(shared, lengths, out=np.zeros_like(shared), where=lengths > 0)
