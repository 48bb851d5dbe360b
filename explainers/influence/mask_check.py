"""Is the training mask the one that was trained with? Held against the loss that the trainer wrote down.

Nobody says in a training file which tokens counted. Each mask in question is therefore applied to a sample of the
records, and its mean loss under the fine-tuned model compared with the end of the loss history in the trainer's state.
A mean over tokens is what trainers report; their last losses were measured with dropout, a few steps before the end and
on other batches, so that ten percent of difference are no surprise, and more are a warning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from explainers.influence.examples import Example, Loss, Mask
from explainers.influence.records import BadLines, Record

SAMPLE = 64
"""Records that the losses are taken over, unless the caller says otherwise."""
TAIL = 0.1
"""Part of the loss history, at its end, that counts as the last."""
TOLERANCE = 0.1
"""Difference from the recorded loss, as a part of it, beyond which a warning says so."""
LOSSES: tuple[Loss, ...] = ("assistant", "last_assistant", "all")

Examples: TypeAlias = Callable[[Mask], Sequence[Example]]
"""The sample's examples under a mask; raises BadLines where it has none."""
LogProbs: TypeAlias = Callable[[Sequence[Example]], Sequence[NDArray[np.float64]]]
"""Of each example the log-probability of each token of its answer (T,), in nats."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A mask, and the mean loss of its tokens over the sample in nats; None where it cannot be applied."""

    mask: Mask
    loss: float | None


@dataclass(frozen=True, slots=True)
class MaskCheck:
    """`best` is the mask whose loss is nearest to the recorded one; the chosen one where none was recorded.

    Masks that differ in the end of turns alone are taken for one where both give the recorded loss.
    """

    chosen: Mask
    best: Mask
    recorded: float | None  # mean training loss at the end of the history, nats per token
    evaluated: float | None  # the same of the trainer's evaluations: on other data, so it decides nothing
    candidates: tuple[Candidate, ...]
    warnings: tuple[str, ...]


def sampled(records: Sequence[Record], count: int = SAMPLE) -> tuple[Record, ...]:
    """At most `count` records, evenly spread over the file."""
    return tuple(records[place] for place in spread(len(records), count))


def spread(records: int, count: int = SAMPLE) -> list[int]:
    """The places of those, of so many records."""
    places: list[int] = np.linspace(0, records - 1, min(count, records)).round().astype(int).tolist()
    return places


def check_mask(
    chosen: Mask, examples_under: Examples, log_probs: LogProbs, state: Mapping[str, Any] | None
) -> MaskCheck:
    """Hold `chosen` and the other masks against the loss history of `state`, the parsed `trainer_state.json`.

    The model is asked once, for all tokens of the sample. Raises what the two functions raise, but BadLines only where
    `chosen` itself cannot be applied.
    """
    scored = _Scored(examples_under, log_probs, chosen.longest)
    others = [Mask(loss, end, chosen.longest) for loss in LOSSES for end in (True, False)]
    candidates = [Candidate(chosen, scored.mean(chosen))]
    candidates += [Candidate(mask, scored.mean_or_none(mask)) for mask in others if mask != chosen]
    recorded, evaluated = last_loss(state, "loss"), last_loss(state, "eval_loss")
    best = candidates[0] if recorded is None else _nearest(candidates, recorded)
    warnings = _unknown(state) if recorded is None else _differences(candidates[0], best, recorded)
    return MaskCheck(chosen, best.mask, recorded, evaluated, tuple(candidates), warnings)


def last_loss(state: Mapping[str, Any] | None, name: str) -> float | None:
    """The mean of the last tenth of a loss in the history; None where it has none."""
    history = state.get("log_history") if state is not None else None
    entries = [entry.get(name) for entry in history if isinstance(entry, Mapping)] if isinstance(history, list) else []
    losses = [loss for loss in entries if isinstance(loss, float) and 0 <= loss < math.inf]
    return float(np.mean(losses[-max(1, round(TAIL * len(losses))) :])) if losses else None


class _Scored:
    """The losses of all tokens of the sample, of which each mask takes some."""

    def __init__(self, examples_under: Examples, log_probs: LogProbs, longest: int | None) -> None:
        self.examples_under, self.log_probs = examples_under, log_probs
        whole = examples_under(Mask("all", True, longest))
        self.whole = {example.record: example for example in whole}
        scores = log_probs(whole)
        self.losses = {
            example.record: dict(zip(example.answer, (-own).tolist(), strict=True))
            for example, own in zip(whole, scores, strict=True)
        }

    def mean(self, mask: Mask) -> float | None:
        """Over all tokens that count, in nats; None where there are none."""
        losses = [loss for example in self.examples_under(mask) for loss in self._of(example)]
        return float(np.mean(losses)) if losses else None

    def mean_or_none(self, mask: Mask) -> float | None:
        try:
            return self.mean(mask)
        except BadLines:
            return None

    def _of(self, example: Example) -> list[float]:
        """The losses of its answer: known, since no token's loss depends on later ones, or asked for anew."""
        whole = self.whole.get(example.record)
        if whole is None or whole.ids[: len(example.ids)] != example.ids:
            (scores,) = self.log_probs([example])
            return [-float(score) for score in scores]
        known = self.losses[example.record]
        return [known[position] for position in example.answer]


def _nearest(candidates: Sequence[Candidate], recorded: float) -> Candidate:
    """The nearest, of which the first is the chosen one; with the end of turns where that does as well.

    A model that learnt to end its turns is so sure of it that the mean is hardly another without; else it is not.
    """
    nearest = min(candidates, key=lambda found: _distance(found, recorded))
    twins = (found for found in candidates if found.mask.loss == nearest.mask.loss and _fits(found, recorded))
    return next((found for found in twins if found is candidates[0] or found.mask.end), nearest)


def _fits(candidate: Candidate, recorded: float) -> bool:
    return _distance(candidate, recorded) <= TOLERANCE * recorded


def _distance(candidate: Candidate, recorded: float) -> float:
    return math.inf if candidate.loss is None else abs(candidate.loss - recorded)


def _unknown(state: Mapping[str, Any] | None) -> tuple[str, ...]:
    why = "there is no trainer_state.json" if state is None else "the trainer's state has no loss history"
    return (f"{why}: which tokens counted in training was not verified",)


def _differences(chosen: Candidate, best: Candidate, recorded: float) -> tuple[str, ...]:
    """What to warn of: a mask that does not give the recorded loss, and that none does."""
    warnings = []
    if not _fits(chosen, recorded):
        nearest = "" if best.mask == chosen.mask else f"; nearest is {_told(best)}"
        warnings.append(f"the trainer recorded a mean loss of {recorded:.4g}, the mask gives {_told(chosen)}{nearest}")
    if not _fits(best, recorded):
        warnings.append("no mask gives the recorded loss: other data, another template or another model was trained")
    return tuple(warnings)


def _told(candidate: Candidate) -> str:
    """As in `0.31 (assistant, end in)`."""
    loss = "none" if candidate.loss is None else f"{candidate.loss:.4g}"
    return f"{loss} ({candidate.mask.loss}, end {'in' if candidate.mask.end else 'out'})"
