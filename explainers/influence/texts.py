"""What two texts have in common, by their tokens alone: evidence that knows nothing of gradients and hidden states."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TOGETHER = 8_192
"""Tokens whose weights are multiplied at a time."""
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
        sizes = [len(text) for text in texts]
        self._rarity, self._tokens = rarity, np.concatenate(texts)
        self._rows, self._starts = np.repeat(np.arange(len(texts)), sizes), np.cumsum([0, *sizes[:-1]])
        self._squares = rarity.squares(self._tokens)

    def likeness(self, asked: Words) -> NDArray[np.float64]:  # (m,)
        """Cosines of the texts as vectors of their tokens' weights with what is asked.

        A text that is longer counts as no longer than that: a page may say more than an answer that comes of it.
        """
        own, totals = float(self._rarity.squares(asked).sum()), np.add.reduceat(self._squares, self._starts)
        shared = np.add.reduceat(np.where(np.isin(self._tokens, asked), self._squares, 0.0), self._starts)
        return _ratio(shared, np.sqrt(own * np.minimum(totals, own)))

    def cosines(self) -> NDArray[np.float64]:  # (m, m)
        """Of each two of the texts, a longer one as long as it is."""
        _, columns = np.unique(self._tokens, return_inverse=True)
        products = np.zeros((len(self._starts),) * 2)
        for first in range(0, int(columns.max()) + 1, TOGETHER):
            inside = (columns >= first) & (columns < first + TOGETHER)
            block = np.zeros((len(products), TOGETHER), np.float32)
            block[self._rows[inside], columns[inside] - first] = np.sqrt(self._squares[inside])
            products += block @ block.T
        lengths = np.sqrt(np.diag(products))
        return _ratio(products, np.outer(lengths, lengths))


def _ratio(shared: NDArray[np.float64], lengths: NDArray[np.float64]) -> NDArray[np.float64]:
    """Nothing where a text has no token that tells."""
    return np.divide(shared, lengths, out=np.zeros_like(shared), where=lengths > 0)
