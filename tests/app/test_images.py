"""Image items over HTTP: scores of tiles, rectangles, warnings, and each mistake in one clear answer."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from app.models import NewModel
from app.predictors import add_predictor
from tests import tiny_models
from tests.app.conftest import Running, Start, empty

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def seeing(start: Start, tiny_lm: Path) -> AsyncIterator[Running]:
    """An application with the models `tiny-lm`, which reads text only, and `tiny-vision`."""
    async with start() as running:
        await empty(running)
        await running.add(tiny_lm)
        folder = tiny_models.save_image_text(tiny_lm.parent / "tiny-vision")
        new = NewModel("tiny-vision", "image-text-lm", folder.name)
        await add_predictor(running.server.explainer, folder.parent, "default", new)
        yield running


def png(size: tuple[int, int] = (60, 30), colour: str = "red", **options: Any) -> str:
    buffer = BytesIO()
    picture = Pillow.new("RGB", size, colour)
    picture.paste("blue", (0, 0, size[0] // 3, size[1] // 2))
    picture.save(buffer, options.pop("format", "PNG"), **options)
    return b64encode(buffer.getvalue()).decode()


def image(**changes: Any) -> dict[str, Any]:
    return {"type": "image", "data": png(), **changes}


def text(data: str) -> dict[str, Any]:
    return {"type": "text", "data": data}


async def explain(running: Running, *prompt: Any, **changes: Any) -> dict[str, Any]:
    response = await running.explain(**{"model": "tiny-vision", "prompt": list(prompt), **changes})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.mark.parametrize(("granularity", "side"), [("token", 12), ("word", 6), ("sentence", 3), ("paragraph", 1)])
async def test_tiles_cover_the_image_row_by_row(seeing: Running, granularity: str, side: int) -> None:
    answer = await explain(seeing, text("Anna"), image(), text("lives in"), prompt_granularity={"type": granularity})
    items = answer["explanations"][0]["items"]
    assert [item["type"] for item in items] == ["text", "image", "text", "target"]
    rectangles = [score["rect"] for score in items[1]["scores"]]
    assert len(rectangles) == side * side
    for number, rectangle in enumerate(rectangles):
        assert rectangle["left"] == (number % side) / side
        assert rectangle["top"] == (number // side) / side
        assert rectangle["left"] + rectangle["width"] == pytest.approx((number % side + 1) / side, abs=1e-12)
    assert max(rectangle["left"] + rectangle["width"] for rectangle in rectangles) == 1
    assert any(abs(score["score"]) > 1e-4 for score in items[1]["scores"])
    assert "warnings" not in answer


async def test_a_custom_delimiter_leaves_one_tile(seeing: Running) -> None:
    answer = await explain(seeing, image(), prompt_granularity={"type": "custom", "delimiter": ","})
    (score,) = answer["explanations"][0]["items"][0]["scores"]
    assert score["rect"] == {"left": 0, "top": 0, "width": 1, "height": 1}


async def test_several_images_and_each_target_token(seeing: Running) -> None:
    prompt = (image(), text("Anna"), image(data=png(colour="green")))
    options = {"prompt_granularity": {"type": "sentence"}, "target": " Oslo, in"}
    whole = await explain(seeing, *prompt, **options)
    each = await explain(seeing, *prompt, target_granularity="token", **options)
    for item in (0, 2):
        sums = [
            sum(parts)
            for parts in zip(
                *([score["score"] for score in part["items"][item]["scores"]] for part in each["explanations"]),
                strict=True,
            )
        ]
        found = [score["score"] for score in whole["explanations"][0]["items"][item]["scores"]]
        assert sums == pytest.approx(found, abs=1e-5)


async def test_controls_on_rectangles_act(seeing: Running) -> None:
    """A removed image has nothing left to lose; half a rectangle is half as much in `partial` and all in `complete`."""
    rectangle = {"left": 0, "top": 0, "width": 1, "height": 1}
    sentence = {"prompt_granularity": {"type": "sentence"}}
    removed = await explain(seeing, image(controls=[{"rect": rectangle, "factor": 0}]), text("Anna"), **sentence)
    assert all(score["score"] == 0 for score in removed["explanations"][0]["items"][0]["scores"])
    thin = {"left": 0.01, "top": 0.01, "width": 0.05, "height": 0.05}
    answers = [
        await explain(seeing, image(controls=controls), text("Anna"), **sentence)
        for controls in (
            [],
            [{"rect": thin, "factor": 0.1, "token_overlap": "partial"}],
            [{"rect": thin, "factor": 0.1, "token_overlap": "complete"}],
            [{"rect": thin, "factor": 1}],
        )
    ]
    scores = [answer["explanations"][0]["items"][1]["scores"][0]["score"] for answer in answers]
    assert scores[0] == scores[3]
    assert len({round(score, 7) for score in scores}) == 3


async def test_a_crop_has_no_effect_and_says_so(seeing: Running) -> None:
    plain = await explain(seeing, text("Anna"), image())
    cropped = await explain(seeing, text("Anna"), image(x=3, y=0, size=20))
    assert cropped["explanations"] == plain["explanations"]
    assert cropped["warnings"] == ["/prompt/1: x, y and size have no effect, the whole image is read"]


async def test_an_answer_belongs_to_the_content_of_its_image(seeing: Running) -> None:
    one = await explain(seeing, image(), text("Anna"))
    same = await explain(seeing, image(), text("Anna"))
    other = await explain(seeing, image(data=png(colour="green")), text("Anna"))
    assert one["id"] == same["id"] != other["id"]
    assert one["explanations"] != other["explanations"]


async def test_stored_answers_show_their_tiles(seeing: Running) -> None:
    answer = await explain(seeing, text("Anna"), image(), prompt_granularity={"type": "sentence"})
    path = f"/explanations/{answer['id']}"
    assert (await seeing.client.get(path)).status_code == 200
    page = await seeing.client.get(path, headers={"Accept": "text/html"})
    assert page.status_code == 200 and page.text.count("<rect") == 9
    assert "img-src data:" in page.headers["content-security-policy"]


async def test_models_say_whether_they_read_images(seeing: Running) -> None:
    found = (await seeing.client.get("/models_available")).json()
    assert {model["name"]: model["image_support"] for model in found} == {"tiny-lm": False, "tiny-vision": True}


HALF = {"left": 0, "top": 0, "width": 0.5, "height": 0.5}


@pytest.mark.parametrize(
    ("item", "pointer"),
    [
        (image(data="not base64!"), "/prompt/0/data"),
        (image(data=png()[:-2]), "/prompt/0/data"),
        (image(data=png() + "\n"), "/prompt/0/data"),
        (image(data=""), "/prompt/0/data"),
        (image(data=b64encode(b"no image at all").decode()), "/prompt/0/data"),
        (image(data=png(format="GIF")), "/prompt/0/data"),
        (image(data=png()[:80]), "/prompt/0/data"),
        (image(data=png((7000, 7000), format="JPEG")), "/prompt/0/data"),
        (image(data=None), "/prompt/0/data"),
        (image(data=7), "/prompt/0/data"),
        (image(x=1), "/prompt/0"),
        (image(x=1, y=2), "/prompt/0"),
        (image(x=1, y=2, size=0), "/prompt/0/size"),
        (image(x=-1, y=2, size=3), "/prompt/0/x"),
        (image(x=1.5, y=2, size=3), "/prompt/0/x"),
        (image(controls=[{"rect": HALF | {"left": 0.6}, "factor": 0.1}]), "/prompt/0/controls/0/rect"),
        (image(controls=[{"rect": HALF | {"top": -0.1}, "factor": 0.1}]), "/prompt/0/controls/0/rect/top"),
        (image(controls=[{"rect": HALF, "factor": -1}]), "/prompt/0/controls/0/factor"),
        (image(controls=[{"start": 0, "length": 1, "factor": 0.1}]), "/prompt/0/controls/0/rect"),
    ],
)
async def test_mistakes_are_named(seeing: Running, item: dict[str, Any], pointer: str) -> None:
    response = await seeing.explain(model="tiny-vision", prompt=[item])
    assert response.status_code == 400, response.text
    body = response.json()
    assert body["code"] == "INVALID_REQUEST"
    assert [error["pointer"] for error in body["errors"]] == [pointer] or body["errors"][0]["pointer"] == pointer
    assert "Traceback" not in response.text and len(response.content) < 1000


async def test_images_that_do_not_fit_are_counted(seeing: Running) -> None:
    response = await seeing.explain(model="tiny-vision", prompt=[image()] * 8)
    assert (response.status_code, response.json()["code"]) == (400, "CONTEXT_LENGTH_EXCEEDED")


async def test_a_model_of_text_takes_no_image(seeing: Running) -> None:
    response = await seeing.explain(prompt=[text("Anna"), image()])
    assert (response.status_code, response.json()["code"]) == (400, "MISSING_CAPABILITY")
    assert response.json()["errors"][0]["pointer"] == "/prompt/1"
