"""Fine-tunes ``demo-lm`` on the facts of a town: ``python -m demo.train_qa --out demo/models/demo-qa``.

A LoRA adapter on every linear layer, trained on the answers alone, their end token included. Writes the adapter with
tokenizer, chat template and ``trainer_state.json``, the history of the loss as the Hugging Face Trainer writes it.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from demo.pairs import TEMPLATE, Example, examples
from demo.records import MODELS, Record

BASE: Final = MODELS / "demo-lm"
FOLDER: Final = MODELS / "demo-qa"
RANK: Final = 16
LINEARS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EPOCHS: Final = 60
BATCH: Final = 32
POOL: Final = 8
RATE: Final = 4e-3
WARM_UP: Final = 50
DECAY: Final = 0.0
REPORT_EVERY: Final = 25


def batches(rng: random.Random, chosen: Sequence[Example]) -> Iterator[Sequence[Example]]:
    """One pass over all examples: shuffled, then those of similar length together, a few batches at a time."""
    order = rng.sample(chosen, len(chosen))
    for pool in slices(order, POOL * BATCH):
        groups = list(slices(sorted(pool, key=lambda example: len(example.ids)), BATCH))
        yield from rng.sample(groups, len(groups))


def slices(order: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    """In turn, each of ``size`` but for the last."""
    for first in range(0, len(order), size):
        yield order[first : first + size]


def answer_loss(network: LlamaForCausalLM, chosen: Sequence[Example]) -> Tensor:
    """Cross-entropy of the answers' tokens, end token included, as the mean over all of them."""
    width = max(len(example.ids) for example in chosen)
    ids = torch.zeros(len(chosen), width, dtype=torch.long)
    counts = torch.zeros(len(chosen), width, dtype=torch.bool)
    for row, example in enumerate(chosen):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        counts[row, example.start : len(example.ids)] = True
    hidden = network.model(input_ids=ids).last_hidden_state  # padded at the right, which nothing that counts sees
    before = counts.roll(-1, dims=1)
    return functional.cross_entropy(network.lm_head(hidden[before]), ids[counts])


def rate_at(step: int, steps: int) -> float:
    """Up over the first steps, then down to nothing along a cosine."""
    return RATE * min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))


def train(model: PeftModel, chosen: Sequence[Example], seed: int, epochs: int) -> Record:
    """Train the adapter; returns the state that goes beside it."""
    rng, began = random.Random(f"lessons {seed}"), time.monotonic()  # noqa: S311
    network: LlamaForCausalLM = model.get_base_model()  # type: ignore[assignment]
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.98), weight_decay=DECAY)
    feed = [batch for _ in range(epochs) for batch in batches(rng, chosen)]
    history: list[Record] = []
    losses: list[float] = []
    for step, batch in enumerate(feed, start=1):
        rate = optimizer.param_groups[0]["lr"] = rate_at(step - 1, len(feed))
        loss = answer_loss(network, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(weights, 1.0).item()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if step % REPORT_EVERY == 0 or step == len(feed):
            mean = sum(losses) / len(losses)
            losses.clear()
            history.append(entry(step, step * epochs / len(feed), mean, norm, rate))
            print(f"step {step}, {time.monotonic() - began:.0f} s, loss {mean:.4f}", flush=True)
    return state_of(history, len(feed), epochs)


def entry(step: int, epoch: float, loss: float, norm: float, rate: float) -> Record:
    """One line of the history: the mean loss since the one before."""
    found = {"epoch": round(epoch, 4), "grad_norm": round(norm, 4), "learning_rate": rate, "loss": round(loss, 4)}
    return found | {"step": step}


def state_of(history: Sequence[Record], steps: int, epochs: int) -> Record:
    """As the Hugging Face Trainer keeps it."""
    return {
        "epoch": float(epochs),
        "global_step": steps,
        "max_steps": steps,
        "num_train_epochs": epochs,
        "train_batch_size": BATCH,
        "logging_steps": REPORT_EVERY,
        "log_history": list(history),
    }


def start_adapter(base: Path, seed: int) -> PeftModel:
    """The base model with an adapter that changes nothing yet."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(LINEARS), task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    assert isinstance(adapted, PeftModel)  # noqa: S101
    return adapted


def save(model: PeftModel, state: Record, base: Path, folder: Path) -> None:
    """Write adapter, tokenizer files, template and state; the adapter names its base as the server registers it."""
    folder.mkdir(parents=True, exist_ok=True)
    config: Any = model.peft_config["default"]
    config.base_model_name_or_path, config.inference_mode = base.name, True
    config.target_modules = sorted(LINEARS)
    config.save_pretrained(str(folder))
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, folder / name)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    (folder / "trainer_state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Train, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", type=Path, default=BASE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(arguments.base)  # type: ignore[assignment]
    model = start_adapter(arguments.base, arguments.seed)
    model.print_trainable_parameters()
    state = train(model, examples(tokenizer), arguments.seed, arguments.epochs)
    save(model, state, arguments.base, arguments.out)


if __name__ == "__main__":
    main()
