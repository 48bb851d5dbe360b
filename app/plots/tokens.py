"""The heat map of a text that was classified: its tokens, each coloured by its score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from app.heatmap import level
from app.heatmap_svg import CELL, cells_of, chunks
from app.plots.canvas import TOP, WIDTH, Canvas, Plot, listed, signed

MARGIN = 16.0
LINE = 28.0
COLUMNS = int((WIDTH - 2 * MARGIN) / CELL)
FLOOR = 0.01
"""Scores are coloured relative to the strongest of them, but never to less than this."""
MOST_TOKENS = 2_000


@dataclass(frozen=True, slots=True)
class Token:
    text: str
    score: float  # NaN where it has none
    position: int


def token_map(title: str, tokens: Sequence[Token]) -> Plot:
    """Tokens in the order of the text, and below them a legend. Raises ValueError for more than `MOST_TOKENS`."""
    if len(tokens) > MOST_TOKENS:
        raise ValueError(f"this text has {len(tokens)} tokens: at most {MOST_TOKENS} are drawn")
    known = [token for token in tokens if math.isfinite(token.score)]
    scale = max([FLOOR, *(abs(token.score) for token in known)])
    canvas = Canvas(0.0)
    column, y = 0, TOP
    for token in tokens:
        for text, cells, _ in chunks(token.text):
            if column and column + cells > COLUMNS:
                column, y = 0, y + LINE
            put(canvas, text[:COLUMNS], MARGIN + column * CELL, y, token, scale)
            column += min(cells, COLUMNS) + 1
    canvas.height = y + LINE + 44
    legend(canvas, y + LINE + 12, scale)
    strongest = sorted(known, key=lambda token: -abs(token.score))[:5]
    listing = listed([f"{token.text} {signed(token.score)}" for token in strongest])
    words = f"{len(tokens)} tokens; strongest: {listing}. Orange raises the output, blue lowers it."
    rows = [(str(each.position), each.text, score_of(each)) for each in tokens]
    return canvas.plot(title, words, ("position", "token", "score"), rows)


def score_of(token: Token) -> str:
    return signed(token.score) if math.isfinite(token.score) else "no score"


def put(canvas: Canvas, text: str, x: float, y: float, token: Token, scale: float) -> None:
    """One token: its colour, a line below it that is dashed where it lowers the output, and its letters."""
    width = sum(map(cells_of, text)) * CELL
    if not width:
        return
    tip = f"{token.text}, position {token.position}: {score_of(token)}"
    cell(canvas, x, y, width, level(token.score, scale) if math.isfinite(token.score) else 0, tip)
    canvas.add(
        "text", text, tip=tip, x=x, y=y + 16, textLength=width, lengthAdjust="spacingAndGlyphs", class_="token"
    )  # fmt: skip


def cell(canvas: Canvas, x: float, y: float, width: float, steps: int, tip: str) -> None:
    if steps:
        kind = f"{'up' if steps > 0 else 'down'} l{abs(steps)}"
        canvas.add("rect", tip=tip, x=x, y=y, width=width, height=LINE - 6, rx=3, class_=f"shade {kind}")
        line = f"M{x:.1f} {y + LINE - 5:.1f}h{width:.1f}"
        canvas.add("path", d=line, class_=f"under {'up' if steps > 0 else 'down'}")


def legend(canvas: Canvas, y: float, scale: float) -> None:
    for place, share in enumerate((-1.0, -0.25, 0.0, 0.25, 1.0)):
        words = f"{share * scale:+.3g}"
        x = MARGIN + place * 100
        cell(canvas, x, y, len(words) * CELL, level(share * scale, scale), words)
        canvas.add("text", words, x=x, y=y + 16, textLength=len(words) * CELL, class_="token")
