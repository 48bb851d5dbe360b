"""The watch over the browsers of these tests sees what a page must not do, with scripts and without."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, Route

from app.explorer.pages import POLICY
from tests.explorer.conftest import TOLD, Contexts, Watch

FAULTY = "<img src='http://127.0.0.1:9/x.png'><p style='color:red'>red</p><script>window.taken=1</script>"


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
def test_a_faulty_page_is_noticed(contexts: Contexts, watch: Watch, *, scripts: bool) -> None:
    def answered(policy: str) -> Page:
        def answer(route: Route) -> None:
            route.fulfill(content_type="text/html", headers={"Content-Security-Policy": policy}, body=FAULTY)

        page = contexts(java_script_enabled=scripts).new_page()
        page.route("**/explorer/faulty", answer)
        page.goto("/explorer/faulty")
        return page

    answered(POLICY)
    assert any(TOLD in each for each in watch.problems)
    watch.problems.clear()
    answered("default-src *")
    assert any(each.startswith("left the host: http://127.0.0.1:9/") for each in watch.problems)
    watch.problems.clear()


def test_an_error_of_a_script_is_noticed(page: Page, watch: Watch) -> None:
    page.goto("/")
    page.evaluate("setTimeout(() => { throw new Error('of the test') })")
    for _ in range(600):
        if watch.problems:
            break
        page.wait_for_timeout(100)
    assert watch.problems == ["script: of the test"]
    watch.problems.clear()


def test_no_browser_is_without_it() -> None:
    folder = Path(__file__).parent
    made = [path.name for path in sorted(folder.glob("*.py")) if ".new_context(" in path.read_text(encoding="utf-8")]
    assert [name for name in made if name != Path(__file__).name] == ["conftest.py"]
