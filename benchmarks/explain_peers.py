"""Captum's feature ablation over the same chunks: another quantity (a chunk is replaced), the same question.

`pip install captum` makes it part of the benchmark. Inseq's occlusion is left out: it makes one forward pass per prompt
token and target token, too long to wait for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.explain_tasks import Task, plain

INSTALLED = find_spec("captum") is not None


def ways(task: Task) -> dict[str, Callable[[], object]]:
    """Captum's single-pass mode (the one that is right on transformers 5), and its defaults."""
    return {
        "captum, single pass": lambda: _ablate(task, forward_in_tokens=False),
        "captum, defaults": lambda: _ablate(task, forward_in_tokens=True),
    }


def _ablate(task: Task, *, forward_in_tokens: bool) -> object:
    from captum.attr import FeatureAblation, LLMAttribution, TextTemplateInput  # noqa: PLC0415

    tokenizer = _tokenizer(task.model.vocabulary_size)
    starts = [int(np.argmax(variant != task.base)) for variant in task.variants]
    pieces = [task.sequence.prompt[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
    values = [" ".join(f"t{token}" for token in piece) for piece in pieces]
    network: Any = task.model.network
    with plain(task.model, "sdpa"), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        attribution = LLMAttribution(FeatureAblation(network), tokenizer)
        chunks = TextTemplateInput(" ".join(["{}"] * len(values)), values, baselines=["t0"] * len(values))
        target = torch.tensor(task.sequence.target)
        return attribution.attribute(chunks, target=target, forward_in_tokens=forward_in_tokens)


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A word t17 for the token 17."""
    words = Tokenizer(models.WordLevel({f"t{token}": token for token in range(vocabulary)}))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words)
