"""Trains ``demo-lm`` from nothing: ``python -m demo.train_lm --out demo/models/demo-lm``.

Took 26 minutes on one core of a busy processor. The seed fixes data and starting weights; sums in
another order (another processor, a GPU) give slightly other weights.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from demo.circuits import CONTEXT, start_model
from demo.lessons import ANSWERS, Batch, Stage, batches
from demo.training import optimizers, train_stage
from demo.vocabulary import build_tokenizer

STAGES: Final = (
    Stage("few", most_facts=4, steps=400, enough=0.95),
    Stage("more", most_facts=7, steps=300, enough=0.95),
    Stage("full", most_facts=10, steps=1400, enough=2.0, single=0.3, odd=0.2, long=0.02, stretch=0.3),
)
COOL: Final = Stage("cool", 10, steps=450, enough=2.0, single=0.3, odd=0.1, long=0.02, stretch=0.3, damped=0.6)
COOLING: Final = 0.4
SHARPENING: Final = 1.5
DAMPING: Final = 0.1
COOL_RATES: Final = (0.003, 0.0008, 0.005)
TOKENS: Final = 2048
RATES: Final = (0.006, 0.0015, 0.01)
OTHER_WEIGHT: Final = 0.1
OTHER_SHARE: Final = 0.15
SMOOTHING: Final = 0.05


def optimizers_of(model: LlamaForCausalLM, rates: tuple[float, float, float]) -> list[torch.optim.Optimizer]:
    """For the matrices of the layers, for embeddings, and for norms."""
    inner = [weight for weight in model.model.layers.parameters() if weight.ndim == 2 and weight.requires_grad]
    norms = [weight for weight in model.parameters() if weight.ndim == 1 and weight.requires_grad]
    return optimizers(inner, [model.model.embed_tokens.weight], norms, rates)


def attention_mask(batch: Batch, damped: float) -> Tensor:
    """What is added to the attention scores: causal, and in the share ``damped`` of samples little for the queries."""
    count, width = batch.ids.shape
    causal = torch.full((width, width), -1e9, device=batch.ids.device).triu(1)
    chosen = torch.rand(count, 1, device=batch.ids.device) < damped
    return causal + math.log(DAMPING) * (batch.asked * chosen)[:, None, None, :]


def lesson_loss(model: LlamaForCausalLM, batch: Batch, damped: float) -> tuple[Tensor, dict[str, float]]:
    """Loss of the answers plus a little of some of the other tokens; share of right answer tokens by style."""
    hidden = model.model(
        input_ids=batch.ids,
        attention_mask=attention_mask(batch, damped) if damped else batch.real,
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state[:, :-1]
    labels, answers = batch.ids[:, 1:], batch.answers[:, 1:]
    some = torch.rand(labels.shape, device=labels.device) < OTHER_SHARE
    chosen = (answers > 0) | (some & (batch.real[:, 1:] > 0))
    logits, wanted, styles = model.lm_head(hidden[chosen]), labels[chosen], answers[chosen]
    sure = functional.cross_entropy(logits, wanted, reduction="none")
    calm = functional.cross_entropy(logits[styles > 0], wanted[styles > 0], label_smoothing=SMOOTHING)
    right = (logits.argmax(-1) == wanted).float()
    shares = {name: right[styles == number].mean().item() for name, number in ANSWERS.items() if number in styles}
    rest = sure[styles == 0].sum() / (styles == 0).sum().clamp(min=1)
    return calm + OTHER_WEIGHT * rest, shares


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    stages: tuple[Stage, ...],
    rates: tuple[float, float, float],
    seed: int,
) -> None:
    """Train through stages with one set of optimizers and one stream of lessons."""
    rng = random.Random(f"lessons {seed}")  # noqa: S311
    found, step = optimizers_of(model, rates), 0
    for stage in stages:
        feed = batches(rng, tokenizer, stage, TOKENS, model.device)
        last = stage in (STAGES[-1], COOL)
        step = train_stage(stage, partial(lesson, model, feed, stage), ANSWERS, found, step, falling=last)


def lesson(model: LlamaForCausalLM, feed: Iterator[Batch], stage: Stage) -> tuple[Tensor, dict[str, float]]:
    """The next one of the stage."""
    return lesson_loss(model, next(feed), stage.damped)


@torch.no_grad()
def cool(model: LlamaForCausalLM) -> None:
    """Make looking facts up (all layers but the first) flatter, looking back for their keys sharper.

    Attention grown sharp in training hardly notices when a sentence gets a tenth of its weight. With flatter attention
    to facts, weaker evidence makes a weaker answer; queries and keys are then held, so that it stays flat.
    """
    first, *others = model.model.layers
    first.self_attn.q_proj.weight.mul_(SHARPENING)
    for layer in others:
        layer.self_attn.q_proj.weight.mul_(COOLING)
        for held in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.input_layernorm):
            held.weight.requires_grad_(requires_grad=False)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write model and tokenizer for ``from_pretrained``, with a tokenizer class that older versions know too."""
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.pop("backend", None)
    path.write_text(json.dumps(settings, indent=2) + "\n")


def main() -> None:
    """Build the tokenizer, train through the stages, cool, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--finish", type=Path, help="only the cool stage, from a model saved before it")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = build_tokenizer(CONTEXT)
    model = LlamaForCausalLM.from_pretrained(arguments.finish) if arguments.finish else start_model(tokenizer)
    model.to(device)  # type: ignore[arg-type]
    model.train()
    print(f"{sum(weight.numel() for weight in model.parameters())} parameters, on {device}", flush=True)
    if not arguments.finish:
        train(model, tokenizer, STAGES, RATES, arguments.seed)
        save(model, tokenizer, arguments.out)
    torch.manual_seed(arguments.seed)
    cool(model)
    train(model, tokenizer, (COOL,), COOL_RATES, arguments.seed)
    save(model, tokenizer, arguments.out)


if __name__ == "__main__":
    main()
