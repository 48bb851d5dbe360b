"""What the page of predictions asks of many inputs, and how it reads and writes a row that was changed."""

from __future__ import annotations

from uuid import UUID

import pytest

from app.definitions import Attribute, Definition
from app.explorer.pages import STATIC
from app.explorer.regions import MOST_CELLS, MOST_SWARM, Region, most_swarm, swarm_query, swarm_words
from app.explorer.trials import as_stored, figure, outcome, slider
from app.monitored import Monitored


def region(inputs: int) -> Region:
    attributes = tuple(Attribute(f"x{place}", "FLOAT", "PIPELINE_INPUT", place) for place in range(inputs))
    definition = Definition("m", "TABULAR", "REGRESSION", attributes)
    return Region(Monitored(UUID(int=0), definition, "Ready", archived=False), "y", "shap")


@pytest.mark.parametrize("inputs", [1, 3, 30, 50, 51, 101, 500, 2_000])
def test_a_beeswarm_reads_no_more_than_it_may(inputs: int) -> None:
    """In whole inferences, however many inputs there are."""
    query = swarm_query(region(inputs))
    rows, columns = query["limit"], len(query["select"])
    assert rows % inputs == 0 and rows // inputs == most_swarm(inputs) > 0
    assert rows <= 100_000 and rows * columns <= MOST_CELLS and columns <= 200
    assert f"latest {rows // inputs} inferences" in swarm_words(region(inputs))
    assert ("no colours" in swarm_words(region(inputs))) is (columns == 2)


def test_few_inputs_have_their_whole_swarm() -> None:
    assert most_swarm(3) == MOST_SWARM and most_swarm(30) == 520 and most_swarm(10**6) == 1
    assert swarm_query(region(0))["limit"] == 0


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"), (0.25, "0.25"), (0.123456, "0.1235"), (253417.0, "253417"), (-253417.4, "-253417"),
        (999.96, "1000"), (9999.7, "10000"), (2.5e-7, "2.5e-07"), (1e20, "1e+20"), (float("nan"), "nan"),
    ],
)  # fmt: skip
def test_a_figure_has_the_digits_that_count(value: float, shown: str) -> None:
    assert figure(value) == shown


@pytest.mark.parametrize(
    ("now", "change", "shown"),
    [
        (2.5e-7, 1.25e-7, "+1.25e-07"),  # small outputs change by little
        (-3e-5, -2e-5, "-2e-05"),
        (253417.0, 1204.0, "+1204"),
        (253417.0, -0.5, "-0.5"),
        (0.5, 1e-8, "0"),  # which is noise
        (253417.0, 0.01, "0"),
        (0.0, -0.25, "-0.25"),
        (0.0, 0.0, "0"),
        (0.5, None, None),
    ],
)
def test_a_change_is_told_beside_its_output(now: float, change: float | None, shown: str | None) -> None:
    assert outcome(now, change) == (figure(now), shown)


@pytest.mark.parametrize("stored", ["a\nb", "a\r\nb", "a\rb", "\na\r\n\rb\n", "\n\n"])
def test_a_text_that_nobody_changed_is_the_stored_one(stored: str) -> None:
    """Whatever the browser made of its line breaks."""
    plain = stored.replace("\r\n", "\n").replace("\r", "\n")
    for sent in (plain, plain.replace("\n", "\r\n")):
        assert as_stored(sent, stored) == stored
        assert as_stored(sent + "!", stored) == (plain + "!").replace("\n", "\r\n" if "\r\n" in stored else "\n")
    assert as_stored(0.5, stored) == 0.5 and as_stored("a\r\nb", None) == "a\r\nb"


def test_a_text_keeps_its_first_line_break() -> None:
    """HTML drops one that follows the tag."""
    page = (STATIC.parent / "templates" / "inference.html").read_text(encoding="utf-8")
    assert 'rows="4">\n{{ each.value }}</textarea>' in page
    lines = slider(Attribute("x", "STRING", "PIPELINE_INPUT", 0), "a\nb")
    assert lines.long and not slider(Attribute("x", "STRING", "PIPELINE_INPUT", 0), "a").long
