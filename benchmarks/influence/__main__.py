"""Who said it, and what would be gone with them: the server's method and others on models that can be retrained.

    python -m benchmarks.influence [--seeds 0] [--kinds full lora] [--tangled] [--cache DIR]
                                   [--retrainings 24] [--runs 2] [--removed 15] [--checkpoints] [--levels]

Prints a table for each model and writes results/influence.json, where it replaces what was measured there before under
the same name; what is left out with 0 stays. All that is trained is kept in the cache: a broken-off run goes on. One
thread.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.influence.bed import Bed, bed
from benchmarks.influence.evaluation import evaluated, levels_of

RESULT = Path(__file__).parents[1] / "results" / "influence.json"
COLUMNS = ("MRR", "R@10", "R-precision", "outliers in the top 5", "AUC", "poison MRR", "poison first")


def main() -> None:
    asked = arguments()
    torch.set_num_threads(1)
    for seed in asked.seeds:
        for kind in asked.kinds:
            name = name_of(seed, kind, asked.tangled)
            made = bed(seed, kind, asked.cache, tangled=asked.tangled)
            found = levels_of(made) if asked.levels else measured(made, asked)
            keep(name, known(name) | found)
            show(name, known(name))


def measured(made: Bed, asked: argparse.Namespace) -> dict[str, Any]:
    return evaluated(made, asked.retrainings, asked.runs, asked.removed, checkpoints=asked.checkpoints)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.influence")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--kinds", choices=("full", "lora"), nargs="+", default=["full", "lora"])
    parser.add_argument("--tangled", action="store_true", help="the harder world")
    parser.add_argument("--cache", type=Path, default=Path(".bed"))
    parser.add_argument("--retrainings", type=int, default=24, help="on random halves, for the LDS; 0 leaves it out")
    parser.add_argument("--runs", type=int, default=2, help="of each of them, in other orders; their mean is forecast")
    parser.add_argument("--removed", type=int, default=15, help="queries whose pairs are taken out")
    parser.add_argument("--checkpoints", action="store_true", help="TracInCP too")
    parser.add_argument("--levels", action="store_true", help="nothing but what the levels hold")
    return parser.parse_args()


def name_of(seed: int, kind: str, tangled: bool) -> str:
    return f"{'tangled' if tangled else 'plain'} world {seed}, {kind}"


def known(name: str) -> dict[str, Any]:
    """What was measured before of a model."""
    models = json.loads(RESULT.read_text())["models"] if RESULT.exists() else {}
    return dict(models.get(name, {}))


def keep(name: str, found: Mapping[str, Any]) -> None:
    packages = ("torch", "transformers", "tokenizers", "numpy", "scipy")
    before = json.loads(RESULT.read_text())["models"] if RESULT.exists() else {}
    result = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version()} | {package: version(package) for package in packages},
        "models": {**before, name: found},
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


def show(name: str, found: Mapping[str, Any]) -> None:
    print(f"\n{name}: {found['queries']}")
    print(f"{'':28}" + "".join(f"{column[:12]:>14}" for column in COLUMNS) + f"{'LDS':>14}")
    forecasts = found.get("lds", {}).get("methods", {})
    for method, figures in found.get("sources", {}).items():
        told = [figures[column] for column in COLUMNS]
        values = [value[0] if isinstance(value, list) else value for value in told]
        lds = f"{forecasts[method][0]:14.3f}" if method in forecasts else ""
        print(f"{method:28}" + "".join(f"{value:14.3f}" for value in values) + lds)
    for part in ("lds", "levels", "removal"):
        if part in found:
            print(part, json.dumps(found[part], indent=1))


if __name__ == "__main__":
    main()
