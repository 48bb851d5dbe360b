"""What an index costs: sketches beside training passes, bytes, one question, and the search in a million pairs.

    python -m benchmarks.influence.cost [--rounds 5] [--model DIR --base DIR --data FILE]

The pairs of demo-qa unless told otherwise. Floor: one forward and backward pass of the same batches as a trainer makes
it, with gradients of all weights (full) or of the adapter alone (LoRA, peft). Turns are taken in one process on one
thread; medians of CPU seconds and of the paired ratios. Writes benchmarks/results/influence_cost.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from explainers.decoding import outcome_of
from explainers.influence.examples import Example, Mask
from explainers.influence.finishing import Generic, finish
from explainers.influence.gradients import Projection
from explainers.influence.index import SHORTLIST, SKETCH, Index, shortlist
from explainers.influence.passes import batches
from explainers.influence.records import records_of
from explainers.influence.rendering import render
from explainers.influence.shards import shard_of, shard_path, write_shard
from explainers.influence.sketching import FineTune, sketching
from explainers.influence.texts import words_of
from explainers.influence.tracing import tracing
from explainers.loaders import load_causal_lm, load_fine_tune

RESULT = Path(__file__).parents[1] / "results" / "influence_cost.json"
DEMO = Path(__file__).parents[2] / "demo"
TOKENS, SIZES, MILLION = 2048, (4, 8, 16), 1_000_000


class Trainer:
    """Passes as a trainer makes them, over the batches that are sketched."""

    def __init__(self, network: Any, examples: Sequence[Example], places: Sequence[Sequence[int]]) -> None:
        self.network = network
        self.batches = [padded([examples[place] for place in batch]) for batch in places]

    def passes(self) -> None:
        for ids, mask, labels in self.batches:
            self.network(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
            self.network.zero_grad()


def padded(examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    width = max(len(example.ids) for example in examples)
    ids, mask, labels = (torch.full((len(examples), width), value) for value in (0, 0, -100))
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)], mask[row, : len(example.ids)] = torch.tensor(example.ids), 1
        labels[row, list(example.answer)] = torch.tensor(example.targets)
    return ids, mask, labels


def cpu_seconds(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def paired(works: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    for work in works.values():
        work()
    spent: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            spent[name].append(cpu_seconds(work))
    return spent


def ratio(spent: dict[str, list[float]], name: str, floor: str) -> float:
    return statistics.median(mine / its for mine, its in zip(spent[name], spent[floor], strict=True))


def build(tune: FineTune, adapter: Path | None, base: Path, examples: Sequence[Example], rounds: int) -> dict[str, Any]:
    places = list(batches(tune.model, examples, TOKENS))
    works: dict[str, Callable[[], Any]] = {}
    whole = AutoModelForCausalLM.from_pretrained(base).train()
    works["full training"] = Trainer(whole, examples, places).passes
    if adapter is not None:
        wrapped = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter, is_trainable=True)
        works["LoRA training"] = Trainer(wrapped.train(), examples, places).passes
    for size in SIZES:
        projection = Projection(tune.model.network, size)
        for name, used in (("", tune), (", gains", FineTune(tune.model, tune.base))):
            chosen = FineTune(used.model) if not name else used
            works[f"k={size}{name}"] = lambda t=chosen, p=projection: outcome_of(sketching(t, examples, p, TOKENS))
    spent = paired(works, rounds)
    floors = [name for name in works if name.endswith("training")]
    return {
        name: {"seconds": round(statistics.median(spent[name]), 3)}
        | {f"of {floor}": round(ratio(spent, name, floor), 3) for floor in floors}
        for name in works
    }


def asked(tune: FineTune, examples: Sequence[Example], records: Sequence[Any], rounds: int) -> dict[str, float]:
    """Bytes of a pair, and CPU milliseconds of a question whose answer is given."""
    projection = Projection(tune.model.network, 8)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sketches = outcome_of(sketching(tune, examples, projection, TOKENS))
        write_shard(folder, 0, shard_of(sketches, [example.record for example in examples]))
        generic = outcome_of(sketching(tune, examples[:20], projection, TOKENS))
        keys = [repr(example.ids).encode() for example in examples]
        prompts = Generic(shard_of(generic, range(20)), tuple((number,) for number in range(20)))
        done = finish(folder, 1, keys, lambda record: examples[record].ids, prompts, {})
        index = Index.open(folder)
        index.search(sketches.rows[0].astype(float), sketches.hidden[0].astype(float))
        question, search = [], []
        for example, row, state in list(zip(examples, sketches.rows, sketches.hidden, strict=True))[: 20 * rounds]:
            started = time.process_time()
            outcome_of(tracing(tune, projection, index, done.thresholds, example, words_of(example.ids)))
            question.append((time.process_time() - started) * 1e3)
            started = time.process_time()
            index.search(row.astype(float), state.astype(float))
            search.append((time.process_time() - started) * 1e3)
        return {
            "pairs": len(records),
            "bytes per pair": round(shard_path(folder, 0).stat().st_size / len(examples)),
            "bytes of what is derived, per pair": round((folder / "index.safetensors").stat().st_size / len(examples)),
            "question, CPU ms": round(statistics.median(question), 2),
            "of it search, CPU ms": round(statistics.median(search), 2),
        }


def million(rounds: int) -> dict[str, float]:
    """The shortlist of a question among a million, by the matrix that is kept, and by what else there is."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(MILLION, SKETCH, generator=draw)
    kept = {"float16, kept": rows.half(), "bfloat16": rows.to(torch.bfloat16), "float32": rows}
    questions = np.random.default_rng(0).standard_normal((rounds + 1, SKETCH))
    works: dict[str, Callable[[int], Any]] = {
        name: lambda number, matrix=matrix: shortlist(matrix, questions[number], SHORTLIST)
        for name, matrix in kept.items()
    }
    works |= faiss_of(rows, questions)
    spent: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            started = time.process_time()
            work(number)
            spent[name].append((time.process_time() - started) * 1e3)
    return {name: round(statistics.median(times[1:]), 1) for name, times in spent.items()}


