"""The engine of /explain against what one would write without it, on the same model and chunks, taking turns.

    python -m benchmarks.explain [--rounds 5] [--threads 1]

- `engine`: this repository's (one base pass, then only the rows a chunk can change, several chunks per pass);
- `naive`: one full forward pass per chunk, eager attention with a mask, logits of all rows: how AtMan was published;
- `batched`: several chunks per batch, fused attention with masks, logits only where the target is predicted.

An 8-layer, 512-wide random Llama in float32; 30 chunks, 16 target tokens. CPU seconds of this process, since machines
are shared; ratios of runs that stand beside each other. Needs only torch, transformers and tokenizers. Writes
benchmarks/results/explain.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM

from explainers import attention_control
from explainers.language_model import LanguageModel, TokenSequence
from explainers.suppression import log_probabilities

RESULT = Path(__file__).parent / "results" / "explain.json"
VOCABULARY, CHUNKS, TARGET, BATCH = 32_000, 30, 16, 8
PROMPTS = (256, 1024)
Scores = NDArray[np.float64]  # (C, T)


@dataclass(frozen=True)
class Task:
    """One explanation: the sequence and the factors of each chunk."""

    model: LanguageModel
    sequence: TokenSequence
    base: NDArray[np.float64]  # (S,)
    variants: list[NDArray[np.float64]]  # C of (S,)

    def engine(self) -> Scores:
        result = log_probabilities(self.model, self.sequence, self.base, self.variants, log_additive=True)
        return result.base - result.variants

    def naive(self) -> Scores:
        scores = [self._masked([factors], "eager", all_rows=True)[0] for factors in (self.base, *self.variants)]
        return scores[0] - np.stack(scores[1:])

    def batched(self) -> Scores:
        passes = [self.base, *self.variants]
        batches = [passes[i : i + BATCH] for i in range(0, len(passes), BATCH)]
        scores = np.concatenate([self._masked(batch, "sdpa", all_rows=False) for batch in batches])
        return scores[0] - scores[1:]

    def _masked(self, factors: list[NDArray[np.float64]], implementation: str, *, all_rows: bool) -> Scores:
        """Log-probabilities of the target, one row per factor vector, with ordinary 4-D masks."""
        network, size = self.model.network, self.sequence.positions
        causal = torch.full((size, size), torch.finfo(torch.float32).min).triu(1)
        mask = causal + torch.tensor(np.log(factors), dtype=torch.float32)[:, None, None, :]
        ids = torch.tensor([self.sequence.read]).expand(len(factors), -1)
        network.set_attn_implementation(implementation)
        with torch.inference_mode():
            kept = 0 if all_rows else TARGET
            logits = network(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=kept).logits
            chosen = logits[:, -TARGET:].log_softmax(-1)[:, range(TARGET), self.sequence.target]
        network.set_attn_implementation(attention_control.IMPLEMENTATION)
        return chosen.double().numpy()


def build(prompt: int) -> Task:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        max_position_embeddings=2048,
        attn_implementation=attention_control.IMPLEMENTATION,
    )
    model = LanguageModel(LlamaForCausalLM(config).eval(), Tokenizer(models.BPE()), "", 2048, (), None)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, prompt + TARGET).tolist()
    sequence = TokenSequence((), tuple(ids[:prompt]), tuple(ids[prompt:]), (), ())
    base = np.ones(sequence.positions)
    edges = np.linspace(0, prompt, CHUNKS + 1).astype(int)
    variants = [
        np.where((np.arange(base.size) >= a) & (np.arange(base.size) < b), 0.1, 1.0) for a, b in pairwise(edges)
    ]
    return Task(model, sequence, base, variants)


def timed(work: Callable[[], Scores]) -> tuple[float, Scores]:
    started = time.process_time()
    scores = work()
    return time.process_time() - started, scores


def measure(prompt: int, rounds: int) -> dict[str, float]:
    """Median CPU seconds of each way, the median of the ratios within rounds, and the largest difference of scores."""
    task = build(prompt)
    ways = {"engine": task.engine, "naive": task.naive, "batched": task.batched}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    difference = 0.0
    for _ in range(rounds):
        scores = {}
        for name, way in ways.items():
            spent, scores[name] = timed(way)
            seconds[name].append(spent)
        difference = max(float(np.abs(scores[name] - scores["engine"]).max()) for name in ("naive", "batched"))
    found = {f"{name}, CPU seconds": round(statistics.median(spent), 2) for name, spent in seconds.items()}
    for name in ("naive", "batched"):
        ratios = [other / own for other, own in zip(seconds[name], seconds["engine"], strict=True)]
        found[f"{name} over engine"] = round(statistics.median(ratios), 2)
    return found | {"largest difference of scores, nats": difference}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the engine of /explain.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    attention_control.register()
    result = {
        "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "versions": {name: version(name) for name in ("torch", "transformers", "numpy")},
        "threads": arguments.threads,
        "prompts": {f"{prompt} tokens": measure(prompt, arguments.rounds) for prompt in PROMPTS},
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["prompts"], indent=2))


if __name__ == "__main__":
    main()
