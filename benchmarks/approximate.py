"""How far the approximate methods of /explain agree with the exact one and what they save, on demo-lm's recall prompts.

    python -m benchmarks.approximate [--prompts 100] [--threads 1]

For each held-out prompt (facts, one of them decisive, a question) and both by sentence and by word: Spearman and
Pearson correlation of a method's scores with those of `atman` over the prompt's pieces, whether the decisive fact comes
first, CPU seconds of the process relative to `atman` on the same prompt (methods take turns), and the removal test
(`evaluate: true`): mean drop of the target's log-probability when the top 1, 2, 3, ... pieces are removed, and
faithfulness. Means over prompts that the model answers correctly or not; medians of the ratios. One saturated task on a
small model: it tells whether a method is broken, hardly which of two good ones is better. Writes
benchmarks/results/approximate.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from explainers.faithfulness import faithfulness
from explainers.language_model import LanguageModel
from explainers.loaders import load_causal_lm
from explainers.registry import METHODS
from explainers.types import Attribution, Granularity, Prompt, Span, Text, never_stop

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "approximate.json"
EXACT = "atman"


@dataclass
class Tally:
    """What one method did on all prompts."""

    spearman: list[float] = field(default_factory=list)
    pearson: list[float] = field(default_factory=list)
    first: list[bool] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)
    drops: list[float] = field(default_factory=list)
    faithful: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        return {
            "Spearman": round(statistics.fmean(self.spearman), 3),
            "Pearson": round(statistics.fmean(self.pearson), 3),
            "decisive first": round(statistics.fmean(self.first), 3),
            "CPU seconds over atman": round(statistics.median(self.cost), 3),
            "mean drop, nats": round(statistics.fmean(self.drops), 3),
            "faithfulness": round(statistics.fmean(self.faithful), 3),
        }


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Equal values share their mean rank."""
    _, kinds, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    mean: NDArray[np.float64] = (last - (counts - 1) / 2)[kinds]
    return mean


def correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0


def decisive_first(found: Attribution, span: tuple[int, int]) -> bool:
    """Whether the highest score lies inside the decisive fact."""
    place = found.features[int(found.values[0].argmax())].place
    return isinstance(place, Span) and place.start < span[1] and place.stop > span[0]


def measure(model: LanguageModel, cases: list[dict[str, Any]], granularity: Granularity) -> dict[str, Tally]:
    tallies = {name: Tally() for name in METHODS}
    for number, case in enumerate(cases):
        prompt: Prompt = (Text(case["prompt"]),)
        exact: Attribution | None = None
        spent: dict[str, float] = {}
        for name, method in METHODS.items():
            config, target = method.config(granularity=granularity), case["target"]
            started = time.process_time()
            found = method.attribute(model, prompt, target, config, never_stop)
            spent[name] = time.process_time() - started
            exact, tally = exact or found, tallies[name]
            tally.spearman.append(correlation(ranks(found.values[0]), ranks(exact.values[0])))
            tally.pearson.append(correlation(found.values[0], exact.values[0]))
            tally.first.append(decisive_first(found, case["span"]))
            tally.cost.append(spent[name] / spent[EXACT])
            judged = faithfulness(model, prompt, target, config, found, seed=number)
            tally.drops.append(judged.area)
            tally.faithful.append(judged.score or 0.0)
    return tallies


def main() -> None:
    parser = argparse.ArgumentParser(description="Hold the approximate methods against the exact one.")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load_causal_lm(ROOT / "demo" / "models" / "demo-lm", device="cpu")
    lines = (ROOT / "demo" / "data" / "recall_heldout.jsonl").read_text(encoding="utf-8").splitlines()
    cases = [case for case in map(json.loads, lines) if len(case["facts"]) > 2][: arguments.prompts]
    kinds: tuple[Granularity, ...] = ("sentence", "word")
    measured = {kind: {name: tally.summary() for name, tally in measure(model, cases, kind).items()} for kind in kinds}
    result = {"machine": {"cores": os.cpu_count()}, "threads": arguments.threads, "prompts": len(cases)} | measured
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    for kind, table in measured.items():
        print(f"by {kind}")
        for name, numbers in table.items():
            print(f"  {name:9s}", "  ".join(f"{label} {number}" for label, number in numbers.items()))


if __name__ == "__main__":
    main()
