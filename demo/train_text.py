"""Trains ``demo-text`` from nothing: ``python -m demo.train_text --out demo/models/demo-text``.

The seed fixes data and starting weights; another processor gives slightly other weights. ``python -m demo.text_data``
then writes what goes with the model.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional
from transformers import BertForSequenceClassification, PreTrainedTokenizerFast

from demo.messages import Priority, lesson
from demo.text_model import LENGTH, build_tokenizer, save, start_model

STEPS: Final = 4000
BATCH: Final = 64
RATE: Final = 3e-3
WARM_UP: Final = 100
REPORT_EVERY: Final = 200
SHARES: Final[dict[Priority, tuple[float, float]]] = {
    "urgent": (0.98, 0.02),
    "routine": (0.02, 0.98),
    "neither": (0.5, 0.5),
}
"""What the model is to answer: never quite sure, and undecided without a cue."""


def batch(rng: random.Random, tokenizer: PreTrainedTokenizerFast) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs and wanted shares (n, 2). Texts start anywhere in the context, so that every position is learned."""
    lessons = [lesson(rng) for _ in range(BATCH)]
    encoded = tokenizer([one.text for one in lessons], padding=True, return_tensors="pt")
    length = encoded["input_ids"].shape[1]
    start = rng.choice((0, rng.randrange(LENGTH - length + 1)))
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    inputs["position_ids"] = torch.arange(start, start + length)[None].expand(BATCH, -1)
    return inputs, torch.tensor([SHARES[one.priority] for one in lessons])


def rate_at(step: int) -> float:
    """Up over the first steps, then down to nothing along a cosine."""
    return RATE * min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / STEPS))


def train(model: BertForSequenceClassification, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    rng, began = random.Random(f"lessons {seed}"), time.monotonic()  # noqa: S311
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    average = math.log(2)
    for step in range(STEPS):
        inputs, wanted = batch(rng, tokenizer)
        loss = functional.cross_entropy(model(**inputs).logits, wanted)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = rate_at(step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average += 0.02 * (loss.item() - average)
        if (step + 1) % REPORT_EVERY == 0:
            print(f"step {step + 1}, {time.monotonic() - began:.0f} s, loss {average:.4f}", flush=True)


def main() -> None:
    """Build tokenizer and network, train, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    tokenizer = build_tokenizer()
    model = start_model(tokenizer).train()
    print(f"{sum(weight.numel() for weight in model.parameters())} parameters", flush=True)
    train(model, tokenizer, arguments.seed)
    save(model, build_tokenizer(), arguments.out)  # a new one: batches have left their padding in the other


if __name__ == "__main__":
    main()
