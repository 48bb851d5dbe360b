"""Takes the picture in the README: `python docs/heatmap.py` (needs Chromium; writes docs/heatmap.png).

A real server explains a real prompt; the page of the stored explanation is what is shown.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.clients.server import objects, running, whence  # noqa: E402

SECRET = "secret-of-the-picture"  # noqa: S105 - of a server that lives for seconds
QUESTION = {
    "model": "demo-lm",
    "prompt": "Anna lives in Oslo. Ben lives in Rome. Clara lives in Paris. David has a red car.\n"
    "Question: where does Anna live? Answer:",
    "target": " Oslo",
    "prompt_granularity": {"type": "word"},
}
CHROMIUM = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=860,360",
]  # fmt: skip


def main() -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("no Chromium found")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "heatmap.html"
        page.write_text(explained(Path(folder) / "data"), encoding="utf-8")
        shot = [f"--screenshot={ROOT / 'docs' / 'heatmap.png'}", f"--user-data-dir={folder}/browser", page.as_uri()]
        subprocess.run([browser, *CHROMIUM, *shot], check=True)  # noqa: S603 - the browser found above


def explained(data_dir: Path) -> str:
    """The page of an explanation made by a server of its own."""
    model = str(ROOT / "demo" / "models" / "demo-lm")
    objects(whence(data_dir, "models", "add", "demo-lm", model, "--kind", "causal-lm", "--json"))
    with running(data_dir, WHENCE_API_KEY=SECRET) as server:
        client = httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {SECRET}"}, timeout=60)
        answer = client.post("/explain", json=QUESTION).raise_for_status().json()
        return client.get(f"/explanations/{answer['id']}", headers={"Accept": "text/html"}).raise_for_status().text


if __name__ == "__main__":
    main()
