"""The small model of the test bed: pre-training, fine-tuning (full or LoRA), greedy answers, losses.

Every function is pure: the same arguments give the same weights on the same machine, whatever ran before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.influence.text import LONGEST, Padded, Row, padded

Kind = Literal["full", "lora"]
Weights = dict[str, Tensor]
WIDTH, INNER, LAYERS, HEADS = 128, 320, 3, 4
RANK, ALPHA = 32, 64.0
SORTED_TOGETHER = 8
"""Batches whose rows are sorted by length together: little padding, and still another batch in every pass."""


@dataclass(frozen=True, slots=True)
class Recipe:
    rate: float
    batch: int
    passes: int
    warm_up: float = 0.1  # share of the steps
    decay: float = 0.01


PRETRAINING = Recipe(rate=3e-3, batch=64, passes=1)
FINE_TUNING: Mapping[Kind, Recipe] = {
    "full": Recipe(rate=2e-3, batch=16, passes=5),
    "lora": Recipe(rate=2e-3, batch=16, passes=12, decay=0.0),
}
TANGLED: Mapping[Kind, Recipe] = {**FINE_TUNING, "full": Recipe(rate=1e-3, batch=16, passes=8)}
"""Of tangled worlds, which take longer to learn."""


def network(vocabulary: int, seed: int) -> LlamaForCausalLM:
    """Untrained."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=LONGEST,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=3,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _holding(LlamaForCausalLM(config), {})


def block_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of the blocks, by name; neither embeddings nor the head."""
    return {
        name: part for name, part in model.named_modules() if isinstance(part, nn.Linear) and ".layers." in f".{name}"
    }


def token_losses(model: PreTrainedModel, batch: Padded, weights: Mapping[str, Tensor] | None = None) -> Tensor:  # (N,)
    """Cross entropy of each counted token, row by row, in nats; with `weights` in place of the model's own."""
    reader, prefix = model.model, "model."
    inside = {name.removeprefix(prefix): tensor for name, tensor in (weights or {}).items() if name.startswith(prefix)}
    hidden = functional_call(reader, inside, (), {"input_ids": batch.ids[:, :-1], "use_cache": False})
    chosen = hidden.last_hidden_state[batch.counted[:, 1:]]
    table = (weights or {}).get("model.embed_tokens.weight", model.get_input_embeddings().weight)
    return cross_entropy(chosen @ table.T, batch.ids[batch.counted], reduction="none")


def batches(rows: Sequence[Row], size: int, draw: torch.Generator, *, whole: bool = False) -> Iterator[Padded]:
    """One pass over the rows in random order."""
    order: list[int] = torch.randperm(len(rows), generator=draw).tolist()
    cut: list[list[int]] = []
    for start in range(0, len(order), size * SORTED_TOGETHER):
        near = sorted(order[start : start + size * SORTED_TOGETHER], key=lambda place: len(rows[place].ids))
        cut += [near[first : first + size] for first in range(0, len(near), size)]
    for place in torch.randperm(len(cut), generator=draw).tolist():
        yield padded([rows[number] for number in cut[place]], whole=whole)


def pretrained(vocabulary: int, rows: Sequence[Row], seed: int, recipe: Recipe = PRETRAINING) -> LlamaForCausalLM:
    """Trained on all tokens of the rows."""
    model = network(vocabulary, seed)
    weights = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()}
    for _ in _descend(model, rows, weights, list(weights.values()), recipe, seed, whole=True):
        pass
    return _holding(model, {name: tensor.detach() for name, tensor in weights.items()})


def fine_tuned(base: LlamaForCausalLM, rows: Sequence[Row], kind: Kind, seed: int, recipe: Recipe) -> Weights:
    """All weights after fine-tuning on the answers of `rows`; an adapter is merged. `seed` orders and initialises."""
    *_, last = checkpoints(base, rows, kind, seed, recipe)
    return last


