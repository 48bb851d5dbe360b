"""Which players are present together, and how the values of such coalitions become Shapley values.

KernelSHAP (Lundberg and Lee 2017) in closed form: a regression on coalition indicators, weighted by
`(M - 1) / (C(M, s) s (M - s))` for size s, under the constraint that the scores add up. With the last player
eliminated the solution is a matrix times the values, the same for all rows and outputs. Sizes are taken whole from
outside in as long as the budget lasts; the rest is sampled in pairs of a coalition and its complement
(Covert and Lee 2021). With all coalitions the scores are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from explainers.answers import are_opposite
from explainers.errors import InvalidRequest
from explainers.seeds import generator

EXACT_PLAYERS = 11
"""Up to so many players, all coalitions are taken whatever the budget: 2,046 at most."""

FEWEST = 4
"""Coalitions per player below which no budget goes: half of them the outermost sizes, half of them sampled."""

MOST_PLAYERS = 1000
"""More take gigabytes to solve for."""

KEPT_PLAYERS = 100
"""Up to so many players, designs are kept: a few megabytes each."""

DRAWS = 4
"""At most so many draws per pair that the budget leaves, however often they repeat (with many players they do not)."""


STRONGEST_PULL = 0.95
"""The leverage of a pair, in its standard error, is taken for no more."""


@dataclass(frozen=True, slots=True)
class Scores:
    values: NDArray[np.float64]  # (K, M)
    errors: NDArray[np.float64]  # (K, M), standard errors of sampling; 0 where all coalitions were taken
    additivity: NDArray[np.float64]  # (K,), weighted R2 of the additive fit; NaN for a constant game
    full: NDArray[np.float64]  # (K,), what all players are worth together
    empty: NDArray[np.float64]  # (K,), what nobody is worth


@dataclass(frozen=True, slots=True, eq=False)
class Design:
    """S coalitions of M players, none of them empty or full, and their solver.

    The first `whole` belong to complete sizes; pairs follow, each a coalition and its complement, drawn `counts` times.
    """

    masks: NDArray[np.bool_]  # (S, M), True = present
    weights: NDArray[np.float64]  # (S,)
    whole: int
    counts: NDArray[np.float64]  # (U,), of distinct pairs
    contrasts: NDArray[np.float64]  # (S, M - 1), indicators less that of the last player
    solver: NDArray[np.float64]  # (M - 1, S)

    @property
    def exact(self) -> bool:
        return not len(self.counts)

    def scores(
        self,
        values: NDArray[np.float64],  # (S, K), of the coalitions
        full: NDArray[np.float64],  # (K,)
        empty: NDArray[np.float64],  # (K,)
    ) -> Scores:
        """Shapley values of all outputs, with their standard errors.

        Two opposite outputs are made exactly so, and get exactly opposite scores.
        """
        if are_opposite(np.vstack([values, full, empty])):
            return _mirrored(self._scores(values[:, :1], full[:1], empty[:1]))
        return self._scores(values, full, empty)

    def _scores(self, values: NDArray[np.float64], full: NDArray[np.float64], empty: NDArray[np.float64]) -> Scores:
        if not self.masks.shape[1]:
            none = np.zeros((len(full), 0))
            return Scores(none, none, np.full(len(full), np.nan), full, empty)
        gains, total = values - empty, full - empty
        free = gains - self.masks[:, -1:] * total  # (S, K)
        first = self.solver @ free  # (M - 1, K)
        left = free - self.contrasts @ first  # (S, K)
        scores = np.vstack([first, total - first.sum(axis=0)])
        return Scores(scores.T, self._errors(left).T, self._additivity(gains, left), full, empty)

    def _errors(self, left: NDArray[np.float64]) -> NDArray[np.float64]:  # (S, K) -> (M, K)
        """The sandwich over pairs: how far each draw moves the solution, summed in squares.

        A pair that draws the fit to itself leaves less of itself; that is made up for by its leverage (HC2).
        """
        players, draws = self.masks.shape[1], self.counts.sum()
        if self.exact:
            return np.zeros((players, left.shape[1]))
        sampled = self.solver[:, self.whole :]  # (M - 1, 2U)
        pull = (sampled * self.contrasts[self.whole :].T).sum(axis=0).reshape(-1, 2).sum(axis=1)  # (U,)
        pairs = sampled[:, :, None] * left[self.whole :]  # (M - 1, 2U, K)
        moves = (pairs[:, 0::2] + pairs[:, 1::2]) / np.sqrt(1 - pull.clip(max=STRONGEST_PULL))[:, None]  # (M - 1, U, K)
        moves = np.concatenate([moves, -moves.sum(axis=0, keepdims=True)])
        squares = (moves**2 / self.counts[:, None]).sum(axis=1) - moves.sum(axis=1) ** 2 / draws  # (M, K)
        errors: NDArray[np.float64] = np.sqrt(squares.clip(min=0) * draws / (draws - 1))
        return errors

    def _additivity(self, gains: NDArray[np.float64], left: NDArray[np.float64]) -> NDArray[np.float64]:  # (S, K) x 2
        if not len(gains):
            return np.full(gains.shape[1], np.nan)
        mean = self.weights @ gains / self.weights.sum()
        spread = self.weights @ (gains - mean) ** 2
        varies = (np.ptp(gains, axis=0) > 0) & (spread > 0)
        return np.where(varies, 1 - (self.weights @ left**2) / np.where(varies, spread, 1.0), np.nan)


def budget(players: int, samples: int | None, most: int = 0) -> int:
    """How many coalitions to ask for: `samples`, or the field's default; all of them up to `most`.

    Raises InvalidRequest for too many players.
    """
    if players > MOST_PLAYERS:
        raise InvalidRequest(f"Shapley values of more than {MOST_PLAYERS} inputs or tokens")
    everything: int = 2**players - 2
    asked = max(2 * players + 2048 if samples is None else samples, FEWEST * players)
    exact = players <= EXACT_PLAYERS or everything <= max(most, asked)
    return everything if exact else asked


def is_exact(players: int, budget: int) -> bool:
    return bool(budget >= 2**players - 2)


def shared_design(players: int, budget: int, seed: int) -> Design:
    """The design of many rows, kept for the next unless it is large."""
    return _kept_design(players, budget, seed) if players <= KEPT_PLAYERS else design(players, budget, seed)


@lru_cache(maxsize=16)
def _kept_design(players: int, budget: int, seed: int) -> Design:
    return design(players, budget, seed)


def exact_design(players: int) -> Design:
    return shared_design(players, 2**players, 0)


def design(players: int, budget: int, seed: int) -> Design:
    """At most `budget` coalitions, at least all but one player and all single ones; all of them if they fit.

    Needs a budget of four coalitions per player at least, or of all of them.
    """
    if is_exact(players, budget):
        masks = _all(players)
        return _solved(masks, _kernel(masks), len(masks), np.zeros(0))
    inner, layers, left = 1, [_layer(players, 1)], budget - 2 * players
    while _is_affordable(players, inner + 1, left):
        inner += 1
        layers.append(_layer(players, inner))
        left -= len(layers[-1])
    whole = np.concatenate(layers)
    pairs, counts = _drawn(players, inner + 1, left // 2, seed)
    sampled = np.repeat(counts, 2) / (2 * counts.sum()) * _mass(players, inner + 1)
    weights = np.concatenate([_kernel(whole), sampled])
    return _solved(np.concatenate([whole, pairs]), weights, len(whole), counts)


def _mirrored(scores: Scores) -> Scores:
    return Scores(
        np.vstack([scores.values, -scores.values]),
        np.vstack([scores.errors, scores.errors]),
        np.tile(scores.additivity, 2),
        np.append(scores.full, 1 - scores.full),
        np.append(scores.empty, 1 - scores.empty),
    )


def _solved(masks: NDArray[np.bool_], weights: NDArray[np.float64], whole: int, counts: NDArray[np.float64]) -> Design:
    indicators = masks.astype(float)
    contrasts = indicators[:, :-1] - indicators[:, -1:]
    weighted = contrasts.T * weights
    solver = np.linalg.solve(weighted @ contrasts, weighted)
    for array in (masks, weights, counts, contrasts, solver):
        array.flags.writeable = False  # shared by all who ask for the same design
    return Design(masks, weights, whole, counts, contrasts, solver)


def _all(players: int) -> NDArray[np.bool_]:  # (2^M - 2, M)
    codes = np.arange(1, max(1, 2**players - 1))
    return (codes[:, None] >> np.arange(players) & 1).astype(bool)


def _kernel(masks: NDArray[np.bool_]) -> NDArray[np.float64]:  # (S, M) -> (S,)
    players = masks.shape[1]
    by_size = np.zeros(players + 1)
    sizes = masks.sum(axis=1)
    for size in np.unique(sizes).tolist():
        by_size[size] = (players - 1) / (comb(players, size) * size * (players - size))
    weights: NDArray[np.float64] = by_size[sizes]
    return weights


def _sizes(players: int, inner: int) -> NDArray[np.int_]:
    """The sizes that are not outside of `inner`."""
    sizes: NDArray[np.int_] = np.arange(inner, players - inner + 1)
    return sizes


def _mass(players: int, inner: int) -> float:
    """The kernel's weight on all coalitions of those sizes."""
    sizes = _sizes(players, inner)
    return float(((players - 1) / (sizes * (players - sizes))).sum())


