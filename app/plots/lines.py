"""Lines: how the importance of inputs changes over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from app.plots.canvas import TOP, WIDTH, Canvas, Plot, Scale, coordinate, listed, scale_over

MOST = 6
"""Lines that can still be told apart."""
LEFT, RIGHT = 56.0, 190.0
HEIGHT = 250.0
BOTTOM = 40.0
GAP = 15.0
"""Between two names at the right."""
MOST_DATES = 5


@dataclass(frozen=True, slots=True)
class Line:
    """One input: its importance at each of the times of the picture, NaN where it has none."""

    name: str
    values: tuple[float, ...]  # (n,)

    @property
    def known(self) -> list[float]:
        return [value for value in self.values if math.isfinite(value)]

    @property
    def mean(self) -> float:
        return sum(self.known) / max(1, len(self.known))

    @property
    def size(self) -> float:
        """How much it matters, to whichever side."""
        return sum(map(abs, self.known)) / max(1, len(self.known))


def line_plot(title: str, times: Sequence[datetime], lines: Sequence[Line], *, axis: str, most: int = MOST) -> Plot:
    """The inputs that matter most over all times; raises ValueError where there is no value."""
    shown = sorted((line for line in lines if any(map(math.isfinite, line.values))), key=lambda line: -line.size)[:most]
    if not shown:
        raise ValueError("there is no score to draw")
    bottom = TOP + 14 + HEIGHT
    canvas = Canvas(bottom + BOTTOM)
    seconds = [moment.timestamp() for moment in times]
    across = span_of(seconds)
    up = scale_over((v for line in shown for v in line.values if math.isfinite(v)), bottom, TOP + 14)
    rule(canvas, up, across, axis)
    dates(canvas, across, times, bottom)
    for place, line in enumerate(shown):
        draw_line(canvas, place, line, [across(second) for second in seconds], up, times)
    name_lines(canvas, shown, up)
    left_out = f"; the {len(shown)} largest of {len(lines)}" if len(shown) < len(lines) else ""
    listing = listed([f"{line.name} {line.mean:.3g} on average" for line in shown])
    words = f"{len(times)} times from {stamp(times[0])} to {stamp(times[-1])}: {listing}{left_out}."
    values = zip(*(line.values for line in shown), strict=True)
    rows = [(stamp(moment), *map(written, each)) for moment, each in zip(times, values, strict=True)]
    return canvas.plot(title, words, ("time", *(line.name for line in shown)), rows)


def written(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "none"


def span_of(seconds: Sequence[float]) -> Scale:
    low, high = min(seconds), max(seconds)
    return Scale(low, high, LEFT, WIDTH - RIGHT) if high > low else Scale(low - 1, low + 1, LEFT, WIDTH - RIGHT)


def rule(canvas: Canvas, up: Scale, across: Scale, axis: str) -> None:
    """Horizontal grid lines with their numbers."""
    canvas.text(16, TOP + 4, axis, "tick", most=80)
    for tick in up.ticks:
        path = f"M{coordinate(across.start)} {coordinate(up(tick))}H{coordinate(across.stop)}"
        canvas.add("path", d=path, class_="zero" if tick == 0 else "grid")
        canvas.text(across.start - 6, up(tick) + 4, f"{tick:.10g}", "tick end")


def dates(canvas: Canvas, across: Scale, times: Sequence[datetime], bottom: float) -> None:
    """Some of the times below the lines."""
    every = -(-len(times) // MOST_DATES)
    for moment in times[::every]:
        x = across(moment.timestamp())
        canvas.text(x, bottom + 20, stamp(moment), "tick middle")


def draw_line(
    canvas: Canvas, place: int, line: Line, across: Sequence[float], up: Scale, times: Sequence[datetime]
) -> None:
    """The line, broken where a value is missing, and a mark for each value."""
    path, drawing = "", False
    for x, value in zip(across, line.values, strict=True):
        known = math.isfinite(value)
        path += f"{'L' if drawing else 'M'}{coordinate(x)} {coordinate(up(value))}" if known else ""
        drawing = known
    canvas.add("path", d=path, class_=f"line s{place}")
    for x, value, moment in zip(across, line.values, times, strict=True):
        if math.isfinite(value):
            tip = f"{line.name}, {stamp(moment)}: {value:.4g}"
            canvas.add("circle", tip=tip, cx=x, cy=up(value), r=3.0, class_=f"mark s{place}")


def name_lines(canvas: Canvas, lines: Sequence[Line], up: Scale) -> None:
    """Names at the right, at the height of each line's last value, moved apart where they would touch."""
    last = [next(value for value in reversed(line.values) if math.isfinite(value)) for line in lines]
    y, x = TOP + 14 - GAP, WIDTH - RIGHT + 12
    for place in sorted(range(len(lines)), key=lambda place: up(last[place])):
        y = max(y + GAP, min(up(last[place]), up.start - GAP * (len(lines) - 1)))
        canvas.add("path", d=f"M{coordinate(x)} {coordinate(y)}h22", class_=f"line s{place}")
        canvas.text(x + 28, y + 4, lines[place].name, "label", most=18)


def stamp(moment: datetime) -> str:
    """The day, and the time where there is one."""
    there = moment.astimezone(UTC)
    midnight = (there.hour, there.minute, there.second) == (0, 0, 0)
    return f"{there:%Y-%m-%d}" if midnight else f"{there:%Y-%m-%d %H:%M}"
