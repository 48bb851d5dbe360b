"""A waterfall: how the scores of one row lead from the expected output to the model's own (Lundberg et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence

from app.plots.bars import NAMES, NUMBERS, Bar, ranked
from app.plots.canvas import BOTTOM, ROW, TOP, WIDTH, Canvas, Plot, Scale, listed, scale_over, signed

MOST = 14
POINT = 7.0
"""Length of the arrow head of a step."""


def waterfall(title: str, base: float, bars: Sequence[Bar], *, axis: str, most: int = MOST) -> Plot:
    """From `base` by every score, the strongest first, to their sum; the weakest of many are one step.

    Raises ValueError where there is no score.
    """
    steps = folded(ranked(bars), most)
    if not steps:
        raise ValueError("there is no score to draw")
    stops = [base]
    for step in steps:
        stops.append(stops[-1] + step.score)
    bottom = TOP + ROW * (len(steps) + 2)
    canvas = Canvas(bottom + BOTTOM)
    scale = scale_over(stops, NAMES, WIDTH - NUMBERS, zero=False)
    canvas.axis(scale, bottom, axis)
    mark(canvas, scale, TOP, "expected", base)
    for place, step in enumerate(steps):
        draw_step(canvas, scale, TOP + ROW * (place + 1), step, stops[place])
    mark(canvas, scale, TOP + ROW * (len(steps) + 1), "output", stops[-1])
    listing = listed([f"{step.label} {signed(step.score)}" for step in steps[:6]])
    words = f"From the expected output {base:.4g} to the output {stops[-1]:.4g}. Steps: {listing}."
    rows = [("expected", "", f"{base:.4g}")]
    rows += [(step.label, signed(step.score), f"{stop:.4g}") for step, stop in zip(steps, stops[1:], strict=True)]
    return canvas.plot(title, words + " Orange raises the output, blue lowers it.", ("step", "score", "output"), rows)


def folded(bars: Sequence[Bar], most: int) -> list[Bar]:
    """The strongest, and the others as one that has their sum."""
    if len(bars) <= most:
        return list(bars)
    kept, rest = bars[: most - 1], bars[most - 1 :]
    return [*kept, Bar(f"{len(rest)} others", sum(bar.score for bar in rest))]


def mark(canvas: Canvas, scale: Scale, y: float, name: str, value: float) -> None:
    """A line at an output, with its number."""
    canvas.text(NAMES - 10, y + 17, name, "label end strong")
    canvas.add("path", tip=f"{name}: {value:.6g}", d=f"M{scale(value):.1f} {y + 2:.1f}v{ROW - 4:.1f}", class_="stop")
    canvas.text(WIDTH - 10, y + 17, f"{value:.4g}", "value end strong")


def draw_step(canvas: Canvas, scale: Scale, y: float, step: Bar, start: float) -> None:
    """An arrow from one stop to the next."""
    first, last = scale(start), scale(start + step.score)
    canvas.text(NAMES - 10, y + 17, step.short, "label end", tip=step.label)
    canvas.add("path", d=arrow(first, last, y + 4, ROW - 8), tip=step.tip, class_="up" if step.score >= 0 else "down")
    canvas.add("path", d=f"M{last:.1f} {y + ROW - 4:.1f}v8", class_="link")
    canvas.text(WIDTH - 10, y + 17, signed(step.score), "value end")


def arrow(first: float, last: float, y: float, height: float) -> str:
    """A bar with a pointed end."""
    length = abs(last - first)
    way = 1.0 if last >= first else -1.0
    neck = last - way * min(POINT, length)
    return f"M{first:.1f} {y:.1f}H{neck:.1f}L{last:.1f} {y + height / 2:.1f}L{neck:.1f} {y + height:.1f}H{first:.1f}z"
