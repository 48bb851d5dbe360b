"""A heat map as the pages show it: the targets to choose from, the scores as numbers, and what is known of them."""

from __future__ import annotations

import json
import pprint
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress, groupby
from typing import Any, NamedTuple
from unicodedata import category
from unicodedata import name as unicode_name

import numpy as np

from app.explain import KIND, Stored
from app.explorer.question_form import Body, body_from
from app.heatmap import Picture, Piece, Section, legend, name_of, scale_of, sections_of, unit_of
from app.records import item_from
from explainers.types import Feature, Target

SHOWN_ROWS = 500
"""Rows of the table of numbers; the file of the explanation has them all."""
MOST_PIECES = 20_000
"""Coloured pieces of one page: as many maps of tokens are shown as that has room for, and at least one."""
UNNAMED = "target so far"
ADDITIVE = ("atman", "gradient")
"""Methods whose scores of a text are exactly the sum of those of its tokens.

The others answer about the text as a whole with other numbers: `ablation` draws and fits anew, `screened` scales by
what it measures.
"""
SEEN = "LNPS"
"""Letters, numbers, punctuation and symbols, by the first letter of their category in Unicode."""
BLANKS: Mapping[str, str] = {"\n": "line break", "\r": "carriage return", "\t": "tab", " ": "space"}


@dataclass(frozen=True, slots=True)
class Number:
    """One score of one piece, with what is known of its noise."""

    where: str
    piece: str
    score: float
    noise: float | None

    @property
    def below(self) -> bool:
        return self.noise is not None and abs(self.score) <= self.noise


@dataclass(frozen=True, slots=True)
class View:
    """One of the maps to choose from: of the whole target, of the sum over its tokens, or of one of them."""

    name: str
    label: str  # the name, or in words what a name without a sign is made of
    token: bool
    summed: bool
    levels: tuple[Piece, ...]  # of its scale
    section: Section
    numbers: tuple[Number, ...]  # by falling size
    left_out: int


class Noisy(NamedTuple):
    """How many scores are no larger than their noise, of how many, and the largest noise."""

    below: int
    counted: int
    largest: float


@dataclass(frozen=True, slots=True)
class Map:
    """Everything that stands beside and in one heat map."""

    stored: Stored
    views: tuple[View, ...]
    pictures: tuple[Picture, ...]  # of the prompt, each once however many views show it
    body: Body | None
    copies: tuple[str, str] | None  # the body as curl and as Python
    facts: Mapping[str, Any]
    noisy: Noisy | None  # None where unknown
    shared: bool  # its scale is also that of the map beside it

    @property
    def factor(self) -> float | None:
        """What attention was multiplied with; None where nothing was."""
        config = self.stored.request.get("config", {})
        return None if self.stored.attribution.method == "ablation" else config.get("control_factor")

    @property
    def unit(self) -> str:
        return unit_of(self.stored)

    @property
    def left_out(self) -> int:
        """Tokens of which no map is shown."""
        shown = sum(view.token for view in self.views) or 1
        return len(self.stored.attribution.targets) - shown

    @property
    def random(self) -> str:
        """What the noise is of."""
        return "sampling" if self.stored.attribution.method == "ablation" else "the model's arithmetic"


def maps_of(found: Sequence[Stored], base: str) -> list[Map]:
    """Maps beside each other, of one scale where their numbers are of one kind: else no colour could be compared.

    Blocks for as long as laying out takes; not for the event loop. `base` is the address of this server.
    """
    scale = None
    if len(found) > 1 and len({unit_of(stored) for stored in found}) == 1:
        scale = max(scale_of(part) for stored in found for part in (stored, *whole_of(stored)))
    return [map_of(stored, base, scale) for stored in found]


def whole_of(stored: Stored) -> list[Stored]:
    """The sum over several targets, where they may be added up."""
    return [summed(stored)] if len(stored.attribution.targets) > 1 and summable(stored) else []


