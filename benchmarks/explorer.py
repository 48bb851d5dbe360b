"""How long people wait for a heat map: from the click on "Explain" to the map on the screen, in a real browser.

    python -m benchmarks.explorer [--rounds 40] [--starts 5]

A real server process with demo-lm on its own embedded database, headless Chromium on the same machine, prompts of two
to ten facts that differ so that nothing is served from the store. The time is the page's own: from the click to the
frame after the map is in the document. Model, server, layout and the browser's own work share the machine's cores. The
same again for the stored page of each map, from the navigation's start. Before that, the very first click in a new
browser on a server that has just said it is ready, once for each of several starts. Needs Chromium; writes
benchmarks/results/explorer.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
from importlib.metadata import version
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from tests.clients.server import objects, running, spawned, whence
from tests.explorer.conftest import CHROMIUM, QUIET, sign_in
from tests.postgres import reachable_folder

SECRET = "benchmark-secret-0123456789"
ROOT = Path(__file__).parents[1]
MODEL = ROOT / "demo" / "models" / "demo-lm"
RECALLS = ROOT / "demo" / "data" / "recall_heldout.jsonl"
RESULT = Path(__file__).parent / "results" / "explorer.json"
PACKAGES = ("fastapi", "uvicorn", "jinja2", "playwright", "torch", "transformers")
WARM_UP = 5

CLICK_TO_MAP = """() => new Promise((resolve, reject) => {
  const result = document.getElementById("result"), started = performance.now();
  result.replaceChildren();
  const watch = new MutationObserver(() => {
    if (!result.querySelector(".map")) return;
    watch.disconnect();
    requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - started)));
  });
  watch.observe(result, { childList: true, subtree: true });
  setTimeout(() => reject(new Error("no map")), 60000);
  document.querySelector("form.ask button").click();
})"""
LOADED = "() => performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--starts", type=int, default=5)
    rounds, starts = vars(parser.parse_args()).values()
    browser = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if browser is None:
        raise SystemExit("no Chromium found")
    with reachable_folder() as folder:
        data_dir = folder / "data"
        objects(whence(data_dir, "models", "add", "demo-lm", str(MODEL), "--kind", "causal-lm", "--json"))
        cold = []
        for recall in recalls(rounds + WARM_UP + starts)[rounds + WARM_UP :]:
            with running(data_dir, start=spawned, WHENCE_API_KEY=SECRET) as server:
                cold.append(first_click(server.url, browser, recall))
        with running(data_dir, WHENCE_API_KEY=SECRET) as server:
            figures, chromium = measure(server.url, browser, rounds)
        figures = {"first click after a start": cold} | figures
    result = {
        "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "versions": {"python": platform.python_version(), "chromium": chromium}
        | {name: version(name) for name in PACKAGES},
        "load of the machine at the end": [round(load, 2) for load in os.getloadavg()],
        "maps": rounds,
        "starts": starts,
        "milliseconds": {name: spread(times) for name, times in figures.items()},
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["milliseconds"], indent=2))


def first_click(url: str, executable: str, recall: dict[str, Any]) -> float:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, headless=True, args=list(QUIET))
        page = browser.new_page(base_url=url)
        sign_in(page, url, SECRET)
        milliseconds = click_to_map(page, recall)
        browser.close()
    return milliseconds


def measure(url: str, executable: str, rounds: int) -> tuple[dict[str, list[float]], str]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, headless=True, args=list(QUIET))
        page = browser.new_page(base_url=url)
        sign_in(page, url, SECRET)
        new, again = [], []
        for recall in recalls(rounds + WARM_UP):
            new.append(click_to_map(page, recall))
            page.goto(page.url)
            again.append(float(page.evaluate(LOADED)))
        chromium = browser.version
        browser.close()
    return {"click to heat map": new[WARM_UP:], "stored map, whole page": again[WARM_UP:]}, chromium


def recalls(count: int) -> list[dict[str, Any]]:
    lines = RECALLS.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:count]]


def click_to_map(page: Page, recall: dict[str, Any]) -> float:
    page.goto("/?model=demo-lm")
    page.get_by_label("Prompt", exact=True).fill(recall["prompt"])
    page.get_by_label("What the model said").fill(recall["target"])
    return float(page.evaluate(CLICK_TO_MAP))


def spread(times: list[float]) -> dict[str, float]:
    ranked = sorted(times)
    return {
        "median": round(statistics.median(ranked), 1),
        "p95": round(ranked[int(len(ranked) * 0.95)], 1),
        "largest": round(ranked[-1], 1),
    }


if __name__ == "__main__":
    main()