def faiss_of(rows: torch.Tensor, questions: np.ndarray) -> dict[str, Callable[[int], Any]]:
    try:
        import faiss  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415 - compared with where it is there
    except ImportError:
        print("faiss is not installed: left out")
        return {}
    faiss.omp_set_num_threads(1)
    made = {}
    for name, kind in (("faiss float16", "QT_fp16"), ("faiss int8", "QT_8bit")):
        index = faiss.IndexScalarQuantizer(SKETCH, getattr(faiss.ScalarQuantizer, kind), faiss.METRIC_INNER_PRODUCT)
        index.train(rows[:10_000].numpy())
        index.add(rows.numpy())
        made[name] = lambda number, index=index: index.search(
            questions[number : number + 1].astype("float32"), SHORTLIST
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.influence.cost")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--base", type=Path, default=DEMO / "models" / "demo-lm")
    parser.add_argument("--model", type=Path, default=DEMO / "models" / "demo-qa")
    parser.add_argument("--data", type=Path, default=DEMO / "data" / "facts.jsonl")
    told = parser.parse_args()
    torch.set_num_threads(1)
    base = load_causal_lm(told.base)
    tune = FineTune(load_fine_tune(told.model, told.base), base)
    records = records_of(told.data.read_bytes(), told.data.name)
    examples = render(tune.model, records, Mask())
    adapter = told.model if (told.model / "adapter_config.json").exists() else None
    found = {
        "build": build(tune, adapter, told.base, examples, told.rounds),
        "question": asked(tune, examples, records, told.rounds),
        "search in a million x 256, CPU ms": million(told.rounds),
    }
    packages = ("torch", "transformers", "peft", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    RESULT.write_text(json.dumps({"cores": os.cpu_count(), "versions": versions, **found}, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
