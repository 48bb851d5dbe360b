"""Texts with some of their tokens removed: pieces, what is left without them, and what a model says of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from explainers.answers import check_outputs, numbers
from explainers.errors import InvalidRequest
from explainers.predictor import TextPredictor
from explainers.types import Checkpoint, Feature, Span, never_stop

Removal: TypeAlias = Literal["delete", "placeholder"]
"""What becomes of a removed token: nothing, or another word in its place."""

PLACEHOLDER = "UNKWORDZ"
"""As the package of LIME has it; a model's own mask token says more."""

MASKS_AT_ONCE = 256

MOST_TOKENS = 1000
"""More take gigabytes to solve for, and no encoder reads them."""

TEXTS_AT_ONCE = 2048
"""At most so many texts go into one call."""


@dataclass(frozen=True, slots=True)
class TextOptions:
    """Tokens are what `delimiter`, a regular expression, leaves of a text; delimiters always stay."""

    delimiter: str = r"\W+"
    removal: Removal = "delete"
    placeholder: str = PLACEHOLDER

    @property
    def facts(self) -> dict[str, str]:
        facts: dict[str, str] = {"delimiter": self.delimiter, "removal": self.removal}
        return facts | ({"placeholder": self.placeholder} if self.removal == "placeholder" else {})


@dataclass(frozen=True, slots=True)
class Cut:
    """A text as its M tokens and the M + 1 stretches around them; each occurrence is a token of its own."""

    text: str
    tokens: tuple[Span, ...]  # M, in text order

    @property
    def features(self) -> tuple[Feature, ...]:
        """The place of a feature in this tuple is the token's position in the text."""
        return tuple(Feature(self.text[span.start : span.stop], 0, span) for span in self.tokens)

    def without(self, masks: NDArray[np.bool_], options: TextOptions) -> list[str]:  # (n, M), True = kept
        """The text that each mask leaves."""
        parts = np.array(self._parts(), dtype=object)  # (2M + 1,)
        gone = options.placeholder if options.removal == "placeholder" else ""
        texts: list[str] = []
        for start in range(0, len(masks), MASKS_AT_ONCE):
            block = masks[start : start + MASKS_AT_ONCE]
            left = np.tile(parts, (len(block), 1))
            left[:, 1::2] = np.where(block, parts[1::2], gone)
            texts += ("".join(row) for row in left.tolist())
        return texts

    def _parts(self) -> list[str]:
        parts, stop = [], 0
        for span in self.tokens:
            parts += [self.text[stop : span.start], self.text[span.start : span.stop]]
            stop = span.stop
        return [*parts, self.text[stop:]]


def cut(text: str, delimiter: str) -> Cut:
    """Raises InvalidRequest for a delimiter that is not a regular expression, and for too many tokens."""
    try:
        pattern = re.compile(delimiter)
    except re.error as error:
        raise InvalidRequest("the delimiter is not a regular expression", "/text_delimiter") from error
    gaps = [match.span() for match in pattern.finditer(text) if match.end() > match.start()]
    starts, stops = [0, *(stop for _, stop in gaps)], [*(start for start, _ in gaps), len(text)]
    spans = (Span(start, stop) for start, stop in zip(starts, stops, strict=True))
    tokens = tuple(span for span in spans if span.length)
    if len(tokens) > MOST_TOKENS:
        raise InvalidRequest(f"the text has {len(tokens)} tokens; {MOST_TOKENS} can be explained")
    return Cut(text, tokens)


def facts_of(predictor: TextPredictor, options: TextOptions, seed: int, output: NDArray[np.float64]) -> dict[str, Any]:
    """What every explanation of a text says of itself; `output` (K,) is that of the whole text."""
    return {
        "output": predictor.space,
        "model_digest": predictor.digest,
        "seed": seed,
        "prediction": numbers(output),
        **options.facts,
    }


def predict_texts(
    predictor: TextPredictor, texts: Sequence[str], checkpoint: Checkpoint = never_stop
) -> NDArray[np.float64]:  # (n, K)
    """Outputs of all texts, each different one predicted once, the shortest first, so that batches need little padding.

    Raises InconsistentAnswer for outputs that are not finite.
    """
    places = {text: place for place, text in enumerate(sorted(dict.fromkeys(texts), key=len))}
    once, blocks = list(places), []
    for start in range(0, len(once), TEXTS_AT_ONCE):
        checkpoint()
        block = once[start : start + TEXTS_AT_ONCE]
        blocks.append(predictor.predict(block))
        check_outputs(blocks[-1], len(block), predictor.outputs)
    found: NDArray[np.float64] = np.concatenate(blocks) if blocks else np.zeros((0, len(predictor.outputs)))
    return found[[places[text] for text in texts]] if len(texts) else found