def _is_affordable(players: int, inner: int, left: int) -> bool:
    """Whether what is left of a budget covers the sizes `inner` and M - `inner` by their share of the weight left.

    As many coalitions as twice the players must stay for the sizes inside of them.
    """
    layer = comb(players, inner) * (1 if 2 * inner == players else 2)
    share = 1 - _mass(players, inner + 1) / _mass(players, inner)
    return layer <= min(left * share, left - 2 * players)


def _layer(players: int, inner: int) -> NDArray[np.bool_]:
    """All coalitions of size `inner` and their complements."""
    chosen = np.array(list(combinations(range(players), inner)))
    masks = np.zeros((len(chosen), players), dtype=bool)
    masks[np.arange(len(chosen))[:, None], chosen] = True
    return masks if 2 * inner == players else np.concatenate([masks, ~masks])


def _drawn(
    players: int, inner: int, pairs: int, seed: int
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:  # (2U, M), (U,)
    """Up to `pairs` distinct pairs of the sizes from `inner` inwards, and how often each was drawn."""
    random = generator(seed)
    sizes = _sizes(players, inner)
    odds = 1 / (sizes * (players - sizes))
    draws = pairs * (DRAWS if players <= KEPT_PLAYERS else 1)
    drawn = random.choice(sizes, size=draws, p=odds / odds.sum())
    ranks = random.random((len(drawn), players)).argsort(axis=1).argsort(axis=1)
    masks = ranks < drawn[:, None]
    masks ^= masks[:, :1]  # one of the two stands for both
    packed = np.packbits(masks, axis=1)
    _, first, place = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    kept = np.sort(first)[:pairs]
    stop = len(drawn) if len(first) <= pairs else np.sort(first)[pairs]  # until the next new one
    counts = np.bincount(place.ravel()[:stop], minlength=len(first))[place.ravel()[kept]]
    both = np.stack([masks[kept], ~masks[kept]], axis=1).reshape(-1, players)
    return both, counts.astype(float)
