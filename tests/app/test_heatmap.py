"""The heat map stands alone, escapes everything and loses no character."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from html import unescape
from io import BytesIO
from uuid import UUID

import numpy as np
import pytest
from PIL import Image as Pillow

from app.explain import Stored
from app.heatmap import LEVELS, heat_map, level, page_policy, text_pieces
from app.records import request_record
from explainers.pictures import grid
from explainers.types import AtmanConfig, Attribution, Feature, Image, Prompt, Span, Target, Text, TokenIds
from tests.app.conftest import Running

EVIL = "<script>alert('x')</script> & \"quoted\"\n\n  two  blanks\t👩‍👧"


def stored(prompt: Prompt, target: str, attribution: Attribution) -> Stored:
    return Stored(
        id=UUID(int=7),
        kind="completion",
        model="<b>model</b>",
        model_digest="sha256:00",
        request=request_record("atman", prompt, target, AtmanConfig()),
        attribution=attribution,
        seconds=0.5,
        forwards=3,
        created_at=datetime(2026, 1, 31, tzinfo=UTC),
    )


def word_features(text: str, item: int) -> tuple[Feature, ...]:
    return tuple(Feature(word[0], item, Span(*word.span())) for word in re.finditer(r"\S+", text))


def plain(page: str) -> str:
    return unescape(re.sub(r"<[^>]*>", "", page))


def test_page() -> None:
    features = (*word_features(EVIL, 0), Feature("3", 1, 0), Feature("4", 1, 1))
    values = np.linspace(-2, 2, len(features))[None]
    page = heat_map(
        stored((Text(EVIL), TokenIds((3, 4))), EVIL, Attribution("atman", features, (Target(EVIL),), values))
    )
    assert EVIL in plain(page)
    assert "<script" not in page and "<b>model" not in page
    assert page.count("tabindex") == len(features) + 5
    assert 'title="+2"' in page and 'data-score="-2"' in page and "prefers-color-scheme:dark" in page
    assert not re.search(r"""(src|href)=["'](?!#)|url\(|@import""", page)


def test_token_targets_below_each_other() -> None:
    target, prompt = " a b", (Text("x y"),)
    features = (*word_features("x y", 0), Feature(" a", 1, Span(0, 2)))
    targets = (Target(" a", Span(0, 2)), Target(" b", Span(2, 4)))
    page = heat_map(stored(prompt, target, Attribution("atman", features, targets, np.ones((2, 3)))))
    assert page.count("<section") == 2 and 'href="#t2"' in page and 'id="t2"' in page
    first, second = page.split("<section")[1:]
    assert "target so far" not in first and "target so far" in second


def test_pieces_keep_every_character() -> None:
    text = "ab  cd👧e"
    scored = [(Feature("", 0, Span(*span)), score) for span, score in (((0, 1), 1.0), ((4, 6), -1.0), ((6, 7), 0.5), ((6, 7), 2.0), ((7, 7), 0.1))]  # fmt: skip  # noqa: E501
    pieces = text_pieces(text, scored, 2.0)
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.scores for piece in pieces if piece.scores] == [(1.0,), (-1.0,), (0.5, 2.0), (0.1,)]


def test_token_ids_stand_apart() -> None:
    features = (Feature("70", 0, 0), Feature("71", 0, 1))
    page = heat_map(stored((TokenIds((70, 71)),), "x", Attribution("atman", features, (Target("x"),), np.ones((1, 2)))))
    assert "70 71" in plain(page)


def test_line_breaks_in_two_pieces_are_one() -> None:
    text = "a\r\nb\rc\r\n"
    scored = [(Feature("", 0, Span(at, at + 1)), 1.0) for at in range(len(text))]
    assert "".join(piece.text for piece in text_pieces(text, scored, 1.0)) == "a\nb\rc\n"
    assert "".join(piece.text for piece in text_pieces(text, scored[:1], 1.0)) == "a\nb\rc\n"


@pytest.mark.parametrize(
    ("score", "expected"), [(0.0, 0), (1e-9, 0), (1.0, LEVELS), (-1.0, -LEVELS), (0.25, 5), (-0.25, -5), (9.0, LEVELS)]
)
def test_levels(score: float, expected: int) -> None:
    assert level(score, 1.0) == expected


def test_every_level_has_a_colour() -> None:
    page = heat_map(stored((), "x", Attribution("atman", (), (Target("x"),), np.zeros((1, 0)))))
    for n in range(1, LEVELS + 1):
        assert f"mark.p{n},mark.n{n}" in page


@pytest.mark.anyio
async def test_served_with_a_strict_policy(running: Running) -> None:
    answer = (await running.explain(prompt=EVIL, target="<i>", target_granularity="token")).json()
    response = await running.client.get(f"/explanations/{answer['id']}", headers={"Accept": "text/html"})
    assert response.status_code == 200 and response.headers["content-type"] == "text/html; charset=utf-8"
    policy = response.headers["content-security-policy"]
    assert policy == page_policy() and policy.startswith("default-src 'none'; style-src 'sha256-")
    assert response.headers["x-content-type-options"] == "nosniff"
    assert EVIL in plain(response.text) and "<i>" not in response.text


def test_policy_names_the_style_that_is_served() -> None:
    import hashlib
    from base64 import b64encode

    page = heat_map(stored((), "x", Attribution("atman", (), (Target("x"),), np.zeros((1, 0)))))
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert b64encode(hashlib.sha256(style.encode()).digest()).decode() in page_policy()


def test_tiles_lie_over_their_image() -> None:
    """The file is in the page once, however many targets there are."""
    data = BytesIO()
    Pillow.new("RGB", (90, 60), "red").save(data, "PNG")
    features = tuple(Feature(f"tile {n}", 1, tile) for n, tile in enumerate(grid(3, 3)))
    targets = (Target(" a", Span(0, 2)), Target(" b", Span(2, 4)))
    values = np.array([np.linspace(-1, 1, 9)] * 2)
    page = heat_map(
        stored((Text("x"), Image(data.getvalue())), " a b", Attribution("atman", features, targets, values))
    )
    assert page.count("data:image/png;base64,") == 1 and page.count('<use href="#image2"/>') == 2
    assert page.count("<rect") == 18
    assert '<rect class="s p10" tabindex="0" x="60.0" y="40.0" width="30.0" height="20.0" data-score="+1">' in page
    assert "img-src data:" in page_policy()
