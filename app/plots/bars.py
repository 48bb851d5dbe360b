"""Bars: the scores of one row, side by side, or the importance of inputs in a region."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from app.plots.canvas import (
    BOTTOM,
    MOST_LETTERS,
    ROW,
    TOP,
    WIDTH,
    Canvas,
    Plot,
    Scale,
    listed,
    scale_over,
    shortened,
    signed,
)

NAMES = 236.0
"""Width kept for the names at the left."""
NUMBERS = 64.0
"""Width kept for the numbers at the right."""
MOST = 20
SURE = 1.96
"""Standard errors to each side, within which the true score lies in 95 of 100 cases."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One input: its score (NaN where it has none), the value it had (shown beside its name), a standard error."""

    name: str
    score: float
    given: str = ""
    error: float | None = None

    @property
    def label(self) -> str:
        return f"{self.name} = {self.given}" if self.given else self.name

    @property
    def short(self) -> str:
        """Of a long label the beginning of the name, and the value."""
        value = f" = {shortened(self.given, MOST_LETTERS // 2)}" if self.given else ""
        return shortened(self.name, MOST_LETTERS - len(value)) + value

    @property
    def tip(self) -> str:
        spread = f" ± {SURE * self.error:.2g}" if self.error is not None and math.isfinite(self.error) else ""
        return f"{self.label}: {signed(self.score)}{spread}" if math.isfinite(self.score) else f"{self.label}: no score"


def ranked(bars: Sequence[Bar]) -> list[Bar]:
    """Those with a score, strongest first; of equals the first named."""
    return sorted((bar for bar in bars if math.isfinite(bar.score)), key=lambda bar: -abs(bar.score))


def bar_plot(title: str, bars: Sequence[Bar], *, axis: str, most: int = MOST) -> Plot:
    """The strongest scores as bars to both sides of zero; whiskers are 95 % intervals. Raises ValueError for none."""
    shown = chosen(bars, most)
    bottom = TOP + ROW * len(shown)
    canvas = Canvas(bottom + BOTTOM)
    scale = scale_over((end for bar in shown for end in ends(bar)), NAMES, WIDTH - NUMBERS)
    canvas.axis(scale, bottom, axis)
    for place, bar in enumerate(shown):
        draw_bar(canvas, scale, TOP + ROW * place, bar)
    zero_line(canvas, scale, bottom)
    words = f"{told(shown, len(bars))}. Orange raises the output, blue lowers it."
    return canvas.plot(title, words, ("input", "score"), [(bar.label, signed(bar.score)) for bar in ranked(bars)])


def regional_plot(title: str, bars: Sequence[Bar], *, axis: str, most: int = MOST) -> Plot:
    """The mean size of scores as bars from zero, largest first. Raises ValueError where there is none."""
    shown = chosen(bars, most)
    bottom = TOP + ROW * len(shown)
    canvas = Canvas(bottom + BOTTOM)
    scale = scale_over((bar.score for bar in shown), NAMES, WIDTH - NUMBERS)
    canvas.axis(scale, bottom, axis)
    for place, bar in enumerate(shown):
        y = TOP + ROW * place
        canvas.text(NAMES - 10, y + 17, bar.short, "label end", tip=bar.label)
        width = max(scale(bar.score) - scale(0), 0.5)
        tip = f"{bar.label}: {bar.score:.4g}"
        canvas.add("rect", tip=tip, x=scale(0), y=y + 4, width=width, height=ROW - 8, class_="size")
        canvas.text(scale(bar.score) + 6, y + 17, f"{bar.score:.3g}", "value")
    zero_line(canvas, scale, bottom)
    listing = listed([f"{bar.name} {bar.score:.3g}" for bar in shown[:5]])
    words = f"Largest first: {listing}{others(len(shown), len(bars))}."
    return canvas.plot(title, words, ("input", axis), [(bar.label, f"{bar.score:.4g}") for bar in ranked(bars)])


def chosen(bars: Sequence[Bar], most: int) -> list[Bar]:
    shown = ranked(bars)[:most]
    if not shown:
        raise ValueError("there is no score to draw")
    return shown


def ends(bar: Bar) -> tuple[float, ...]:
    spread = SURE * bar.error if bar.error is not None and math.isfinite(bar.error) else 0.0
    return (bar.score - spread, bar.score + spread)


def draw_bar(canvas: Canvas, scale: Scale, y: float, bar: Bar) -> None:
    """The bar with its name at the left and its number beyond the end."""
    left, right = sorted((scale(0), scale(bar.score)))
    kind = "up" if bar.score >= 0 else "down"
    canvas.text(NAMES - 10, y + 17, bar.short, "label end", tip=bar.label)
    canvas.add("rect", tip=bar.tip, x=left, y=y + 4, width=max(right - left, 0.5), height=ROW - 8, class_=kind)
    low, high = (scale(end) for end in ends(bar))
    if high > low:
        path = f"M{low:.1f} {y + 13:.1f}H{high:.1f}m0-4v8M{low:.1f} {y + 9:.1f}v8"
        canvas.add("path", tip=bar.tip, d=path, class_="spread")
    canvas.text(WIDTH - 10, y + 17, signed(bar.score), "value end")


def zero_line(canvas: Canvas, scale: Scale, bottom: float) -> None:
    canvas.add("path", d=f"M{scale(0):.1f} {TOP:.1f}V{bottom:.1f}", class_="zero")


def told(shown: Sequence[Bar], count: int) -> str:
    listing = listed([f"{bar.label} {signed(bar.score)}" for bar in shown[:5]])
    return f"Strongest first: {listing}{others(len(shown), count)}"


def others(shown: int, count: int) -> str:
    """That some are left out, where they are."""
    return f"; the {shown} strongest of {count}" if shown < count else ""
