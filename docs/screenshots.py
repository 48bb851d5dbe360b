"""Takes the pictures of the explorer in the README: `python docs/screenshots.py` (needs Chromium; writes docs/images/).

A real demo server, real answers: each picture is a function here.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.clients.server import running  # noqa: E402
from tests.explorer.conftest import CHROMIUM, QUIET, sign_in  # noqa: E402
from tests.postgres import reachable_folder  # noqa: E402

IMAGES = ROOT / "docs" / "images"
KEY = "secret-of-the-pictures"
FACTS = (
    "Anna lives in Oslo. Ben lives in Rome. Clara lives in Paris. David has a red car.\n"
    "Question: where does Anna live? Answer:"
)
PICTURE = ROOT / "demo" / "data" / "shapes_example.png"
MAP = "#result .map"


def prompt(page: Page) -> None:
    """Two methods side by side, with the removal test of each."""
    page.goto("/?model=demo-lm")
    page.get_by_label("Prompt", exact=True).fill(FACTS)
    page.get_by_label("What the model said").fill(" Oslo")
    page.get_by_text("How it is explained").click()
    page.locator("[name=granularity]").select_option("sentence")
    page.locator("[name=other_method]").select_option("ablation")
    page.get_by_label("Test the scores").check()
    explain(page)


def image(page: Page) -> None:
    """Tiles over an image."""
    page.goto("/?model=demo-vision")
    page.get_by_label("Prompt", exact=True).fill("What colour is the circle?")
    page.get_by_label("What the model said").fill(" yellow")
    page.get_by_label("Image").set_input_files(PICTURE)
    explain(page)


def narrow(page: Page) -> None:
    """A token of the target, on a phone in the dark."""
    page.goto("/?model=demo-lm")
    page.get_by_label("Prompt", exact=True).fill("Anna lives in Oslo. Ben lives in Rome. Anna lives in")
    page.get_by_label("What the model said").fill(" Oslo.")
    explain(page)
    page.locator("button.token").nth(1).click()


def training(page: Page) -> None:
    """The pairs behind an answer of the fine-tune."""
    page.goto("/explorer/training")
    page.get_by_label("Model").select_option("demo-qa")
    page.get_by_label("Question", exact=True).fill("Who keeps the mill?")
    page.get_by_role("button", name="Trace").click()
    page.locator("article.pair").first.wait_for()


def predictions(page: Page) -> None:
    """What matters to many inferences."""
    scored(page)
    page.goto("/explorer/predictions?model=demo-tabular")
    page.locator("#found svg.plot").wait_for()


def inference(page: Page) -> None:
    """One patient, and what would change the answer."""
    scored(page)
    page.goto("/explorer/predictions/one?model=demo-tabular&inference=patient-0003")
    page.locator("#waterfall svg").wait_for()
    page.locator("#scores svg").wait_for()
    move = "each => { each.value = 0.03; each.dispatchEvent(new Event('input', {bubbles: true})) }"
    page.get_by_role("slider", name="mean_concave_points").evaluate(move)
    page.locator("#outcome .fall").first.wait_for()
    page.locator("#values").evaluate("each => each.closest('section').remove()")


def scored(page: Page) -> None:
    """Waits for the scores of the demo's inferences."""
    page.goto("/explorer/jobs")
    while page.locator(".state.queued, .state.running").count():
        page.wait_for_timeout(1000)
        page.reload()


def explain(page: Page) -> None:
    page.get_by_role("button", name="Explain").click()
    page.locator(MAP).first.wait_for()
    page.get_by_role("heading", level=1).hover()


PICTURES: Mapping[str, tuple[Callable[[Page], None], int, int | None, str]] = {
    "prompt": (prompt, 1100, None, "light"),
    "prompt-image": (image, 900, None, "light"),
    "prompt-narrow": (narrow, 400, None, "dark"),
    "training": (training, 1000, None, "light"),
    "predictions": (predictions, 1000, 1380, "light"),
    "inference": (inference, 1300, None, "light"),
}
"""By name of the file: what is shown, how wide, how much of it (None: all), in which colours."""


def main() -> None:
    executable = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if executable is None:
        raise SystemExit("no Chromium found")
    IMAGES.mkdir(exist_ok=True)
    with (
        reachable_folder() as folder,
        running(folder / "data", "demo", WHENCE_API_KEY=KEY) as server,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=executable, headless=True, args=list(QUIET))
        for name in PICTURES:
            take(browser, server.url, name)
        browser.close()


def take(browser: Browser, url: str, name: str) -> None:
    show, width, height, colours = PICTURES[name]
    context = browser.new_context(
        base_url=url,
        viewport={"width": width, "height": height or 700},
        color_scheme="dark" if colours == "dark" else "light",
        reduced_motion="reduce",
    )
    page = context.new_page()
    sign_in(page, url, KEY)
    show(page)
    page.screenshot(path=IMAGES / f"{name}.png", full_page=height is None)
    context.close()


if __name__ == "__main__":
    main()
