"""A stored explanation as a page that stands alone: coloured pieces of the prompt, no script, nothing from elsewhere.

Images of the prompt are in the page itself, with their tiles laid over them.

Colours run from blue (hinders the target) over none to orange (supports it), which colour-blind people can tell apart;
the sign also shows as a dashed or solid underline.
"""

from __future__ import annotations

import hashlib
import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from app.explain import Stored
from app.records import item_from
from explainers.images import media_type, shown_size
from explainers.types import Attribution, Feature, Image, Item, Span, Text, Tile, TokenIds

LEVELS = 10
FAINT = 0.02
NATS = "nats"
STRONG = 1.0
"""Nats: scores are coloured relative to the largest of them, but never to less than this."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of characters; without scores it is plain text between scored pieces."""

    text: str
    scores: tuple[float, ...] = ()
    level: int = 0
    tile: Tile | None = None  # its place in an image, in pixels

    @property
    def label(self) -> str:
        return ", ".join(f"{score:+.4g}" for score in self.scores)

    @property
    def style(self) -> str:
        return f"{'p' if self.level > 0 else 'n'}{abs(self.level)}" if self.level else "zero"


@dataclass(frozen=True, slots=True)
class Picture:
    """An image of the prompt, as the page shows it."""

    id: str
    width: int
    height: int
    url: str  # with the whole file in it


@dataclass(frozen=True, slots=True)
class Part:
    """An item of the prompt, or the target so far; the pieces of a picture are tiles on it."""

    name: str
    pieces: tuple[Piece, ...]
    picture: Picture | None = None


@dataclass(frozen=True, slots=True)
class Section:
    """One explained target: the target with its place marked, and the pieces of each prompt item."""

    before: str
    target: str
    after: str
    items: tuple[Part, ...]


def heat_map(stored: Stored) -> str:
    """The page, escaped throughout."""
    sections, scale = sections_of(stored), scale_of(stored)
    pictures = {part.picture.id: part.picture for section in sections for part in section.items if part.picture}
    page = environment().get_template("heatmap.html")
    return page.render(
        stored=stored,
        pictures=list(pictures.values()),
        sections=sections,
        scale=scale,
        levels=legend(scale),
        facts=shown_facts(stored),
        unit=unit_of(stored),
        policy=file_policy(),
    )


def sections_of(stored: Stored, most: int | None = None, scale: float | None = None) -> list[Section]:
    """Of the first targets, or of all; coloured by their own scale, or by a given one."""
    attribution, scale = stored.attribution, scale or scale_of(stored)
    prompt = tuple(item_from(item) for item in stored.request["prompt"])
    pictures = {index: picture_of(item, index) for index, item in enumerate(prompt) if isinstance(item, Image)}
    # Not the request's own target: that is empty where the model was asked to complete the prompt itself.
    target = "".join(part.text for part in attribution.targets)
    return [
        section(attribution, prompt, pictures, target, row, scale, around(stored, row))
        for row in range(len(attribution.targets))[:most]
    ]


def around(stored: Stored, row: int) -> tuple[str, str]:
    """What was said before and after a target: other targets, or, where these leave parts out, the text as asked."""
    texts, place = [part.text for part in stored.attribution.targets], stored.attribution.targets[row].span
    whole = stored.request["target"]
    if place is not None and whole not in ("", "".join(texts)):
        return whole[: place.start], whole[place.stop :]
    return "".join(texts[:row]), "".join(texts[row + 1 :])


def scale_of(stored: Stored) -> float:
    """The largest score, or `STRONG` where all are smaller."""
    return max([STRONG, *abs(stored.attribution.values).ravel().tolist()])


def unit_of(stored: Stored) -> str:
    """What the scores are, as they were asked for."""
    config = stored.request.get("config", {})
    if config.get("normalize"):
        return "shares of the range from the least score to the largest"
    forms = {"absolute": "nats without their sign", "square": "squared nats"}
    return forms.get(config.get("postprocessing", "none"), NATS)


def picture_of(image: Image, index: int) -> Picture:
    width, height = shown_size(image.data)
    url = f"data:{media_type(image.data)};base64,{b64encode(image.data).decode()}"
    return Picture(f"image{index + 1}", width, height, url)


def page_policy() -> str:
    """The Content-Security-Policy of the page: nothing at all but its own style sheet and the images in it."""
    return f"{file_policy()}; frame-ancestors 'none'"


