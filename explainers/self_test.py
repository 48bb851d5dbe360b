"""Is this model explained exactly? Asked once, when it is loaded, with two dozen random tokens.

The packed engine is held against the architecture's own eager attention with the same bias, and against a test that
needs no reference: with factor 0 on some columns, other tokens there must not move the target's log-probability. A
model that fails is refused: an architecture that computes attention in its own way would otherwise return plausible,
wrong scores.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from explainers.attention_control import IMPLEMENTATION, AttentionPass, Segment
from explainers.errors import MissingCapability
from explainers.image_text_model import ImageTextModel
from explainers.language_model import LanguageModel, TokenSequence
from explainers.suppression import log_probabilities
from explainers.undivided import undivided

REFERENCE = "whence_reference"
PROMPT, TARGET = 18, 6
DEAD = slice(4, 9)
TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1.5e-1}
"""Allowed difference in nats per nat of score scale: rounding of the dtype over a few layers."""


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    passed: bool
    value: float
    tolerance: float


def run(model: LanguageModel) -> list[dict[str, Any]]:
    """All checks as JSON objects; raises MissingCapability with the first failed one's reason."""
    checks = []
    for trial in _trials(model):
        for check in (
            trial.every_layer, trial.plain_forward, trial.packed, trial.multiplicative, trial.dead, trial.causal
        ):  # fmt: skip
            checks.append(check())
            if not checks[-1].passed:
                raise MissingCapability(
                    f"{model.architecture} cannot be explained exactly: {checks[-1].name} "
                    f"(found {checks[-1].value:.3g}, allowed {checks[-1].tolerance:.3g})"
                )
    return [asdict(check) for check in checks]


def _trials(model: LanguageModel) -> Iterator[_Trial]:
    """A text; for models that read images also one with an image in its middle, in place of which another stands."""
    generator = np.random.default_rng(0)
    usable = np.setdiff1d(np.arange(model.vocabulary_size), list(model.placeholders))
    ids, other = ([int(token) for token in generator.choice(usable, PROMPT + TARGET)] for _ in range(2))
    text = TokenSequence((), tuple(ids[:PROMPT]), tuple(ids[PROMPT:]), (), ())
    replaced = (*ids[: DEAD.start], *other[DEAD], *ids[DEAD.stop : PROMPT])
    yield _Trial(model, text, DEAD, replace(text, prompt=replaced), "")
    if isinstance(model, ImageTextModel):
        seen, unseen = (model.with_noise(text, DEAD.start, seed) for seed in (1, 2))
        image = slice(DEAD.start, DEAD.start + len(seen.prompt) - PROMPT)
        yield _Trial(model, seen, image, unseen, "with an image: ")


