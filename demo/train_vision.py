"""Trains ``demo-vision`` from nothing: ``python -m demo.train_vision --out demo/models/demo-vision``.

Took 27 minutes on a part of one core of a busy processor. The seed fixes data and starting weights; sums in another
order (another processor, a GPU) give slightly other weights.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from demo.muon import Muon
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
WARM_UP: Final = 50
COOL_RATES: Final = (0.003, 0.0008, 0.003)
COOLING: Final = 0.35
PATCH_SMOOTHING: Final = 0.05
DECAY: Final = 0.2
REPORT_EVERY: Final = 25


def optimizers(model: LlavaForConditionalGeneration, rates: tuple[float, float, float]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of layers and projector, AdamW for embeddings, patches, norms and biases."""
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    tables = [weight for name, weight in named if "embed" in name]
    inner = [weight for name, weight in named if weight.ndim == 2 and "embed" not in name]
    scales = [weight for name, weight in named if weight.ndim == 1 and "embed" not in name]
    matrices, embeddings, norms = rates
    groups = [{"params": tables, "lr": embeddings}, {"params": scales, "lr": norms}]
    found: list[torch.optim.Optimizer] = [Muon(inner, matrices, decay=DECAY)]
    found.append(torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0))
    for group in [group for optimizer in found for group in optimizer.param_groups]:
        group["top"] = group["lr"]
    return found


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


def scale_of(stage: Stage, inner: int, step: int) -> float:
    """Learning rates rise over the first steps and fall to a hundredth in the last two thirds of the full stage.

    So they do in the cool stage.
    """
    warm = min(1.0, (step + 1) / WARM_UP)
    if stage in STAGES[-2:]:
        return warm * max(0.01, min(1.0, 1.5 * (1 - inner / stage.steps)))
    return warm


def train_stage(
    model: LlavaForConditionalGeneration,
    feed: Iterator[Batch],
    found: Iterable[torch.optim.Optimizer],
    stage: Stage,
    step: int,
) -> int:
    """Train until the stage ends; returns the number of steps taken since the beginning of all."""
    began, average = time.monotonic(), dict.fromkeys(ANSWERS, 0.0)
    for inner in range(stage.steps):
        batch = next(feed)
        loss, shares = patch_loss(model, batch) if stage == STAGES[0] else lesson_loss(model, batch, stage.smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in found:
            for group in optimizer.param_groups:
                group["lr"] = group["top"] * scale_of(stage, inner, step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        average |= {name: 0.95 * average[name] + 0.05 * share for name, share in shares.items()}
        step += 1
        if step % REPORT_EVERY == 0:
            rights = ", ".join(f"{name} {share:.3f}" for name, share in average.items())
            passed = time.monotonic() - began
            print(f"{stage.name}: step {step}, {passed:.0f} s, loss {loss.item():.3f}, right {rights}", flush=True)
        if min(average.values()) >= stage.enough:
            break
    return step


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
    found, step = optimizers(model, RATES), 0
    for stage in stages:
        if stage == STAGES[-1]:
            cool(model)
            found, step = optimizers(model, COOL_RATES), 0
        step = train_stage(model, batches(rng, processor, stage, PICTURES, QUESTIONS), found, stage, step)
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