def file_policy() -> str:
    """The same as it stands in the page, for when it is opened as a file: there it cannot speak of frames."""
    digest = b64encode(hashlib.sha256(style().encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


@cache
def environment() -> Environment:
    return Environment(loader=PackageLoader("app"), autoescape=True, undefined=StrictUndefined, trim_blocks=True)


@cache
def style() -> str:
    """The style sheet exactly as it stands in the page."""
    return environment().get_template("heatmap.css").render()


def section(
    attribution: Attribution,
    prompt: Sequence[Item],
    pictures: Mapping[int, Picture],
    target: str,
    row: int,
    scale: float,
    around: tuple[str, str],
) -> Section:
    """The explanation of target number `row`; of the target's own tokens only those before it count."""
    scores = attribution.values[row].tolist()
    scored = list(zip(attribution.features, scores, strict=True))
    items = []
    for index, item in enumerate(prompt):
        mine = [(feature, score) for feature, score in scored if feature.item == index]
        picture = pictures.get(index)
        pieces = tile_pieces(picture, mine, scale) if picture else pieces_of(item, mine, scale)
        items.append(Part(name_of(item, index), pieces, picture))
    earlier = [(feature, score) for feature, score in scored if feature.item == len(prompt)][:row]
    if earlier:
        items.append(Part("target so far", text_pieces(target_so_far(target, earlier), earlier, scale)))
    before, after = around
    return Section(before, attribution.targets[row].text, after, tuple(items))


def name_of(item: Item, index: int) -> str:
    """What the item is called: of a chat, who says it in which message, and the part's own name."""
    if not isinstance(item, Text) or item.turn is None:
        return f"prompt item {index + 1}"
    said = f"message {item.turn.message + 1}, {item.turn.role}"
    return f"{said}: {item.turn.name}" if item.turn.name else said


def target_so_far(target: str, earlier: Sequence[tuple[Feature, float]]) -> str:
    stops = [feature.place.stop for feature, _ in earlier if isinstance(feature.place, Span)]
    return target[: max(stops, default=0)]


def pieces_of(item: Item, scored: Sequence[tuple[Feature, float]], scale: float) -> tuple[Piece, ...]:
    match item:
        case Text(data):
            return text_pieces(data, scored, scale)
        case TokenIds(ids):
            numbers = [piece(str(token), (score,), scale) for token, (_, score) in zip(ids, scored, strict=True)]
            return tuple(part for number in numbers for part in (number, Piece(" ")))
        case _:
            return ()


def tile_pieces(picture: Picture, scored: Sequence[tuple[Feature, float]], scale: float) -> tuple[Piece, ...]:
    return tuple(
        replace(piece(feature.name, (score,), scale), tile=in_pixels(feature.place, picture))
        for feature, score in scored
        if isinstance(feature.place, Tile)
    )


def in_pixels(tile: Tile, picture: Picture) -> Tile:
    across, down = picture.width, picture.height
    sides = (tile.left * across, tile.top * down, tile.width * across, tile.height * down)
    return Tile(*(round(side, 2) for side in sides))


def text_pieces(text: str, scored: Sequence[tuple[Feature, float]], scale: float) -> tuple[Piece, ...]:
    """Scored pieces and the plain text between them; features that share characters become one piece."""
    runs: list[tuple[int, int, list[float]]] = []
    for feature, score in scored:
        start, stop = (feature.place.start, feature.place.stop) if isinstance(feature.place, Span) else (0, 0)
        if runs and start < runs[-1][1]:
            first, last, scores = runs.pop()
            runs.append((first, max(last, stop), [*scores, score]))
        else:
            runs.append((start, stop, [score]))
    pieces, end = [], 0
    for start, stop, scores in runs:
        pieces += [Piece(shown(text, end, start)), piece(shown(text, start, stop), tuple(scores), scale)]
        end = stop
    return tuple(part for part in (*pieces, Piece(shown(text, end, len(text)))) if part.text or part.scores)


def shown(text: str, start: int, stop: int) -> str:
    """A part of the text, where CR and LF make one line break also when they fall into two parts."""
    part = text[start:stop].replace("\r\n", "\n")
    return part[:-1] if part.endswith("\r") and text[stop : stop + 1] == "\n" else part


def piece(text: str, scores: tuple[float, ...], scale: float) -> Piece:
    return Piece(text, scores, level(max(scores, key=abs), scale))


def level(score: float, scale: float) -> int:
    """-10 to 10; the square root lets weak scores still show. Less than a fiftieth of the scale is none."""
    share = abs(score) / scale
    steps = 0 if share < FAINT else math.ceil(LEVELS * math.sqrt(min(1.0, share)))
    return int(math.copysign(steps, score))


def legend(scale: float) -> tuple[Piece, ...]:
    return tuple(piece(f"{share * scale:+.3g}", (share * scale,), scale) for share in (-1.0, -0.25, 0.0, 0.25, 1.0))


def shown_facts(stored: Stored) -> Mapping[str, object]:
    """What the table below the map says."""
    facts = stored.attribution.facts
    plain = {name: value for name, value in facts.items() if isinstance(value, str | int | float)}
    named = {
        "id": stored.id,
        "model": stored.model,
        "weights": stored.model_digest,
        "method": stored.attribution.method,
    }
    times = {"stored": stored.created_at.isoformat(timespec="seconds"), "forwards": stored.forwards}
    warnings = {"warnings": "; ".join(facts["warnings"])} if facts.get("warnings") else {}
    return named | plain | times | {"seconds": f"{stored.seconds:.3g}"} | warnings
