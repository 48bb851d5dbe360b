"""From which sources of a context does a response come? The text of sources is left out, and the response read again.

After Cohen-Wang et al., *ContextCite: Attributing Model Generation to Context*, 2024. Of each prompt with about half of
the sources the response's tokens get logits l = ln p - ln(1 - p); y = their mean over a segment of the response; a
LASSO on the sources gives their effects in logits per token, and tanh squashes these into (-1, 1).

A prompt is the kept sources, each but the first with the white space that stands before it in the context, a line
break, and the query: under the model's chat template as one message of the user, and as it stands for a model without.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from explainers.ablations import ALPHA, PROBABILITY, ablations, sparse_fit
from explainers.chat_template import Message
from explainers.decoding import outcome_of
from explainers.errors import InvalidRequest
from explainers.forcing import Forced, forcing
from explainers.granularity import paragraphs, sentences, trimmed
from explainers.language_model import LanguageModel, TokenSequence
from explainers.types import Attribution, Checkpoint, Feature, Span, Target, never_stop

METHOD = "context-attribution"
FEWEST, MOST = 32, 256
"""Ablations of one question; fewer where the sources have no more choices."""

LARGEST = 0.999999
"""What an attribution stays within."""

SourceGranularity: TypeAlias = Literal["sentence", "paragraph"]
Choice: TypeAlias = NDArray[np.float64]  # (F,), 1 for each source that is kept, else 0


@dataclass(frozen=True, slots=True)
class ContextQuestion:
    """From which parts of `context` does `response` to `query` come? With `highlight`: its first occurrence in it."""

    context: str
    query: str
    response: str
    highlight: str | None = None
    granularity: SourceGranularity = "sentence"
    ablations: int = FEWEST

    @property
    def seed(self) -> int:
        """The same for every part of the response."""
        material = [self.context, self.query, self.response, self.granularity, self.ablations]
        return int.from_bytes(hashlib.sha256(json.dumps(material).encode()).digest())


def fitting_ablations(context: str, granularity: SourceGranularity, top_k: int) -> int:
    """As many as finding the `top_k` sources takes: in proportion to their number and to the logarithm of all."""
    count = len(sources_of(context, granularity))
    wanted = math.ceil(4 * min(top_k, count) * math.log2(1 + count))
    return min(MOST, max(FEWEST, wanted + wanted % 2))


def sources_of(context: str, granularity: SourceGranularity) -> list[Span]:
    """The sources of a context, without surrounding white space."""
    return _CUTS[granularity](context)


def segments_of(response: str, highlight: str | None) -> list[Span]:
    """What is explained: the highlight, or else every sentence. Raises InvalidRequest when it does not occur."""
    if highlight is None:
        return sentences(response)
    start = response.find(highlight)
    if start < 0:
        raise InvalidRequest("must occur in the response, character by character", "/highlight")
    return [Span(start, start + len(highlight))]


def check(question: ContextQuestion) -> None:
    """Raises InvalidRequest for what no model can answer."""
    for name in ("context", "response"):
        if not getattr(question, name).strip():
            raise InvalidRequest("must not be blank", f"/{name}")
    segments_of(question.response, question.highlight)
    if not FEWEST <= question.ablations <= MOST:
        raise InvalidRequest(f"must be {FEWEST} to {MOST}", "/num_ablations")


def attribute(model: LanguageModel, question: ContextQuestion, checkpoint: Checkpoint = never_stop) -> Attribution:
    """Attributions (G, F) of all sources for each segment; blocks until done."""
    return outcome_of(attributing(model, question, checkpoint))


def attributing(
    model: LanguageModel, question: ContextQuestion, checkpoint: Checkpoint = never_stop
) -> Generator[None, None, Attribution]:
    """`attribute`, which pauses after each pass; its seconds are those without the pauses.

    Raises InvalidRequest and its kin, pointing to the members of the question, OutOfMemory, InconsistentAnswer.
    """
    seconds, steps = 0.0, _attributing(model, question, checkpoint)
    while True:
        started = time.perf_counter()
        try:
            next(steps)
        except StopIteration as end:
            found: Attribution = end.value
            seconds += time.perf_counter() - started
            return replace(found, facts={**found.facts, "seconds": seconds})
        seconds += time.perf_counter() - started
        yield


def _attributing(
    model: LanguageModel, question: ContextQuestion, checkpoint: Checkpoint
) -> Generator[None, None, Attribution]:
    check(question)
    sources = sources_of(question.context, question.granularity)
    segments = segments_of(question.response, question.highlight)
    kept, sequences = ablated(model, question, sources)
    membership = _membership(sequences[0], segments)  # (T, G)
    forced = yield from forcing(model, sequences, checkpoint)
    outcomes = forced.logits @ membership  # (N, G)
    effects, diagnostics = _effects(kept, outcomes)
    warnings = sorted({warning for sequence in sequences for warning in sequence.warnings})
    return Attribution(
        METHOD,
        tuple(Feature(_cut(question.context, source), 0, source) for source in sources),
        tuple(Target(_cut(question.response, segment), segment) for segment in segments),
        np.tanh(effects).clip(-LARGEST, LARGEST) + 0.0,  # no zero has a sign
        facts=_facts(model, question, forced) | {"diagnostics": diagnostics, "warnings": warnings},
    )


def ablated(
    model: LanguageModel, question: ContextQuestion, sources: Sequence[Span]
) -> tuple[NDArray[np.float64], list[TokenSequence]]:  # (N, F), N
    """The choices of sources, and what the model reads with each; raises ContextLengthExceeded when all do not fit."""
    response = _tokens(model, question.response)
    _sequence(model, question, response, sources, np.ones(len(sources)))  # before anything is drawn
    kept = ablations(np.random.default_rng(question.seed), question.ablations, len(sources))
    return kept, [_sequence(model, question, response, sources, choice) for choice in kept]


def largest(model: LanguageModel, question: ContextQuestion) -> TokenSequence:
    """What the model reads with all sources; raises ContextLengthExceeded when they do not fit."""
    sources = sources_of(question.context, question.granularity)
    return _sequence(model, question, _tokens(model, question.response), sources, np.ones(len(sources)))


def prompt_text(model: LanguageModel, context: str, query: str) -> str:
    """What the model reads before the response; a start token in it is left out where the model gets one anyway."""
    said = "\n".join(part for part in (context, query) if part)
    if model.chat is None:
        return said
    try:
        text = model.chat.render([Message("user", said)])
    except InvalidRequest as error:
        raise type(error)(str(error)) from error
    return text.removeprefix(model.chat.tokens.get("bos_token", "") if model.start else "")


def kept_text(context: str, sources: Sequence[Span], kept: Choice) -> str:
    """The kept sources; before each but the first the white space that stands there in the context."""
    gaps = ["", *(context[left.stop : right.start] for left, right in pairwise(sources))][: len(sources)]
    own = [(gap, _cut(context, source)) for gap, source, keep in zip(gaps, sources, kept, strict=True) if keep]
    return "".join(gap * (place > 0) + text for place, (gap, text) in enumerate(own))


def _tokens(model: LanguageModel, response: str) -> Encoding:
    tokens = model.tokenize(response, "/response", special_tokens=False)
    model.check_text(tokens.ids, "/response")
    if not tokens.ids:
        raise InvalidRequest("the response holds no token", "/response")
    return tokens


def _sequence(
    model: LanguageModel, question: ContextQuestion, response: Encoding, sources: Sequence[Span], kept: Choice
) -> TokenSequence:
    """What the model reads with this choice of sources; raises ContextLengthExceeded when it does not fit."""
    text = prompt_text(model, kept_text(question.context, sources, kept), question.query)
    ids = model.tokenize(text, "/context", special_tokens=False).ids
    model.check_text(ids, "/context")
    try:
        start, warnings = model.start_before(ids)
        model.check_length(len(start) + len(ids), len(response.ids))
    except InvalidRequest as error:
        raise type(error)(str(error), "/context" if ids else "/query") from error
    spans = tuple(Span(*offsets) for offsets in response.offsets)
    return TokenSequence(start, tuple(ids), tuple(response.ids), (), spans, warnings)


def _membership(sequence: TokenSequence, segments: Sequence[Span]) -> NDArray[np.float64]:  # (T, G)
    """What each token of the response weighs in the mean of each segment: the same for all that overlap it."""
    starts, stops = (np.array([getattr(span, end) for span in sequence.target_spans]) for end in ("start", "stop"))
    inside = np.stack([(starts < place.stop) & (stops > place.start) for place in segments], axis=1).astype(float)
    if not inside.any(axis=0).all():
        raise InvalidRequest("the model's tokenizer has no token for a part of this response", "/response")
    weights: NDArray[np.float64] = inside / inside.sum(axis=0)
    return weights


def _effects(
    kept: NDArray[np.float64], outcomes: NDArray[np.float64]
) -> tuple[NDArray[np.float64], dict[str, Any]]:  # (N, F), (N, G) -> (G, F)
    """What each source adds to each outcome; of a single one the difference that it makes."""
    if kept.shape[1] == 1:
        effects, deviations = (outcomes[kept[:, 0] == 1] - outcomes[kept[:, 0] == 0]).T, kept.std(axis=0)
        standardised = effects * deviations
    else:
        fit = sparse_fit(kept, outcomes)
        effects, standardised, deviations = fit.slopes, fit.standardised, fit.deviations
    diagnostics = {
        "num_sources": kept.shape[1],
        "num_ablations": len(kept),
        "lasso_alpha": ALPHA,
        "mask_probability": PROBABILITY,
        "y_vector_stats": _spread(outcomes),
        "raw_coef_stats": _spread(standardised),
        "scaler_stats": _spread(deviations),
    }
    return effects, diagnostics


def _spread(values: NDArray[np.float64]) -> dict[str, float]:
    numbers = {"mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
    return {name: float(number) for name, number in numbers.items()}


def _facts(model: LanguageModel, question: ContextQuestion, forced: Forced) -> dict[str, Any]:
    return {
        "granularity": question.granularity,
        "forwards": forced.forwards,
        "rows": forced.rows,
        "samples": len(forced.logits),
        "target_tokens": forced.logits.shape[1],
        "dtype": str(model.facts.get("dtype", "")),
        "device": str(model.device),
    }


def _paragraphs(text: str) -> list[Span]:
    pieces = [trimmed(text, piece.start, piece.stop) for piece in paragraphs(text)]
    return [piece for piece in pieces if piece.length]


def _cut(text: str, place: Span) -> str:
    return text[place.start : place.stop]


_CUTS: Mapping[SourceGranularity, Callable[[str], list[Span]]] = {"sentence": sentences, "paragraph": _paragraphs}