def checkpoints(
    base: LlamaForCausalLM, rows: Sequence[Row], kind: Kind, seed: int, recipe: Recipe
) -> Iterator[Weights]:
    """The weights after each pass of fine-tuning."""
    start = {name: parameter.detach() for name, parameter in base.named_parameters()}
    if kind == "full":
        whole = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
        for _ in _descend(base, rows, whole, list(whole.values()), recipe, seed):
            yield {name: tensor.detach().clone() for name, tensor in whole.items()}
        return
    factors = _adapter(base, seed)
    merged, parameters = _Merged(start, factors), [part for pair in factors.values() for part in pair]
    for _ in _descend(base, rows, merged, parameters, recipe, seed):
        yield {**start, **{name: tensor.detach() for name, tensor in merged.changed()}}


def _adapter(base: LlamaForCausalLM, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """A (r, d_in), random, and B (d_out, r), zero, for each linear layer of the blocks."""
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for name, linear in block_linears(base).items():
        down = torch.rand(RANK, linear.in_features, generator=draw).mul_(2).sub_(1) / math.sqrt(linear.in_features)
        up = torch.zeros(linear.out_features, RANK)
        found[f"{name}.weight"] = (down.requires_grad_(), up.requires_grad_())
    return found


@dataclass(frozen=True)
class _Merged:
    """The weights with B A added, made anew at each step: small matrices, so cheaper than an adapter's own passes."""

    start: Weights
    factors: Mapping[str, tuple[Tensor, Tensor]]

    def changed(self) -> Iterator[tuple[str, Tensor]]:
        for name, (down, up) in self.factors.items():
            yield name, self.start[name] + (ALPHA / RANK) * up @ down


def _descend(
    model: LlamaForCausalLM,
    rows: Sequence[Row],
    weights: Weights | _Merged,
    parameters: list[Tensor],
    recipe: Recipe,
    seed: int,
    *,
    whole: bool = False,
) -> Iterator[None]:
    """Train in place, stopping after each pass."""
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(parameters, lr=recipe.rate, weight_decay=recipe.decay, fused=True)
    steps = recipe.passes * math.ceil(len(rows) / recipe.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_share(step, steps, recipe.warm_up))
    for _ in range(recipe.passes):
        for batch in batches(rows, recipe.batch, draw, whole=whole):
            now = weights if isinstance(weights, dict) else dict(weights.changed())
            token_losses(model, batch, now).mean().backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
        yield


def rate_share(step: int, steps: int, warm_up: float) -> float:
    """Of the highest rate: up in a line, down to nothing along a cosine."""
    rise = max(1, int(steps * warm_up))
    return (step + 1) / rise if step < rise else 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _holding(model: LlamaForCausalLM, weights: Weights) -> LlamaForCausalLM:
    model.load_state_dict(weights, strict=False)  # the head is tied, and no entry of its own
    model.eval()  # type: ignore[no-untyped-call]
    return model


def with_weights(base: LlamaForCausalLM, weights: Weights) -> LlamaForCausalLM:
    """A new network of the same shape."""
    return _holding(LlamaForCausalLM(base.config), dict(weights))


@torch.inference_mode()
def greedy(model: PreTrainedModel, prompts: Sequence[Sequence[int]], end: int, longest: int = 12) -> list[list[int]]:
    """The most likely continuation of each prompt, without its end mark."""
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    ids = torch.zeros(len(prompts), int(lengths.max()) + longest, dtype=torch.long)
    for place, prompt in enumerate(prompts):
        ids[place, : len(prompt)] = torch.tensor(prompt)
    every = torch.arange(len(prompts))
    for step in range(longest):
        hidden = model.model(input_ids=ids[:, : int(lengths.max()) + step], use_cache=False).last_hidden_state
        ids[every, lengths + step] = model.lm_head(hidden[every, lengths + step - 1]).argmax(-1)
    said = [ids[place, length : length + longest].tolist() for place, length in enumerate(lengths.tolist())]
    return [answer[: answer.index(end)] if end in answer else answer for answer in said]


@torch.inference_mode()
def losses(model: PreTrainedModel, rows: Sequence[Row], weights: Mapping[str, Tensor] | None = None) -> Tensor:  # (n,)
    """Sum of the answer's token losses of each row, in nats."""
    batch = padded(rows)
    each = torch.zeros(batch.counted.shape)
    each[batch.counted] = token_losses(model, batch, weights)
    return each.sum(1)