def map_of(stored: Stored, base: str, scale: float | None = None) -> Map:
    """One map, its views coloured by this scale, or by one of their own."""
    body = body_from(stored.model, stored.request) if stored.kind == KIND else None
    attribution = stored.attribution
    views = views_of(stored, max(1, MOST_PIECES // max(1, len(attribution.features))), scale)
    for whole in whole_of(stored):
        (view,) = views_of(whole, 1, scale)
        name = "whole target" if attribution.method in ADDITIVE else "sum over the tokens"
        views = [replace(view, name=name, label=name, summed=True), *views]
    copies = None if body is None else (as_curl(base, body), as_python(base, body))
    facts, shared = dict(attribution.facts), scale is not None
    return Map(stored, tuple(views), pictures_of(views), body, copies, facts, noisy_of(stored), shared)


def noisy_of(stored: Stored) -> Noisy | None:
    """Of the target's own tokens those before a target are counted."""
    attribution = stored.attribution
    if attribution.uncertainty is None:
        return None
    own = np.array([feature.item == len(stored.request["prompt"]) for feature in attribution.features], dtype=bool)
    earlier = (own.cumsum() - 1)[None] < np.arange(len(attribution.targets))[:, None]  # (T, F)
    counted = ~own[None] | earlier
    below = counted & (abs(attribution.values) <= attribution.uncertainty)
    return Noisy(int(below.sum()), int(counted.sum()), float(attribution.uncertainty[counted].max(initial=0.0)))


def pictures_of(views: Sequence[View]) -> tuple[Picture, ...]:
    found = {part.picture.id: part.picture for view in views for part in view.section.items if part.picture}
    return tuple(found.values())


def views_of(stored: Stored, most: int, scale: float | None) -> list[View]:
    many, levels = len(stored.attribution.targets) > 1, legend(scale or scale_of(stored))
    views = []
    for row, section in enumerate(sections_of(stored, most, scale)):
        numbers = numbers_of(stored, row)
        left_out = max(0, len(numbers) - SHOWN_ROWS)
        name, shown = section.target, tuple(numbers[:SHOWN_ROWS])
        views.append(View(name, label_of(name, row), many, False, levels, section, shown, left_out))
    return views


def label_of(name: str, row: int) -> str:
    """What a screen reader can say: the name, or where it has no sign that is seen, its characters in words."""
    if any(category(character)[0] in SEEN for character in name):
        return name
    counted = [(words_of(character), len(list(run))) for character, run in groupby(name)]
    said = ", ".join(word if count == 1 else f"{count} × {word}" for word, count in counted)
    return f"token {row + 1}: {said or 'empty'}"


def words_of(character: str) -> str:
    return BLANKS.get(character) or unicode_name(character, f"character {ord(character):X}").lower()


def summable(stored: Stored) -> bool:
    """Whether its scores are plain nats, which may be added up."""
    config = stored.request.get("config", {})
    return config.get("postprocessing") == "none" and not config.get("normalize", True)


def summed(stored: Stored) -> Stored:
    """The sum over the tokens: log-probabilities add up, and so do their losses.

    Its noise is no larger than the sum of theirs, whatever they have in common: both kinds are lengths of vectors. The
    target's own tokens are no features of it.
    """
    attribution, noise = stored.attribution, stored.attribution.uncertainty
    kept = np.array([feature.item < len(stored.request["prompt"]) for feature in attribution.features], dtype=bool)
    whole = replace(
        attribution,
        features=tuple(compress(attribution.features, kept)),
        targets=(Target("".join(target.text for target in attribution.targets)),),
        values=attribution.values[:, kept].sum(axis=0, keepdims=True),  # (1, F)
        uncertainty=None if noise is None else noise[:, kept].sum(axis=0, keepdims=True),  # (1, F)
    )
    return replace(stored, attribution=whole)


def numbers_of(stored: Stored, row: int) -> list[Number]:
    """All scores of one target, the largest first; of its own tokens those before it."""
    attribution = stored.attribution
    names = [name_of(item_from(item), index) for index, item in enumerate(stored.request["prompt"])]
    noises = None if attribution.uncertainty is None else attribution.uncertainty[row].tolist()
    found, earlier = [], 0
    for column, (feature, score) in enumerate(zip(attribution.features, attribution.values[row].tolist(), strict=True)):
        if feature.item == len(names):
            earlier += 1
            if earlier > row:
                continue
        noise = None if noises is None else noises[column]
        found.append(Number(where_of(feature, names), feature.name, score, noise))
    return sorted(found, key=lambda number: -abs(number.score))


def where_of(feature: Feature, names: Sequence[str]) -> str:
    return names[feature.item] if feature.item < len(names) else UNNAMED


# -- to be copied ------------------------------------------------------------------------------------------------------

END = "END_OF_QUESTION"


def as_curl(base: str, body: Body) -> str:
    """A command that asks the same, with the key in `KEY`.

    The body is its input: an argument may have no more than 128 KiB. JSON of one line is never the line that ends it.
    """
    return f"""curl -s {shlex.quote(base + "explain")} -H "Authorization: Bearer $KEY" \\
  -H 'Content-Type: application/json' --data-binary @- <<'{END}'
{json.dumps(body, ensure_ascii=False)}
{END}
"""


def as_python(base: str, body: Body) -> str:
    """A script that asks the same, with httpx."""
    shown = pprint.pformat(body, width=100, sort_dicts=False)
    return f"""import os

import httpx

question = {shown}
answer = httpx.post(
    {base + "explain"!r},
    headers={{"Authorization": f"Bearer {{os.environ['KEY']}}"}},
    json=question,
    timeout=300,
)
answer.raise_for_status()
print(answer.json())
"""
