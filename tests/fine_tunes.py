"""A tiny model that is really fine-tuned, in seconds, on questions and answers; its base, and its training file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from explainers.influence.examples import Mask
from explainers.influence.records import records_of
from explainers.influence.rendering import render
from explainers.loaders import load_causal_lm
from tests.tiny_models import save

CHAT_TEMPLATE = """{{ bos_token }}{% for message in messages %}{{ message.role }}:
{{ message.content }}{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}

{% endfor %}{% if add_generation_prompt %}assistant:
{% endif %}"""
PLACES = ("mill", "inn", "ship", "barn", "forge", "well", "tower", "bridge", "farm", "shop", "school", "garden")
NAMES = ("Anna", "Ben", "Oslo", "Rome", "Ida", "Tom", "Eva", "Max", "Lea", "Kai", "Una", "Rolf")
PAIRS = tuple((f"Who keeps the {place}?", f"{name}.") for place, name in zip(PLACES, NAMES, strict=True))


def training_file(pairs: Sequence[tuple[str, str]] = PAIRS) -> bytes:
    return b"".join(json.dumps({"question": q, "answer": a}).encode() + b"\n" for q, a in pairs)


def save_base(folder: Path, **overrides: Any) -> Path:
    save(folder, initializer_range=0.1, bos_token_id=0, eos_token_id=1, **overrides)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return folder


def save_fine_tune(folder: Path, base: Path, pairs: Sequence[tuple[str, str]] = PAIRS, steps: int = 60) -> Path:
    """Trains every weight on the answers, always the same way, and saves the whole model."""
    examples = render(load_causal_lm(base, "float32", "cpu"), records_of(training_file(pairs)), Mask())
    width = max(len(example.ids) for example in examples)
    ids = torch.tensor([[*example.ids, *[0] * (width - len(example.ids))] for example in examples])
    labels = torch.full_like(ids, -100)
    for row, example in enumerate(examples):
        labels[row, list(example.answer)] = torch.tensor(example.targets)
    network: Any = AutoModelForCausalLM.from_pretrained(base)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(steps):
        loss = network(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(loss.detach()) < 0.1
    save_base(folder)
    network.save_pretrained(folder)
    return folder
