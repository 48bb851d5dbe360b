"""Drawings show the numbers they are given, in well-formed XML whatever the names, without style or script inside."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from xml.etree.ElementTree import Element, fromstring

import numpy as np
import pytest

from app.pictures import file_policy
from app.plots.bars import Bar, bar_plot, regional_plot
from app.plots.beeswarm import MOST_DOTS, Swarm, beeswarm, shades_of, stacked
from app.plots.canvas import Plot, Scale, round_step, scale_over
from app.plots.lines import Line, line_plot
from app.plots.tokens import Token, token_map
from app.plots.waterfall import waterfall

SVG = "{http://www.w3.org/2000/svg}"
EVIL = "<script>alert(1)</script> \" onload='x' ]]> &amp; \x00\x1b\ufffe 日本語 \u202e end"
BARS = [Bar("income", 0.25, "2100"), Bar("tenure", -0.5, "7", 0.05), Bar("age", 0.05), Bar("none", math.nan)]
DAYS = [datetime(2026, 3, day, tzinfo=UTC) for day in (1, 2, 3)]


def every_plot(name: str) -> dict[str, Plot]:
    swarm = Swarm(name, np.array([0.1, -0.2, math.nan]), np.array([1.0, 2.0, 3.0]))
    return {
        "waterfall": waterfall(name, 0.4, [Bar(name, 0.1, name), *BARS], axis=name),
        "bars": bar_plot(name, [Bar(name, 0.1, name), *BARS], axis=name),
        "regional": regional_plot(name, [Bar(name, 0.1)], axis=name),
        "beeswarm": beeswarm(name, [swarm], axis=name),
        "lines": line_plot(name, DAYS, [Line(name, (0.1, math.nan, 0.2))], axis=name),
        "tokens": token_map(name, [Token(name, 0.1, 0), Token("", 0.2, 1), Token("ok", math.nan, 2)]),
    }


def parsed(plot: Plot) -> Element:
    return fromstring(plot.standalone())  # noqa: S314 - our own


def tips(picture: Element) -> list[str]:
    return [title.text or "" for title in picture.iter(f"{SVG}title")]


@pytest.mark.parametrize("kind", sorted(every_plot("x")))
def test_any_name_is_text(kind: str) -> None:
    for name in (EVIL, "", "x" * 500):
        plot = every_plot(name)[kind]
        picture = parsed(plot)
        assert {element.tag.removeprefix(SVG) for element in picture.iter()} <= {
            "svg", "title", "desc", "style", "rect", "path", "circle", "text",
        }  # fmt: skip
        for element in picture.iter():
            assert not any(key == "style" or key.startswith("on") or "href" in key for key in element.attrib)
        assert picture.get("role") == "img" and picture[0].tag == f"{SVG}title" and picture[1].tag == f"{SVG}desc"
        fromstring(plot.inline())  # noqa: S314 - our own
        assert "<style" not in plot.inline() and "nan" not in plot.body


def test_the_same_drawing_alone_and_in_a_page() -> None:
    for plot in every_plot("x").values():
        alone = re.sub(r"<style>.*</style>", "", plot.standalone(), flags=re.DOTALL)
        assert re.sub(r' width="[\d.]+" height="[\d.]+" role', " role", alone, count=1) == plot.inline()


def test_a_file_allows_its_own_style_sheet_only() -> None:
    assert re.fullmatch(r"default-src 'none'; style-src 'sha256-[\w+/=]{44}'; .*frame-ancestors 'none'", file_policy())


def test_a_waterfall_ends_at_the_output() -> None:
    picture = parsed(waterfall("t", 0.5, BARS, axis="output"))
    assert [tip for tip in tips(picture)[1:] if ":" in tip] == [
        "expected: 0.5", "tenure = 7: -0.5 ± 0.098", "income = 2100: +0.25", "age: +0.05", "output: 0.3",
    ]  # fmt: skip
    arrows = [path for path in picture.iter(f"{SVG}path") if path.get("class") in ("up", "down")]
    assert [path.get("class") for path in arrows] == ["down", "up", "up"]
    ends = [[float(x) for x in re.findall(r"[MHL](-?[\d.]+)", path.get("d", ""))] for path in arrows]
    assert ends[1][0] == pytest.approx(ends[0][2], abs=0.11)  # each step begins where the one before ended


def test_a_long_name_leaves_room_for_the_value() -> None:
    bar = Bar("a_name_of_more_than_thirty_letters", 0.1, "0.08399")
    picture = parsed(bar_plot("t", [bar], axis="score"))
    (label,) = (text for text in picture.iter(f"{SVG}text") if text.get("class") == "label end")
    words = "".join(label.itertext())
    assert words == f"{bar.label}{'a_name_of_more_than…'} = 0.08399" and bar.label in tips(picture)


def test_many_steps_end_there_too() -> None:
    bars = [Bar(f"x{place}", 0.01 * place) for place in range(40)]
    plot = waterfall("t", 0.0, bars, axis="output")
    assert "output: 7.8" in tips(parsed(plot)) and "27 others" in plot.body


def test_bars_lie_on_their_side_of_zero() -> None:
    picture = parsed(bar_plot("t", BARS, axis="score"))
    up, down = ([r for r in picture.iter(f"{SVG}rect") if r.get("class") == kind] for kind in ("up", "down"))
    assert len(up) == 2 and len(down) == 1
    zero = float(up[0].get("x", ""))
    assert float(down[0].get("x", "")) + float(down[0].get("width", "")) == pytest.approx(zero, abs=0.2)
    assert float(down[0].get("width", "")) == pytest.approx(2 * float(up[0].get("width", "")), abs=0.2)


def test_what_is_left_out_is_said() -> None:
    assert "the 20 strongest of 50" in bar_plot("t", [Bar(f"x{n}", n) for n in range(1, 51)], axis="a").description
    lines = [Line(f"x{n}", (n, n, n)) for n in range(9)]
    assert "the 6 largest of 9" in line_plot("t", DAYS, lines, axis="a").description
    count = MOST_DOTS + 1
    assert f"One in 2 of {count} rows" in beeswarm("t", [Swarm("x", np.ones(count))], axis="a").description


def test_nothing_to_draw() -> None:
    empty = np.array([math.nan])
    for draw in (
        lambda: waterfall("t", 0.1, [BARS[3]], axis="a"),
        lambda: bar_plot("t", [BARS[3]], axis="a"),
        lambda: regional_plot("t", [], axis="a"),
        lambda: beeswarm("t", [Swarm("x", empty)], axis="a"),
        lambda: line_plot("t", DAYS, [Line("x", (math.nan,) * 3)], axis="a"),
    ):
        with pytest.raises(ValueError, match="no score"):
            draw()
    with pytest.raises(ValueError, match="2001 tokens"):
        token_map("t", [Token("x", 0.1, 0)] * 2001)


def test_a_beeswarm_has_every_dot_within_its_line() -> None:
    scores = np.random.default_rng(0).normal(size=400)
    plot = beeswarm("t", [Swarm("x", scores, scores)], axis="a")
    dots = [path.get("d", "") for path in parsed(plot).iter(f"{SVG}path") if "dots" in path.get("class", "")]
    assert sum(d.count("h0") for d in dots) == 400 + 6  # and the legend
    assert np.abs(stacked(np.zeros(1000))).max() <= 14
    assert len(set(stacked(np.zeros(7)).tolist())) == 7


def test_shades_are_ranks() -> None:
    assert shades_of(np.array([1.0, 2, 3, 4, 1e9]), 5).tolist() == [0, 1, 2, 3, 4]
    assert shades_of(np.array([5.0, math.nan, 5.0]), 3).tolist() == [2, -1, 2]
    assert shades_of(None, 2).tolist() == [-1, -1]


def test_lines_break_where_a_value_is_missing() -> None:
    plot = line_plot("t", DAYS, [Line("x", (0.1, math.nan, 0.2))], axis="a")
    (path,) = (p for p in parsed(plot).iter(f"{SVG}path") if p.get("class") == "line s0" and "h" not in p.get("d", ""))
    assert path.get("d", "").count("M") == 2
    assert "x, 2026-03-03: 0.2" in tips(parsed(plot))


def test_tokens_keep_their_signs_and_fit_the_width() -> None:
    picture = parsed(token_map("t", [Token("good", 0.4, 0), Token("bad", -0.2, 1), *[Token("w" * 300, 0.0, 2)] * 2]))
    assert "good, position 0: +0.4" in tips(picture) and "bad, position 1: -0.2" in tips(picture)
    shades = [rect.get("class") for rect in picture.iter(f"{SVG}rect")]
    assert "shade up l10" in shades and "shade down l8" in shades
    for text in picture.iter(f"{SVG}text"):
        assert float(text.get("x", "0")) + float(text.get("textLength", "0")) <= 720


@pytest.mark.parametrize("values", [[0.0], [1e-12], [-3.0, -3.0], [1e15, -1e15], [0.3, 0.31], [5e-324]])
def test_scales_hold_their_values(values: list[float]) -> None:
    for zero in (True, False):
        scale = scale_over(values, 0, 100, zero=zero)
        assert all(-0.001 <= scale(value) <= 100.001 for value in values) and len(scale.ticks) <= 8


def test_ticks_are_round() -> None:
    assert Scale(0, 1, 0, 100).ticks == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert [round_step(step) for step in (0.11, 2.0, 49, 51)] == [0.2, 2.0, 50, 100]
