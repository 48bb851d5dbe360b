"""The training mask of an index, held against what the trainer wrote down beside the model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.device import Priority
from app.runtime import Runtime
from explainers.influence.examples import Mask
from explainers.influence.mask_check import MaskCheck, check_mask
from explainers.influence.passes import token_log_probs
from explainers.influence.records import Record
from explainers.influence.rendering import render
from explainers.language_model import LanguageModel
from explainers.types import Checkpoint

STATE = "trainer_state.json"
LARGEST = 64 * 2**20


async def mask_facts(
    runtime: Runtime, model: LanguageModel, sample: Sequence[Record], mask: Mask, folder: Path
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the check found, as JSON values, and its warnings; `folder` is the model's."""
    state = await asyncio.to_thread(trainer_state, folder)

    def work(checkpoint: Checkpoint) -> MaskCheck:
        return check_mask(
            mask,
            lambda other: render(model, sample, other),
            lambda examples: token_log_probs(model, examples, checkpoint=checkpoint),
            state,
        )

    found = await runtime.run(work, Priority(nice=True))
    candidates = [{**asdict(each.mask), "mean_loss": each.loss} for each in found.candidates]
    told = {"recorded_loss": found.recorded, "best": asdict(found.best), "candidates": candidates}
    return told, found.warnings


def trainer_state(folder: Path) -> dict[str, Any] | None:
    """None where there is none that can be read."""
    path = folder / STATE
    try:
        if path.stat().st_size > LARGEST:
            return None
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) else None
