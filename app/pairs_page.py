"""Stored training pairs as a page and a picture that stand alone, in the colours of the heat map: level, impact as a
bar, file and line, and the pair itself. The longest bar is the largest impact of the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.explain import StoredOther
from app.heatmap import LEVELS, Piece, environment, file_policy
from app.heatmap_svg import CELL, COLUMNS, LINE, MARGIN, Box, Sheet
from explainers.influence.levels import LEAST_LIFT

BAR = 200.0


@dataclass(frozen=True, slots=True)
class PairRow:
    """A pair as people read it; `width` is the share (0 to 1) of the longest bar."""

    level: str
    impact: float
    score: float
    q_value: float
    group_size: int
    file_id: str
    line: int | None
    question: str
    answer: str
    width: float

    @property
    def style(self) -> str:
        return f"{'n' if self.impact < 0 else 'p'}{LEVELS}"

    @property
    def place(self) -> str:
        return self.file_id if self.line is None else f"{self.file_id}, line {self.line}"


def pair_rows(content: Mapping[str, Any]) -> list[PairRow]:
    """All results of a stored answer, best first."""
    results = content["results"]
    largest = max((abs(each["impact"]) for each in results), default=0.0) or 1.0
    return [pair_row(each, largest) for each in results]


def pair_row(result: Mapping[str, Any], largest: float) -> PairRow:
    question, answer = parts_of(result["messages"])
    same = {name: result[name] for name in ("impact", "score", "q_value", "group_size", "file_id")}
    width = abs(result["impact"]) / largest
    level, line = result["influence_level"], result.get("line")
    return PairRow(level=level, line=line, question=question, answer=answer, width=width, **same)


def parts_of(messages: str) -> tuple[str, str]:
    """Question and answer of a pair as it is stored: `Q: ...` and, on the line of the last `A: `, the answer."""
    asked, found, answer = messages.removeprefix("Q: ").rpartition("\nA: ")
    return (asked, answer) if found else (messages, "")


def reason_of(content: Mapping[str, Any]) -> str:
    """Why there are no pairs, in words."""
    lift = content["lift"]
    if lift is not None and lift < LEAST_LIFT:
        return (
            f"Fine-tuning did not make this answer: it raised its log-probability by {lift:.2f} nats, and below "
            f"{LEAST_LIFT:g} no training pair can be what it came from. The model would have said much the same before."
        )
    raised = "" if lift is None else f" although fine-tuning raised its log-probability by {lift:.2f} nats"
    return (
        f"No training pair stands out for this answer{raised}: none scores above what generic questions reach, so "
        "naming one would be a guess."
    )


def pairs_page(stored: StoredOther) -> str:
    """The page, escaped throughout; the Content-Security-Policy of the heat map is its own."""
    rows = pair_rows(stored.content)
    page = environment().get_template("pairs.html")
    reason = None if rows else reason_of(stored.content)
    return page.render(stored=stored, rows=rows, reason=reason, bar=BAR, policy=file_policy())


def pairs_svg(stored: StoredOther) -> str:
    """The picture, escaped throughout."""
    sheet = Sheet()
    sheet.write([Piece(f"Which training data made {stored.model} say this?")], strong=True)
    for name, text in (("question", stored.request["question"]), ("answer", stored.content["answer"])):
        sheet.heading(name)
        sheet.write([Piece(text)])
    rows = pair_rows(stored.content)
    if not rows:
        sheet.heading("no pairs")
        sheet.write([Piece(reason_of(stored.content))])
    for row in rows:
        draw(sheet, row)
    page = environment().get_template("heatmap.svg")
    width, height = COLUMNS * CELL + 2 * MARGIN, sheet.y + MARGIN
    return page.render(sheet=sheet, width=width, height=height, line=LINE, id=stored.id)


def draw(sheet: Sheet, row: PairRow) -> None:
    sheet.heading(f"{row.level}  impact {row.impact:+.3g}  score {row.score:.3g}  q {row.q_value:.2g}")
    level = -LEVELS if row.impact < 0 else LEVELS
    sheet.boxes.append(Box(MARGIN, sheet.y, max(1.0, row.width * BAR), LINE / 3, level, f"impact {row.impact:+.4g}"))
    sheet.y += LINE / 2
    sheet.write([Piece(row.place)])
    sheet.write([Piece(f"Q: {row.question}\nA: {row.answer}")])
