"""A beeswarm: the scores of many rows, a line of dots for each input, coloured by the value the input had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.plots.bars import NAMES, zero_line
from app.plots.canvas import MOST_LETTERS, TOP, WIDTH, Canvas, Plot, Scale, listed, scale_over

MOST = 15
MOST_DOTS = 20_000
LINE = 34.0
DOT = 4.0
SHADES = 5
"""Of values from low to high."""
BOTTOM = 66.0


@dataclass(frozen=True, slots=True, eq=False)
class Swarm:
    """One input over n rows. Scores and values are NaN where there is none; `values` is None for what is no number."""

    name: str
    scores: NDArray[np.float64]  # (n,)
    values: NDArray[np.float64] | None = None  # (n,)

    @property
    def size(self) -> float:
        """The mean of the scores' sizes, 0 without any."""
        known = self.scores[np.isfinite(self.scores)]
        return float(np.abs(known).mean()) if known.size else 0.0


def beeswarm(title: str, swarms: Sequence[Swarm], *, axis: str, most: int = MOST) -> Plot:
    """The inputs with the largest mean size of scores; more than `MOST_DOTS` dots are thinned evenly, and that is said.

    Raises ValueError where there is no score.
    """
    shown = sorted((each for each in swarms if np.isfinite(each.scores).any()), key=lambda each: -each.size)[:most]
    if not shown:
        raise ValueError("there is no score to draw")
    count = max(len(each.scores) for each in shown)
    every = -(-count * len(shown) // MOST_DOTS)
    drawn = [thinned(each, every) for each in shown]
    bottom = TOP + LINE * len(shown)
    canvas = Canvas(bottom + BOTTOM)
    scores = np.concatenate([each.scores[np.isfinite(each.scores)] for each in drawn])
    scale = scale_over(scores.tolist(), NAMES, WIDTH - 20)
    canvas.axis(scale, bottom, axis)
    zero_line(canvas, scale, bottom)
    for place, each in enumerate(drawn):
        draw_swarm(canvas, scale, TOP + LINE * (place + 0.5), each)
    legend(canvas, bottom + 56)
    part = f" One in {every} of {count} rows is drawn." if every > 1 else f" {count} rows."
    listing = listed([f"{each.name} {each.size:.3g}" for each in shown[:5]])
    words = f"Mean size of scores, largest first: {listing}.{part}"
    return canvas.plot(title, words, ("input", "mean |score|", "lowest", "highest"), map(row_of, shown))


def row_of(swarm: Swarm) -> tuple[str, ...]:
    known = swarm.scores[np.isfinite(swarm.scores)]
    return swarm.name, f"{swarm.size:.4g}", f"{known.min():+.3g}", f"{known.max():+.3g}"


def thinned(swarm: Swarm, every: int) -> Swarm:
    return Swarm(swarm.name, swarm.scores[::every], None if swarm.values is None else swarm.values[::every])


def draw_swarm(canvas: Canvas, scale: Scale, y: float, swarm: Swarm) -> None:
    """Dots of one shade are one path: a page with thousands of elements is slow."""
    canvas.text(
        NAMES - 10, y + 4, swarm.name, "label end", most=MOST_LETTERS, tip=f"{swarm.name}: mean size {swarm.size:.4g}"
    )
    known = np.flatnonzero(np.isfinite(swarm.scores))
    across = np.array([scale(score) for score in swarm.scores[known].tolist()])
    up = y + stacked(across)
    shades = shades_of(swarm.values, len(swarm.scores))[known]
    for shade in sorted(set(shades.tolist())):
        mine = shades == shade
        dots = "".join(f"M{x:.0f} {at:.0f}h0" for x, at in zip(across[mine].tolist(), up[mine].tolist(), strict=True))
        canvas.add("path", d=dots, class_=f"dots {'v' + str(shade) if shade >= 0 else 'vn'}")


def stacked(across: NDArray[np.float64]) -> NDArray[np.float64]:  # (n,) -> (n,)
    """How far each dot moves up or down so that dots at one place lie side by side; within the line's height."""
    columns = np.round(across / DOT).astype(np.int64)
    _, place, counts = np.unique(columns, return_inverse=True, return_counts=True)
    order = np.argsort(place, kind="stable")
    ranks = np.empty(len(across), dtype=np.int64)
    ranks[order] = np.arange(len(across)) - np.repeat(np.cumsum(counts) - counts, counts)
    sides = np.where(ranks % 2, 1, -1) * ((ranks + 1) // 2)
    highest = np.abs(sides).max(initial=0)
    return sides * min(DOT - 1, (LINE / 2 - DOT) / highest if highest else DOT)


def shades_of(values: NDArray[np.float64] | None, count: int) -> NDArray[np.int64]:  # (n,)
    """0 (low) to `SHADES` - 1 (high) by rank among the row's values; -1 where there is no number."""
    shades = np.full(count, -1, dtype=np.int64)
    known = np.array([], dtype=np.int64) if values is None else np.flatnonzero(np.isfinite(values))
    if values is None or not known.size:
        return shades
    ordered = np.sort(values[known])
    below = np.searchsorted(ordered, values[known], side="left")
    above = np.searchsorted(ordered, values[known], side="right")
    shades[known] = np.minimum((below + above) * SHADES // (2 * len(known)), SHADES - 1)
    return shades


def legend(canvas: Canvas, y: float) -> None:
    canvas.text(NAMES, y + 4, "low value", "tick")
    for shade in range(SHADES):
        canvas.add("path", d=f"M{NAMES + 72 + shade * 12:.0f} {y:.0f}h0", class_=f"dots v{shade}")
    canvas.text(NAMES + 72 + SHADES * 12, y + 4, "high value", "tick")
    canvas.add("path", d=f"M{NAMES + 220:.0f} {y:.0f}h0", class_="dots vn")
    canvas.text(NAMES + 230, y + 4, "no number", "tick")
