"""The picture stands alone, is well-formed XML whatever the text, and loses no character."""

from __future__ import annotations

from xml.etree.ElementTree import Element, fromstring

import numpy as np
import pytest

from app.heatmap_svg import CELL, COLUMNS, MARGIN, cells_of, chunks, heat_map_svg, picture_policy
from explainers.types import Attribution, Feature, Prompt, Span, Target, Text, TokenIds, Turn
from tests.app.conftest import Running
from tests.app.test_heatmap import EVIL, stored, word_features

SVG = "{http://www.w3.org/2000/svg}"


def drawn(prompt: Prompt, target: str, values: object, features: tuple[Feature, ...], **facts: object) -> Element:
    scores = np.array(values, dtype=float).reshape(1, len(features))
    attribution = Attribution("atman", features, (Target(target),), scores, facts=facts)
    return fromstring(heat_map_svg(stored(prompt, target, attribution)))  # noqa: S314 - our own


def words(picture: Element) -> str:
    return " ".join("".join(text.itertext()) for text in picture.iter(f"{SVG}text"))


@pytest.mark.parametrize(
    "text", [EVIL, "a\x00b\x1b \ufffe end", "日本語 のテキスト e\u0301", "x" * 500, "", "\r\n\r\n\t"]
)
def test_any_text(text: str) -> None:
    features = word_features(text, 0)
    picture = drawn((Text(text), TokenIds((3, 4))), " t", np.linspace(-2, 2, len(features) + 2), (
        *features, Feature("3", 1, 0), Feature("4", 1, 1),
    ))  # fmt: skip
    titles = [title.text for title in picture.iter(f"{SVG}title")]
    assert "+2" in titles and "-2" in titles
    seen = words(picture).replace(" ", "")
    assert all(character in seen for character in text if character.isalnum())
    for box in picture.iter(f"{SVG}text"):
        assert float(box.get("x", "0")) + float(box.get("textLength", "0")) <= MARGIN + COLUMNS * CELL + 0.2


def test_signs_are_told_apart() -> None:
    features = word_features("good bad none", 0)
    picture = drawn((Text("good bad none"),), "x", [2.0, -2.0, 0.0], features, approximate=True)
    groups = {
        group.find(f"{SVG}text").text: group
        for group in picture.iter(f"{SVG}g")
        if group.find(f"{SVG}text") is not None
    }  # type: ignore[union-attr]
    assert groups["good"].find(f"{SVG}rect").get("fill") == "#e66101"  # type: ignore[union-attr]
    assert groups["bad"].find(f"{SVG}path").get("stroke-dasharray") == "4"  # type: ignore[union-attr]
    assert groups["none"].find(f"{SVG}rect") is None
    assert "approximate" in words(picture)


def test_messages_have_their_names() -> None:
    prompt = (Text("Hi", turn=Turn(0, "system")), Text("Ho", turn=Turn(1, "user", "page 7")))
    seen = words(drawn(prompt, "x", [1.0], (Feature("Hi", 0, Span(0, 2)),)))
    assert "message 1, system" in seen.replace("  ", " ") and "page 7" in seen


def test_widths() -> None:
    assert [cells_of(character) for character in "a日\u0301\u200d"] == [1, 2, 0, 0]
    assert list(chunks("ab cd\n")) == [("ab", 2, False), (" ", 1, False), ("cd", 2, False), ("", 0, True)]
    assert [cells for _, cells, _ in chunks("x" * 200)] == [COLUMNS, COLUMNS, 200 - 2 * COLUMNS]


@pytest.mark.anyio
async def test_served_as_a_picture(running: Running) -> None:
    answer = (await running.explain(prompt=EVIL, target="<i>", target_granularity="token")).json()
    response = await running.client.get(f"/explanations/{answer['id']}", headers={"Accept": "image/svg+xml"})
    assert response.status_code == 200 and response.headers["content-type"].startswith("image/svg+xml")
    assert response.headers["content-security-policy"] == picture_policy()
    assert response.headers["vary"] == "Accept"
    picture = fromstring(response.content)  # noqa: S314 - our own
    assert "script" not in {element.tag for element in picture.iter()}
