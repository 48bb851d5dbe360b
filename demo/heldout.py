"""Writes ``demo/data/recall_heldout.jsonl``: ``python -m demo.heldout``.

A hundred held-out prompts with 4 to 10 facts. ``span`` counts code points of the prompt.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from demo.corpus import held_out

PATH: Final = Path(__file__).parent / "data" / "recall_heldout.jsonl"


def main() -> None:
    """Write the file."""
    lines = []
    for case in held_out(100, seed=100, fewest=4):
        fields = {"prompt": case.prompt, "target": case.target, "decisive": case.decisive}
        lines.append(json.dumps(fields | {"facts": case.facts, "span": case.span}, ensure_ascii=False))
    PATH.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