class _Trial:
    def __init__(
        self, model: LanguageModel, sequence: TokenSequence, dead: slice, other: TokenSequence, label: str
    ) -> None:
        self.model, self.sequence, self.other, self.label = model, sequence, other, label
        self.ones = np.ones(sequence.positions)
        middle, last = (dead.start + dead.stop) // 2, len(sequence.prompt)
        pieces = [(0, 3), (dead.start - 1, dead.start + 2), (middle, middle + 3), (last - 4, last - 1)]
        self.removed = self._factors(dead, 0.0)
        self.damped = [self._factors(slice(*piece), 0.1) for piece in pieces] + [self.removed]
        self.base = self._score(self.ones).base
        self.tolerance = TOLERANCES[model.network.dtype]

    def _factors(self, columns: slice, factor: float) -> NDArray[np.float64]:
        factors = self.ones.copy()
        factors[columns] = factor
        return factors

    def _score(self, base: NDArray[np.float64], *variants: NDArray[np.float64], additive: bool = True) -> Any:
        return log_probabilities(self.model, self.sequence, base, variants, log_additive=additive)

    def _check(self, name: str, difference: float, scale: float = 1.0) -> Check:
        allowed = self.tolerance * max(1.0, float(scale))
        return Check(self.label + name, difference <= allowed, difference, allowed)

    def every_layer(self) -> Check:
        """Each attention layer goes through our function exactly once per forward pass."""
        inputs = self.model.inputs(self.sequence)
        factors = torch.ones(self.sequence.positions, device=self.model.device)
        attention = AttentionPass([Segment(0, 0, factors)], log_additive=True, last_layer=self.model.layers - 1)
        self.model.logits(inputs, torch.arange(len(factors), device=factors.device), attention)
        wrong = sum(attention.calls.get(layer, 0) != 1 for layer in range(self.model.layers))
        return Check(f"{self.label}every layer's attention can be suppressed", wrong == 0, float(wrong), 0.0)

    def plain_forward(self) -> Check:
        """With factor 1 everywhere the model computes what its own eager attention does."""
        eager = _reference(self.model, self.sequence, self.ones)
        return self._check("factor 1 is the plain forward pass", _gap(self.base, eager), _peak(eager) / 10)

    def packed(self) -> Check:
        """Damped chunks, packed, equal the own eager attention plus the columns' log factors, one at a time."""
        packed = self.base - self._score(self.ones, *self.damped).variants
        plain = _reference(self.model, self.sequence, self.ones)
        eager = plain - np.stack([_reference(self.model, self.sequence, factors) for factors in self.damped])
        return self._check("scores equal the architecture's own eager attention", _gap(packed, eager), _peak(eager))

    def multiplicative(self) -> Check:
        """The multiplicative form with factor 1 changes nothing either."""
        plain = self._score(self.ones, additive=False).base
        return self._check("multiplicative factor 1 is the plain forward pass", _gap(self.base, plain))

    def dead(self) -> Check:
        """With factor 0 on some columns the tokens there cannot matter; without it they do."""
        trial = self._with(self.other)
        leak = _gap(self._score(self.removed).base, trial._score(self.removed).base)
        moved = _gap(self.base, trial._score(self.ones).base)
        allowed = min(self.tolerance, moved / 10)
        return Check(f"{self.label}removed columns leak no content", bool(leak <= allowed), leak, allowed)

    def causal(self) -> Check:
        """Another last token changes no earlier row."""
        *kept, last = self.sequence.target[:-1]
        following = next(token for token in (0, 1, 2, 3) if token not in {last, *self.model.placeholders})
        changed = (*kept, following, self.sequence.target[-1])
        other = self._with(replace(self.sequence, target=changed))._score(self.ones).base
        return self._check("later tokens leave earlier rows alone", _gap(self.base[: len(kept)], other[: len(kept)]))

    def _with(self, sequence: TokenSequence) -> _Trial:
        trial = object.__new__(_Trial)
        trial.__dict__ = {**self.__dict__, "sequence": sequence}
        return trial


def _gap(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The largest difference; infinite where a number is not finite, so that NaN never passes."""
    difference = np.abs(a - b)
    return float(difference.max()) if np.isfinite(difference).all() else float("inf")


def _peak(values: NDArray[np.float64]) -> float:
    return float(np.abs(values).max())


_REFERENCE_FACTORS: ContextVar[Tensor] = ContextVar("reference_factors")


def _reference(
    model: LanguageModel, sequence: TokenSequence, factors: NDArray[np.float64]
) -> NDArray[np.float64]:  # (T,)
    """Log-probabilities by one full forward pass with the architecture's own eager attention and its own masks."""
    arguments = model.whole(sequence)
    token = _REFERENCE_FACTORS.set(torch.as_tensor(factors, dtype=torch.float32, device=model.device))
    try:
        with torch.inference_mode(), _implementation(model, REFERENCE):
            logits = model.network(**arguments, use_cache=False).logits[0, sequence.first_scored :].float()
    finally:
        _REFERENCE_FACTORS.reset(token)
    chosen = logits.log_softmax(dim=-1)[range(len(sequence.target)), sequence.target]
    result: NDArray[np.float64] = chosen.double().cpu().numpy()
    return result


@contextmanager
def _implementation(model: LanguageModel, name: str) -> Iterator[None]:
    AttentionInterface.register(REFERENCE, _biased_eager)
    AttentionMaskInterface.register(REFERENCE, eager_mask)
    model.attend_with(name)
    try:
        with undivided():
            yield
    finally:
        model.attend_with(IMPLEMENTATION)


def _biased_eager(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **kwargs: Any
) -> Any:
    """The eager attention function of the architecture's own file, with log F added to the mask."""
    eager = sys.modules[type(module).__module__].eager_attention_forward
    biased = attention_mask.float() + _REFERENCE_FACTORS.get().log()
    return eager(module, query, key, value, biased.clamp(min=torch.finfo(query.dtype).min).to(query.dtype), **kwargs)
