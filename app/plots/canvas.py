"""What every drawing is made of: elements, text that is always escaped, scales with round ticks, one style sheet."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from pathlib import Path

WIDTH = 720.0
ROW = 26.0
TOP = 34.0
BOTTOM = 42.0
MOST_LETTERS = 30
"""Of a label at the left: nothing here knows the viewer's font."""
MOST_TICKS = 6

STYLE = Path(__file__).with_name("plots.css")
"""What a page that shows drawings needs."""
NOT_IN_XML = re.compile(r"[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

Value = str | float | int


@dataclass(frozen=True, slots=True)
class Plot:
    """A finished drawing. `body` is its elements; `description` says in words what is to be seen.

    `columns` and `rows` are its numbers as a table, for whoever does not see it.
    """

    title: str
    description: str
    width: float
    height: float
    body: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def inline(self) -> str:
        """To be put into a page that has the style sheet."""
        size = f'viewBox="0 0 {coordinate(self.width)} {coordinate(self.height)}"'
        words = f"{element('title', self.title)}{element('desc', self.description)}"
        return f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" {size} role="img">{words}{self.body}</svg>'

    def standalone(self) -> str:
        """As a file of its own."""
        opening, body = self.inline().split("</desc>", 1)
        size = f'width="{coordinate(self.width)}" height="{coordinate(self.height)}"'
        return f"{opening.replace('role=', size + ' role=', 1)}</desc>{element('style', style_sheet())}{body}"


@cache
def style_sheet() -> str:
    return STYLE.read_text(encoding="utf-8")


@dataclass(slots=True)
class Canvas:
    """Elements drawn so far, in order."""

    height: float
    width: float = WIDTH
    elements: list[str] = field(default_factory=list)

    def add(self, name: str, text: str = "", /, *, tip: str = "", **attributes: Value) -> None:
        self.elements.append(element(name, text, tip=tip, **attributes))

    def text(self, x: float, y: float, words: str, kind: str, *, most: int = 0, tip: str = "") -> None:
        """`kind` is its class; longer than `most` characters is cut, and whole in the tooltip."""
        shown = shortened(words, most) if most else words
        self.add("text", shown, tip=tip or (words if shown != words else ""), x=x, y=y, class_=kind)

    def axis(self, scale: Scale, bottom: float, label: str) -> None:
        """Grid lines with their numbers from `TOP` down to `bottom`."""
        for tick in scale.ticks:
            x = scale(tick)
            self.add("path", d=f"M{coordinate(x)} {coordinate(TOP)}V{coordinate(bottom)}", class_="grid")
            self.text(x, bottom + 16, f"{tick:.10g}", "tick middle")
        self.text((scale.start + scale.stop) / 2, bottom + 34, label, "tick middle", most=70)

    def plot(self, title: str, description: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Plot:
        page = element("rect", class_="page", width=self.width, height=self.height)
        heading = element("text", shortened(title, 84), x=16, y=20, class_="heading")
        body = page + heading + "".join(self.elements)
        return Plot(title, description, self.width, self.height, body, tuple(columns), tuple(map(tuple, rows)))


@dataclass(frozen=True, slots=True)
class Scale:
    """Values between `low` and `high` to places between `start` and `stop`, on one axis."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)

    @property
    def ticks(self) -> list[float]:
        step = round_step((self.high - self.low) / MOST_TICKS)
        first = math.ceil(self.low / step - 1e-9)
        return [count * step for count in range(first, math.floor(self.high / step + 1e-9) + 1)]


def scale_over(values: Iterable[float], start: float, stop: float, *, zero: bool = True) -> Scale:
    """A scale with some room around all of the values, and zero if wanted."""
    given = [*values, 0.0] if zero else list(values)
    low, high = min(given, default=0.0), max(given, default=0.0)
    room = (high - low) * 0.06 or max(abs(high), 1e-9) * 0.5
    return Scale(low - (room if low else 0.0), high + (room if high or low == high else 0.0), start, stop)


def round_step(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is not below `least`, which is positive."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(size * power for size in (1, 2, 5, 10) if size * power >= least * (1 - 1e-9))


def element(name: str, text: str = "", /, *, tip: str = "", **attributes: Value) -> str:
    """One element; `class_` is its class, other underscores are hyphens. `tip` is its tooltip."""
    inside = (f"<title>{clean(tip)}</title>" if tip else "") + clean(text)
    pairs = "".join(f' {named(key)}="{written(value)}"' for key, value in attributes.items())
    return f"<{name}{pairs}>{inside}</{name}>" if inside else f"<{name}{pairs}/>"


def named(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def written(value: Value) -> str:
    return clean(value) if isinstance(value, str) else coordinate(value)


def coordinate(value: float) -> str:
    return f"{round(value, 1):g}" if abs(value) < 1e5 else f"{value:.0f}"


def clean(text: str) -> str:
    """Escaped, and without what XML cannot hold."""
    return escape(NOT_IN_XML.sub("\ufffd", text))


def shortened(text: str, most: int = MOST_LETTERS) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def signed(value: float) -> str:
    return f"{value:+.3g}"


def listed(words: Sequence[str]) -> str:
    """A short list in words."""
    return "; ".join(words) if words else "nothing"
