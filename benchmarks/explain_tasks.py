"""One explanation, answered by the engine of /explain and by what one would write without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM

from explainers import attention_control
from explainers.language_model import LanguageModel, TokenSequence
from explainers.suppression import log_probabilities

FACTOR, POSITIONS_PER_BATCH = 0.1, 8 * 1024
Scores = NDArray[np.float64]  # (C, T)


@dataclass(frozen=True)
class Shape:
    """A Llama of random weights."""

    vocabulary: int
    hidden: int
    wide: int
    layers: int
    heads: int
    shared_heads: int
    dtype: torch.dtype


SHAPES = {
    "small": Shape(32_000, 512, 1376, 8, 8, 8, torch.float32),
    "8b": Shape(128_256, 4096, 14_336, 32, 32, 8, torch.bfloat16),
}


@dataclass
class Task:
    """The sequence, and the factors of each chunk."""

    model: LanguageModel
    sequence: TokenSequence
    base: NDArray[np.float64]  # (S,)
    variants: list[NDArray[np.float64]]  # C of (S,)
    forwards: int = 0  # of the engine's last answer
    rows: int = 0

    def run_once(self) -> None:
        """A short plain pass: from then on the code of the libraries is in memory, which none of the ways adds."""
        ids = torch.tensor([self.sequence.read[:8]], device=self.model.device)
        with plain(self.model, "sdpa"), torch.inference_mode():
            self.model.network(ids, use_cache=False)

    def engine(self) -> Scores:
        """One base pass, then only the rows a chunk can change, several chunks per pass."""
        result = log_probabilities(self.model, self.sequence, self.base, self.variants, log_additive=True)
        self.forwards, self.rows = result.forwards, result.rows
        return result.base - result.variants

    def naive(self) -> Scores:
        """One full forward pass per chunk, eager attention with a mask, logits of all rows: as AtMan was published."""
        with plain(self.model, "eager"):
            scores = [self._masked([factors], all_rows=True)[0] for factors in (self.base, *self.variants)]
        return scores[0] - np.stack(scores[1:])

    def batched(self) -> Scores:
        """Several chunks per batch, fused attention with masks, logits only where the target is predicted."""
        passes, size = [self.base, *self.variants], max(1, min(8, POSITIONS_PER_BATCH // self.sequence.positions))
        with plain(self.model, "sdpa"):
            batches = [passes[i : i + size] for i in range(0, len(passes), size)]
            scores = np.concatenate([self._masked(batch, all_rows=False) for batch in batches])
        return scores[0] - scores[1:]

    def _masked(self, factors: list[NDArray[np.float64]], *, all_rows: bool) -> Scores:
        """Log-probabilities of the target, one row per factor vector, with ordinary 4-D masks."""
        network, size, target = self.model.network, self.sequence.positions, self.sequence.target
        causal = torch.full((size, size), torch.finfo(network.dtype).min, device=self.model.device).triu(1)
        bias = torch.tensor(np.log(factors), dtype=torch.float32, device=self.model.device)
        mask = (causal + bias[:, None, None, :]).clamp(min=torch.finfo(network.dtype).min).to(network.dtype)
        ids = torch.tensor([self.sequence.read], device=self.model.device).expand(len(factors), -1)
        with torch.inference_mode():
            kept = 0 if all_rows else len(target)
            logits = network(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=kept).logits
            chosen = logits[:, -len(target) :].float().log_softmax(-1)[:, range(len(target)), target]
        scores: Scores = chosen.double().cpu().numpy()
        return scores


@contextmanager
def plain(model: LanguageModel, implementation: str) -> Iterator[None]:
    """Inside, the network attends as transformers lets it."""
    model.attend_with(implementation)
    try:
        yield
    finally:
        model.attend_with(attention_control.IMPLEMENTATION)


def build_model(shape: Shape, device: str, context: int) -> LanguageModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.wide,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.shared_heads,
        max_position_embeddings=context,
        attn_implementation=attention_control.IMPLEMENTATION,
    )
    with torch.device(device):
        network = LlamaForCausalLM._from_config(config, dtype=shape.dtype)
    network = network.to(device).eval().requires_grad_(requires_grad=False)
    return LanguageModel(network, Tokenizer(models.BPE()), "", context, (), None)


def build_task(model: LanguageModel, prompt: int, chunks: int, target: int, *, target_chunks: bool = False) -> Task:
    """`chunks` equal pieces of a random prompt; with `target_chunks` each target token that is read is one, too."""
    ids = np.random.default_rng(0).integers(0, model.vocabulary_size, prompt + target).tolist()
    sequence = TokenSequence((), tuple(ids[:prompt]), tuple(ids[prompt:]), (), ())
    edges = np.linspace(0, prompt, chunks + 1).astype(int).tolist()
    if target_chunks:
        edges += range(prompt + 1, sequence.positions + 1)
    columns = np.arange(sequence.positions)
    variants = [np.where((columns >= a) & (columns < b), FACTOR, 1.0) for a, b in pairwise(edges)]
    return Task(model, sequence, np.ones(sequence.positions), variants)
