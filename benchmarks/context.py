"""Context attribution on demo-lm's recall prompts: does the right source come first, and what do the passes cost?

    python -m benchmarks.context [--prompts 40] [--threads 1]

Held-out prompts of more than two facts, one of them decisive: the facts are the context, the question is the query, the
answer is the response. Reported: how often the decisive fact comes first, at the server's own number of ablations and
at the fewest, and how often the answer is what the model itself would say. Seconds, medians over the prompts: of a
whole request to the engine; of its passes alone, which is the floor; of one plain forward pass for each mask (fused
attention, logits of the response only) on the same prompts. The three take turns on each prompt. Rows: what is read,
and what one pass for each mask reads. The largest difference of a token logit between the two ways is reported too. One
saturated task on a small model: it tells whether a method is broken. Writes benchmarks/results/context.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.explain_tasks import plain
from explainers.context import FEWEST, ContextQuestion, ablated, attribute, fitting_ablations, sources_of
from explainers.forcing import LARGEST, Forced, forcing
from explainers.language_model import LanguageModel, TokenSequence
from explainers.loaders import load_causal_lm
from explainers.types import Attribution, Span

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "context.json"
TOP_K = 5
Outcome = TypeVar("Outcome")


def timed(work: Callable[[], Outcome]) -> tuple[float, Outcome]:
    started = time.perf_counter()
    outcome = work()
    return time.perf_counter() - started, outcome


def question_of(case: dict[str, Any]) -> ContextQuestion:
    prompt: str = case["prompt"]
    end = prompt.rindex(case["facts"][-1]) + len(case["facts"][-1])
    context = prompt[:end]
    count = fitting_ablations(context, "sentence", TOP_K)
    return ContextQuestion(context, prompt[end:].strip(), case["target"], ablations=count)


def packed(model: LanguageModel, sequences: list[TokenSequence]) -> Forced:
    steps = forcing(model, sequences)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: Forced = end.value
            return found


def one_by_one(model: LanguageModel, sequences: list[TokenSequence]) -> NDArray[np.float64]:  # (N, T)
    """Token logits by one plain forward pass for each sequence."""
    found = []
    for sequence in sequences:
        ids, target = torch.tensor([sequence.read]), torch.tensor(sequence.target)
        with torch.inference_mode():
            logits = model.network(input_ids=ids, use_cache=False, logits_to_keep=len(target)).logits[0].float()
        own = logits.gather(-1, target[:, None])
        others = logits.scatter(-1, target[:, None], -torch.inf).logsumexp(-1, keepdim=True)
        found.append((own - others).clamp(-LARGEST, LARGEST)[:, 0].double().numpy())
    return np.array(found)


def says(model: LanguageModel, sequence: TokenSequence) -> bool:
    """Whether each token of the response is the most probable one."""
    with plain(model, "sdpa"), torch.inference_mode():
        logits = model.network(input_ids=torch.tensor([sequence.read]), use_cache=False).logits[0]
    return logits[-len(sequence.target) :].argmax(-1).tolist() == list(sequence.target)


def decisive_first(found: Attribution, span: tuple[int, int]) -> bool:
    """Whether the highest attribution is that of the decisive fact."""
    place = found.features[int(found.values[0].argmax())].place
    return isinstance(place, Span) and place.start < span[1] and place.stop > span[0]


def measure(model: LanguageModel, case: dict[str, Any]) -> dict[str, float]:
    question = question_of(case)
    sources = sources_of(question.context, question.granularity)
    kept, sequences = ablated(model, question, sources)
    whole = ablated(model, replace(question, ablations=256), sources)
    full = next((s for choice, s in zip(*whole, strict=True) if choice.all()), None)
    request, found = timed(lambda: attribute(model, question))
    floor, forced = timed(lambda: packed(model, sequences))
    with plain(model, "sdpa"):
        naive, logits = timed(lambda: one_by_one(model, sequences))
    return {
        "sources": len(sources),
        "masks": len(kept),
        "decisive first": decisive_first(found, case["span"]),
        "decisive first, fewest": decisive_first(attribute(model, replace(question, ablations=FEWEST)), case["span"]),
        "model says it": says(model, full) if full is not None else float("nan"),
        "request": request,
        "passes": floor,
        "one by one": naive,
        "request over passes": request / floor,
        "one by one over passes": naive / floor,
        "forwards": forced.forwards,
        "rows": forced.rows,
        "rows one by one": sum(sequence.positions for sequence in sequences),
        "largest difference": float(np.abs(logits - forced.logits).max()),
    }


def summary(measured: list[dict[str, float]]) -> dict[str, Any]:
    def column(name: str) -> list[float]:
        return [float(one[name]) for one in measured if not np.isnan(one[name])]

    rates = {
        name: round(statistics.fmean(column(name)), 3)
        for name in ("decisive first", "decisive first, fewest", "model says it")
    }
    counts = ("sources", "masks", "forwards", "rows", "rows one by one")
    ratios = ("request over passes", "one by one over passes")
    return {
        "rates": rates,
        "means": {name: round(statistics.fmean(column(name)), 1) for name in counts},
        "median seconds": {
            name: round(statistics.median(column(name)), 4) for name in ("request", "passes", "one by one")
        },
        "median ratios": {name: round(statistics.median(column(name)), 2) for name in ratios},
        "largest difference of a token logit": max(column("largest difference")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Context attribution on recall prompts.")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load_causal_lm(ROOT / "demo" / "models" / "demo-lm", device="cpu")
    lines = (ROOT / "demo" / "data" / "recall_heldout.jsonl").read_text(encoding="utf-8").splitlines()
    cases = [case for case in map(json.loads, lines) if len(case["facts"]) > 2][: arguments.prompts]
    measure(model, cases[0])  # the first passes of a process are slower
    measured = [measure(model, case) for case in cases]
    about = {"machine": {"cores": os.cpu_count()}, "threads": arguments.threads, "prompts": len(cases)}
    result = about | summary(measured)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
