"""The engine of /explain against what one would write without it, on the same model and chunks, taking turns.

    python -m benchmarks.explain [--rounds 5] [--threads 1]
    python -m benchmarks.explain --device cuda --shape 8b [--prompts 1024 8192] [--token-chunks]

A random Llama, 30 chunks, 16 target tokens: the engine, `naive` and `batched` (see `explain_tasks`); where captum or
inseq is installed, also its ablation or occlusion (`explain_peers`) on a smaller question. Seconds are CPU seconds of
this process (the machine may be shared), or seconds of the clock on a GPU; ratios are medians of runs that stand beside
each other. Memory is what one answer takes beyond the model. Needs torch and transformers.
Writes results/explain*.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.explain_peers import PEERS
from benchmarks.explain_tasks import SHAPES, Shape, Task, build_model, build_task
from explainers import attention_control
from explainers.errors import OutOfMemory

RESULTS = Path(__file__).parent / "results"
CHUNKS, TARGET = 30, 16
SLOW = frozenset({"captum, defaults", "inseq, defaults"})
"""Run in the first round only."""

Ways = Mapping[str, Callable[[], object]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the engine of /explain.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--shape", default="small", choices=list(SHAPES))
    parser.add_argument("--prompts", type=int, nargs="+", default=None, help="tokens; 256 and 1024, or 1024 on a GPU")
    parser.add_argument("--token-chunks", action="store_true", help="also with every token of the first prompt a chunk")
    parser.add_argument("--peak-of", default=None, help="print the peak memory of one way, in bytes, and stop")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    attention_control.register()
    arguments.prompts = arguments.prompts or ([1024] if arguments.device == "cuda" else [256, 1024])
    model = build_model(SHAPES[arguments.shape], arguments.device, max(arguments.prompts) + 1024)
    if arguments.peak_of:
        task = build_task(model, arguments.prompts[0], CHUNKS, TARGET)
        task.run_once()
        print(peak(_ways(task)[arguments.peak_of], arguments.device))
        return
    tasks = {f"{n} tokens": build_task(model, n, CHUNKS, TARGET) for n in arguments.prompts}
    first = arguments.prompts[0]
    tasks[f"{first} tokens, target tokens too"] = build_task(model, first, CHUNKS, TARGET, target_chunks=True)
    if arguments.token_chunks:
        tasks[f"{first} tokens, each a chunk"] = build_task(model, first, first, TARGET)
    result: dict[str, Any] = {
        "machine": _machine(arguments.device),
        "versions": {name: version(name) for name in ("torch", "transformers", "numpy")},
        "threads": arguments.threads,
        "model": f"{arguments.shape}, {SHAPES[arguments.shape].dtype}",
        "matrix products, TFLOP per second": round(matmul_rate(SHAPES[arguments.shape], arguments.device) / 1e12, 3),
        "prompts": {},
    }
    for name, task in tasks.items():
        result["prompts"][name] = measure(task, _ways(task), arguments.rounds)
        show(name, result["prompts"][name])
    result["prompts"][f"{first} tokens"]["memory beyond the model, MB"] = memory(arguments, first)
    for peer in PEERS:
        if not peer.installed or arguments.device != "cpu":
            print(f"\n{peer.library}: left out (not installed, or not on a CPU)")
            continue
        result["versions"][peer.library] = version(peer.library)
        small, name = peer.task(model), f"{peer.question}, beside {peer.library}"
        result["prompts"][name] = measure(small, {"engine": small.engine, **peer.ways(small)}, arguments.rounds)
        show(name, result["prompts"][name])
    file = RESULTS / ("explain.json" if arguments.device == "cpu" else f"explain_cuda_{arguments.shape}.json")
    file.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "prompts"}, indent=2))


def _ways(task: Task) -> Ways:
    return {"engine": task.engine, "naive": task.naive, "batched": task.batched}


def measure(task: Task, ways: Ways, rounds: int) -> dict[str, Any]:
    """Median seconds of each way and the median of the ratios within rounds; None where memory does not suffice."""
    device = task.model.device.type
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    answers: dict[str, Any] = {}
    failed: set[str] = set()
    task.engine()  # whatever is prepared on first use
    for turn in range(rounds):
        for name in [name for name in ways if name not in failed and not (turn and name in SLOW)]:
            try:
                spent, answers[name] = timed(ways[name], device)
                seconds[name].append(spent)
            except (torch.OutOfMemoryError, OutOfMemory):
                failed.add(name)
    found: dict[str, Any] = {f"{name}, seconds": _median(spent) for name, spent in seconds.items()}
    for name in ways:
        if name != "engine":
            ratios = [other / own for other, own in zip(seconds[name], seconds["engine"], strict=False)]
            found[f"{name} over engine"] = _median(ratios)
    same = [answers[name] for name in ("naive", "batched") if name in answers]
    if same:
        found["largest score, nats"] = float(np.abs(answers["engine"]).max())
        found["largest difference of scores, nats"] = max(float(np.abs(a - answers["engine"]).max()) for a in same)
    floor = matmul_flops(task) / matmul_rate(SHAPES_OF[task.model.network.config.hidden_size], device)
    found["engine, share of the time its matrix products need"] = round(floor / statistics.median(seconds["engine"]), 2)
    return found | {"engine, forward passes": task.forwards, "engine, rows": task.rows}


SHAPES_OF = {shape.hidden: shape for shape in SHAPES.values()}


def timed(work: Callable[[], object], device: str) -> tuple[float, object]:
    clock = time.process_time if device == "cpu" else time.perf_counter
    _finish(device)
    started = clock()
    found = work()
    _finish(device)
    return clock() - started, found


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def matmul_flops(task: Task) -> float:
    """Operations of all matrix products outside attention."""
    with FlopCounterMode(display=False) as counter:
        task.engine()
    counts = counter.get_flop_counts()["Global"]
    return float(
        sum(count for kind, count in counts.items() if "attention" not in str(kind) and "bmm" not in str(kind))
    )


def matmul_rate(shape: Shape, device: str) -> float:
    """Operations per second of the product that takes most of the time, with as many rows as a packed pass has."""
    rows = 1024 if device == "cpu" else 16_384
    a = torch.randn(rows, shape.hidden, device=device, dtype=shape.dtype)
    b = torch.randn(shape.wide, shape.hidden, device=device, dtype=shape.dtype)
    best = min(timed(lambda: [a @ b.T for _ in range(20)], device)[0] for _ in range(5))
    return 20 * 2 * rows * shape.hidden * shape.wide / best


def memory(arguments: argparse.Namespace, prompt: int) -> dict[str, float | None]:
    """Peak memory of each way beyond a model that has run, in a process of its own; the median of three."""
    found: dict[str, float | None] = {}
    for name in ("engine", "naive", "batched"):
        command = [sys.executable, "-m", "benchmarks.explain", "--peak-of", name, "--prompts", str(prompt)]
        command += ["--device", arguments.device, "--shape", arguments.shape, "--threads", str(arguments.threads)]
        if arguments.device == "cuda":
            torch.cuda.empty_cache()
        answers = [subprocess.run(command, capture_output=True, text=True, check=False) for _ in range(3)]
        found[name] = _median([int(answer.stdout) / 1e6 for answer in answers if answer.returncode == 0])
    return found


def peak(work: Callable[[], object], device: str) -> int:
    """Bytes that `work` takes at its peak beyond what is there before."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def show(name: str, found: Mapping[str, Any]) -> None:
    print(f"\n{name}")
    for key, value in found.items():
        print(f"  {key:<55}{value}")


def _median(values: list[float]) -> float | None:
    return round(statistics.median(values), 2) if values else None


def _machine(device: str) -> dict[str, Any]:
    processor = platform.processor() or platform.machine()
    found: dict[str, Any] = {"cores": os.cpu_count(), "processor": processor}
    return found | ({"device": torch.cuda.get_device_name()} if device == "cuda" else {})


if __name__ == "__main__":
    main()
