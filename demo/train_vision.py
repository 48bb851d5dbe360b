"""Trains ``demo-vision`` from nothing: ``python -m demo.train_vision --out demo/models/demo-vision``.

Took 27 minutes on a part of one core of a busy processor. The seed fixes data and starting weights; sums in another
order (another processor, a GPU) give slightly other weights.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from demo.training import optimizers, train_stage
from demo.vision_lessons import Batch, Stage, batches
from demo.vision_model import build_processor, build_tokenizer, keep_local, save, start_model

STAGES: Final = (
    Stage("patches", fewest_shapes=6, most_shapes=20, steps=300, enough=2.0),
    Stage("words", fewest_shapes=2, most_shapes=6, steps=400, enough=0.88, bare=1.0),
    Stage("few", fewest_shapes=2, most_shapes=6, steps=400, enough=0.9, bare=0.3),
    Stage("full", fewest_shapes=1, most_shapes=9, steps=1400, enough=2.0, bare=0.05),
    Stage("cool", fewest_shapes=1, most_shapes=9, steps=300, enough=2.0, bare=0.05, smoothing=0.0),
)
ANSWERS: Final = {"kind": 1, "colour": 2}
PICTURES: Final = 8
QUESTIONS: Final = 8
RATES: Final = (0.007, 0.002, 0.007)
PATCH_SCALE: Final = 5.0
COOL_RATES: Final = (0.003, 0.0008, 0.003)
COOLING: Final = 0.35
PATCH_SMOOTHING: Final = 0.05


def optimizers_of(
    model: LlavaForConditionalGeneration, rates: tuple[float, float, float]
) -> list[torch.optim.Optimizer]:
    """For the matrices of layers and projector, for embeddings and patches, and for norms and biases."""
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    tables = [weight for name, weight in named if "embed" in name]
    inner = [weight for name, weight in named if weight.ndim == 2 and "embed" not in name]
    scales = [weight for name, weight in named if weight.ndim == 1 and "embed" not in name]
    return optimizers(inner, tables, scales, rates)


def patch_loss(model: LlavaForConditionalGeneration, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """How badly picture tokens match the embeddings of the words for what is shown in their cell."""
    tokens = torch.stack(model.get_image_features(batch.pixels).pooler_output)
    table = model.model.language_model.embed_tokens.weight.detach()
    loss, shares = torch.zeros(()), {}
    for side, words in enumerate((batch.kinds, batch.colours)):
        logits = functional.pad(PATCH_SCALE * tokens @ table[words].T, (1, 0))  # nothing shown: 0
        wanted = batch.shown[..., side]
        loss = loss + functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), label_smoothing=PATCH_SMOOTHING)
        right = (logits.argmax(-1) == wanted)[wanted > 0]
        shares[("kind", "colour")[side]] = right.float().mean().item()
    return loss, shares


def lesson_loss(
    model: LlavaForConditionalGeneration, batch: Batch, smoothing: float
) -> tuple[Tensor, dict[str, float]]:
    """Loss of the answers and of the end after them; the share of right answer tokens by what was asked."""
    hidden = model.model(
        input_ids=batch.ids,
        pixel_values=batch.pixels,
        attention_mask=batch.mask,
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state[:, :-1]
    labels, answers = batch.ids[:, 1:], batch.answers[:, 1:]
    chosen = answers > 0
    logits, wanted, styles = model.lm_head(hidden[chosen]), labels[chosen], answers[chosen]
    loss = functional.cross_entropy(logits, wanted, label_smoothing=smoothing)
    right = (logits.argmax(-1) == wanted).float()
    shares = {name: right[styles == number].mean().item() for name, number in ANSWERS.items() if number in styles}
    return loss, shares


def lesson(
    model: LlavaForConditionalGeneration, feed: Iterator[Batch], stage: Stage
) -> tuple[Tensor, dict[str, float]]:
    """The next one of the stage: the first stage is about patches alone."""
    batch = next(feed)
    return patch_loss(model, batch) if stage == STAGES[0] else lesson_loss(model, batch, stage.smoothing)


@torch.no_grad()
def cool(model: LlavaForConditionalGeneration) -> None:
    """Make looking for the shape that is asked for (the first layer) flatter, and hold it so.

    Attention grown sharp in training hardly notices when a tile gets a tenth of its weight. With flatter attention,
    weaker evidence makes a weaker answer.
    """
    first = model.model.language_model.layers[0]
    first.self_attn.q_proj.weight.mul_(COOLING)
    for held in (first.self_attn.q_proj, first.self_attn.k_proj, first.input_layernorm):
        held.requires_grad_(False)


def train(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, stages: tuple[Stage, ...], seed: int, folder: Path
) -> None:
    """Train through the stages with one stream of lessons, cooling the model before the last; saves after each."""
    rng = random.Random(f"lessons {seed}")  # noqa: S311
    found, step = optimizers_of(model, RATES), 0
    for stage in stages:
        if stage == STAGES[-1]:
            cool(model)
            found, step = optimizers_of(model, COOL_RATES), 0
        feed = batches(rng, processor, stage, PICTURES, QUESTIONS)
        step = train_stage(
            stage, partial(lesson, model, feed, stage), ANSWERS, found, step, falling=stage in STAGES[-2:]
        )
        save(model, processor, folder)


def main() -> None:
    """Build tokenizer and processor, train through the stages, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", type=Path, help="a model saved after the stage before --stage")
    parser.add_argument("--stage", choices=[stage.name for stage in STAGES], default=STAGES[0].name)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    tokenizer = build_tokenizer()
    processor = build_processor(tokenizer)
    model = start_model(tokenizer)
    if arguments.resume:
        model = LlavaForConditionalGeneration.from_pretrained(arguments.resume)
        keep_local(model)
    model.train()
    print(f"{sum(weight.numel() for weight in model.parameters())} parameters", flush=True)
    first = [stage.name for stage in STAGES].index(arguments.stage)
    train(model, processor, STAGES[first:], arguments.seed, arguments.out)


if __name__ == "__main__":
    main()
