"""Build the test bed and say what the models know.

python -m benchmarks.influence [--seeds 0 1 2] [--kinds full lora] --cache DIR
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import torch

from benchmarks.influence.bed import bed


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.influence", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--kinds", choices=("full", "lora"), nargs="+", default=["full", "lora"])
    parser.add_argument("--cache", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for seed in asked.seeds:
        for kind in asked.kinds:
            made = bed(seed, kind, asked.cache)
            print(seed, kind, dict(Counter(query.kind for query in made.queries)), flush=True)


if __name__ == "__main__":
    main()
