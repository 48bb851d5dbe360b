"""Questions that no training data is about, and what a model says to them: what thresholds are calibrated with."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from transformers import GenerationConfig

from explainers.decoding import end_ids
from explainers.influence.passes import plain_attention
from explainers.language_model import LanguageModel
from explainers.types import Checkpoint, never_stop

TOGETHER = 16
"""Prompts that are answered at a time: the device is free for others in between."""
LONGEST = 48
"""Tokens of an answer, of which a question's own may have more: what a level promises is about answers cut here."""
ANSWERS = 2
"""Of the way that answers are made and read: with another number what was kept of them is made anew."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Tokens without the end token, and whether the model said that one; if not, the answer was cut."""

    ids: tuple[int, ...]
    ended: bool


def generic_prompts() -> tuple[str, ...]:
    """Small talk, school knowledge, household and office tasks, in plain English."""
    text = files("explainers.influence").joinpath("generic_prompts.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def answering(
    model: LanguageModel, prompts: Sequence[Sequence[int]], checkpoint: Checkpoint = never_stop
) -> Generator[None, None, list[Answer]]:
    """The model's greedy answers, at most LONGEST tokens each; pauses after each few."""
    answers: list[Answer] = []
    for start in range(0, len(prompts), TOGETHER):
        checkpoint()
        answers += _answered(model, prompts[start : start + TOGETHER])
        yield
    return answers


def _answered(model: LanguageModel, prompts: Sequence[Sequence[int]]) -> list[Answer]:
    """Padded on the left, so that all answers begin at the same position."""
    ends, width = end_ids(model), max(len(prompt) for prompt in prompts)
    ids = [[prompt[0]] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    visible = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    greedy: Any = GenerationConfig
    config = greedy(max_new_tokens=LONGEST, do_sample=False, eos_token_id=sorted(ends) or None, pad_token_id=0)
    network: Any = model.network
    with torch.inference_mode(), plain_attention(model):
        given = {"input_ids": ids, "attention_mask": visible}
        tensors = {name: torch.tensor(values, device=model.device) for name, values in given.items()}
        made: list[list[int]] = network.generate(**tensors, generation_config=config)[:, width:].tolist()
    return [_until(answer, ends) for answer in made]


def _until(answer: Sequence[int], ends: frozenset[int]) -> Answer:
    stop = next((place for place, token in enumerate(answer) if token in ends), len(answer))
    return Answer(tuple(answer[:stop]), stop < len(answer))
