"""A stored explanation as one picture: the heat map as a standalone SVG, to be put into documents and pages.

Text is laid out in cells of one width, so that boxes and characters meet with whatever font the viewer has. Attributes
only: no script, no style sheet, nothing from elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from unicodedata import combining, east_asian_width

from app.explain import Stored
from app.heatmap import Piece, Section, environment, legend, scale_of, sections_of, unit_of

COLUMNS = 96
CELL, LINE = 8.4, 26.0
MARGIN = 16.0
IMAGE_WIDTH = 480.0

NOT_IN_XML = re.compile(r"[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
INVISIBLE = ("\u200b", "\u200d", "\ufe0f", "\ufeff")


@dataclass(frozen=True, slots=True)
class Run:
    """Some characters of one line, with the colour of their piece."""

    text: str
    x: float
    y: float
    width: float
    level: int = 0
    label: str | None = None
    strong: bool = False

    @property
    def opacity(self) -> float:
        return round(abs(self.level) * 0.07, 2)


@dataclass(frozen=True, slots=True)
class Box:
    """A tile of a picture."""

    x: float
    y: float
    width: float
    height: float
    level: int
    label: str

    @property
    def opacity(self) -> float:
        return round(abs(self.level) * 0.06, 2)


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture of the prompt, where it stands."""

    url: str
    x: float
    y: float
    width: float
    height: float


@dataclass(slots=True)
class Sheet:
    """What has been drawn so far, from top to bottom."""

    y: float = MARGIN
    runs: list[Run] = field(default_factory=list)
    pictures: list[Shown] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)

    def heading(self, text: str) -> None:
        self.y += LINE / 2
        self.write([Piece(text)], strong=True)

    def write(self, pieces: Sequence[Piece], *, strong: bool = False) -> None:
        """Pieces one behind the other, broken into lines."""
        column = 0
        for piece in pieces:
            label = piece.label if piece.scores else None
            for text, cells, breaks in chunks(piece.text):
                if column and column + cells > COLUMNS:
                    column, self.y = 0, self.y + LINE
                if text or label:
                    width = max(cells, 0 if text else 1) * CELL
                    self.runs.append(Run(text, MARGIN + column * CELL, self.y, width, piece.level, label, strong))
                    column += max(cells, 0 if text else 1)
                if breaks:
                    column, self.y = 0, self.y + LINE
        self.y += LINE

    def section(self, section: Section) -> None:
        self.heading("target")
        self.write([Piece(section.before), Piece(section.target, (), 0), Piece(section.after)])
        for part in section.items:
            self.heading(part.name)
            if part.picture is None:
                self.write(part.pieces)
            else:
                self.tiles(part.picture.url, part.picture.width, part.picture.height, part.pieces)

    def tiles(self, url: str, width: int, height: int, pieces: Sequence[Piece]) -> None:
        by = IMAGE_WIDTH / width
        self.pictures.append(Shown(url, MARGIN, self.y, IMAGE_WIDTH, height * by))
        for piece in pieces:
            if piece.tile is not None:
                x, y = MARGIN + piece.tile.left * by, self.y + piece.tile.top * by
                size = piece.tile.width * by, piece.tile.height * by
                self.boxes.append(Box(x, y, *size, piece.level, f"{piece.text}: {piece.label}"))
        self.y += height * by + LINE / 2


def heat_map_svg(stored: Stored) -> str:
    """The picture, escaped throughout."""
    sheet = Sheet()
    sheet.write([Piece(f"Why did {stored.model} say this?")], strong=True)
    sheet.write([part for piece in legend(scale_of(stored)) for part in (shown(piece), Piece(" "))])
    for section in sections_of(stored):
        sheet.section(section)
    approximate = ", approximate" if stored.attribution.facts.get("approximate") else ""
    sheet.heading(f"{stored.attribution.method}{approximate}, scores in {unit_of(stored)}, {stored.model_digest}")
    page = environment().get_template("heatmap.svg")
    width, height = COLUMNS * CELL + 2 * MARGIN, sheet.y + MARGIN
    return page.render(sheet=sheet, width=width, height=height, line=LINE, id=stored.id)


def picture_policy() -> str:
    """The Content-Security-Policy of the picture: nothing at all but the images in it."""
    return "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def shown(piece: Piece) -> Piece:
    return Piece(piece.text, piece.scores, piece.level)


def chunks(text: str) -> Iterator[tuple[str, int, bool]]:
    """Runs of at most a line, each with its width in cells and whether the line ends behind it; words stay whole."""
    if not text:
        yield "", 0, False
    for part in re.findall(r"\n|[^\S\n]+|[^\s]+", NOT_IN_XML.sub("\ufffd", text).replace("\r", "\n")):
        if part == "\n":
            yield "", 0, True
            continue
        start, cells = 0, 0
        visible = part.replace("\t", "    ")
        for position, character in enumerate(visible):
            size = cells_of(character)
            if cells + size > COLUMNS:
                yield visible[start:position], cells, False
                start, cells = position, 0
            cells += size
        yield visible[start:], cells, False


def cells_of(character: str) -> int:
    if combining(character) or character in INVISIBLE:
        return 0
    return 2 if east_asian_width(character) in "WF" else 1
