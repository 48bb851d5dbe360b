"""The rules from controls to one factor per column, spelled out column by column.

It shares no code with the package but the tokenizer and the embeddings, and knows nothing of trimmed offsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from explainers.language_model import LanguageModel
from explainers.types import Control, Prompt, Span, Text, TokenIds


@dataclass
class Column:
    token: int
    item: int | None = None  # None: start token; one past the last item: target
    index: int = 0
    characters: frozenset[int] = frozenset()


Placed = tuple[int, Control]
"""A control and the item it belongs to. A place that is a number means that very token, also in text and target."""


def columns_of(model: LanguageModel, prompt: Prompt, target: str) -> list[Column]:
    found = [Column(token) for token in model.start]
    for item, part in enumerate(prompt):
        if isinstance(part, TokenIds):
            found += [Column(token, item, index) for index, token in enumerate(part.ids)]
        elif isinstance(part, Text):
            encoding = model.tokenizer.encode(part.data, add_special_tokens=False)
            for index, (token, (start, stop)) in enumerate(zip(encoding.ids, encoding.offsets, strict=True)):
                blanks = len(part.data[start:stop]) - len(part.data[start:stop].lstrip())
                first = start + blanks if start + blanks < stop else start
                found.append(Column(token, item, index, frozenset(range(first, stop))))
    ids = model.tokenizer.encode(target, add_special_tokens=False).ids
    return found + [Column(token, len(prompt), index) for index, token in enumerate(ids[:-1])]


def weighed_factor(column: Column, item: int, control: Control, overlap: str) -> float | None:
    """What one control makes of one column; None where it does not touch it."""
    if column.item != item:
        return None
    if isinstance(control.place, int):
        return control.factor if column.index == control.place else None
    assert isinstance(control.place, Span)
    inside = sum(control.place.start <= character < control.place.stop for character in column.characters)
    if not inside:
        return None
    share = inside / len(column.characters)
    return control.factor if overlap == "complete" else 1 + (control.factor - 1) * share


def factors(
    model: LanguageModel,
    prompt: Prompt,
    target: str,
    extra: Sequence[Placed] = (),
    *,
    overlap: str = "partial",
    threshold: float | None = None,
) -> NDArray[np.float64]:  # (S,)
    """The factor of every column under the prompt's own controls and `extra`."""
    columns = columns_of(model, prompt, target)
    placed = [(item, control) for item, part in enumerate(prompt) for control in part.controls] + list(extra)
    touched = [
        {
            k: factor
            for k, column in enumerate(columns)
            if (factor := weighed_factor(column, item, control, control.overlap or overlap)) is not None
        }
        for item, control in placed
        if control.factor != 1
    ]
    weight = model.network.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    vectors = weight.detach().double().numpy()[[column.token for column in columns]]
    result = []
    for k, vector in enumerate(vectors):
        explicit = [control[k] for control in touched if k in control]
        derived = []
        for control in touched if threshold is not None and k >= len(model.start) else []:
            for i, factor in control.items():
                cosine = float(vectors[i] @ vector / np.linalg.norm(vectors[i]) / np.linalg.norm(vector))
                if cosine >= (threshold or 0.0) - 1e-9:
                    derived.append(1 - (1 - factor) * max(cosine, 0.0))
        result.append(float(np.prod(explicit)) if explicit else farthest(derived))
    return np.array(result)


def farthest(derived: Sequence[float]) -> float:
    """Of equally far ones the smaller."""
    most = max((abs(factor - 1) for factor in derived), default=0.0)
    return min((factor for factor in derived if abs(factor - 1) >= most - 1e-12), default=1.0)
