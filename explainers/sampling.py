"""Which token comes next: from the logits of one position to one token id.

The order is: repetition penalties, logit bias, the ban on ending too early, temperature, top_k, top_p. Random numbers
derive (sha256) from the request and the candidate's number: the same request has the same completions everywhere.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LARGEST_PENALTY = 1e30
"""What a multiplicative penalty can grow to with the number of repetitions."""

Logits = NDArray[np.float64]  # (V,)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen; the defaults are greedy.

    An additive penalty p is taken from the logit of a token that has occurred (`presence`), or once per occurrence
    (`frequency`). A multiplicative one divides positive logits by 1 + p, or multiplies negative ones with it, and is
    raised to the number of occurrences for `frequency`.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    multiplicative_presence: bool = False
    multiplicative_frequency: bool = False
    penalties_include_prompt: bool = False
    penalties_include_completion: bool = True
    logit_bias: tuple[tuple[int, float], ...] = ()
    minimum_tokens: int = 0
    seed: int | None = None

    @property
    def heat(self) -> float:
        """The temperature that holds: 0 with a choice of tokens to draw from means 1."""
        return 1.0 if self.temperature == 0 and (self.top_k > 1 or self.top_p > 0) else self.temperature


GREEDY = Sampling()


class Sampler:
    """Chooses the tokens of one candidate, one after the other."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], candidate: int, ends: frozenset[int]) -> None:
        self.sampling = sampling
        self.generated = 0
        self._ends = sorted(ends)
        self._seen = Counter(prompt if sampling.penalties_include_prompt else ())
        material = repr((sampling, tuple(prompt), candidate)).encode()
        self._random = np.random.default_rng(int.from_bytes(hashlib.sha256(material).digest()))

    def choose(self, logits: Logits) -> int:
        """The next token id; it counts as generated from then on."""
        token = self._draw(self._adjusted(logits))
        self.generated += 1
        if self.sampling.penalties_include_completion:
            self._seen[token] += 1
        return token

    def _adjusted(self, logits: Logits) -> Logits:
        adjusted = logits.copy()
        if self._seen:
            ids = np.array(list(self._seen))
            adjusted[ids] = penalised(adjusted[ids], np.array(list(self._seen.values())), self.sampling)
        for token, bias in self.sampling.logit_bias:
            adjusted[token] += bias
        if self.generated < self.sampling.minimum_tokens:
            adjusted[self._ends] = -np.inf
        return adjusted

    def _draw(self, logits: Logits) -> int:
        if self.sampling.heat == 0:
            return int(logits.argmax())
        ids, probabilities = distribution(logits, self.sampling)
        cumulative = probabilities.cumsum()
        place = int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))
        return int(ids[min(place, len(ids) - 1)])


def penalised(logits: Logits, counts: NDArray[np.int_], sampling: Sampling) -> Logits:
    """The logits of tokens that have occurred `counts` times."""
    for penalty, multiplicative, exponents in (
        (sampling.presence_penalty, sampling.multiplicative_presence, np.ones_like(counts)),
        (sampling.frequency_penalty, sampling.multiplicative_frequency, counts),
    ):
        if multiplicative:
            with np.errstate(over="ignore"):
                factors = np.minimum(np.power(1.0 + penalty, exponents), LARGEST_PENALTY)
            logits = np.where(logits > 0, logits / factors, logits * factors)
        else:
            logits = logits - penalty * exponents
    return logits


def distribution(logits: Logits, sampling: Sampling) -> tuple[NDArray[np.int_], NDArray[np.float64]]:
    """Ids that may be drawn, most probable first (of equals the lower id), and their probabilities."""
    ids = np.argsort(-logits, kind="stable")
    scaled = (logits[ids] - logits[ids[0]]) / sampling.heat
    if sampling.top_k > 0:
        ids, scaled = ids[: sampling.top_k], scaled[: sampling.top_k]
    probabilities = np.exp(scaled)
    probabilities /= probabilities.sum()
    if 0 < sampling.top_p < 1:
        # The smallest set whose probabilities reach top_p, and never an empty one.
        count = int(np.searchsorted(probabilities.cumsum(), sampling.top_p, side="left")) + 1
        ids, probabilities = ids[:count], probabilities[:count]
        probabilities = probabilities / probabilities.sum()
    return ids, probabilities


def log_softmax(logits: Logits) -> Logits:
    """Log-probabilities in nats."""
    shifted: Logits = logits - logits.max()
    result: Logits = shifted - np.log(np.exp(shifted).sum())
    return result


def most_probable(log_probs: Logits, count: int) -> list[int]:
    """The ids of the `count` most probable tokens, best first; of equals the lower id."""
    if count == 0:
        return []
    best: list[int] = np.argsort(-log_probs, kind="stable")[:count].tolist()
    return best
