"""Two libraries that put something else in a part's place: another quantity than suppression, the same question.

`pip install captum` or `pip install inseq` makes a library part of the benchmark; each gets a smaller question than the
engine's own. Inseq can only ask token by token, and its scores cover the target tokens that were read, so the engine
answers for those chunks, too. Both libraries attend through PyTorch's fused attention, which is to their advantage.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.explain_tasks import Task, build_task, plain
from explainers.language_model import LanguageModel

Ways = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Peer:
    """A library, and a question that it answers within a minute."""

    library: str
    question: str
    task: Callable[[LanguageModel], Task]
    ways: Callable[[Task], Ways]

    @property
    def installed(self) -> bool:
        return find_spec(self.library) is not None


def _captum(task: Task) -> Ways:
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
    values = [_text(piece) for piece in pieces]
    network: Any = task.model.network
    with plain(task.model, "sdpa"), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        attribution = LLMAttribution(FeatureAblation(network), tokenizer)
        chunks = TextTemplateInput(" ".join(["{}"] * len(values)), values, baselines=["t0"] * len(values))
        target = torch.tensor(task.sequence.target)
        return attribution.attribute(chunks, target=target, forward_in_tokens=forward_in_tokens)


def _inseq(task: Task) -> Ways:
    """Inseq's occlusion: for every target token one pass per token before it, alone (its default) or 32 in a batch."""
    return {
        "inseq, 32 in a batch": lambda: _occlude(task, perturbations_per_eval=32),
        "inseq, defaults": lambda: _occlude(task),
    }


def _occlude(task: Task, **options: int) -> object:
    import inseq  # noqa: PLC0415

    tokenizer = _tokenizer(task.model.vocabulary_size)
    tokenizer.unk_token = tokenizer.pad_token = "t0"  # what stands in for a token
    prompt, target = task.sequence.prompt, task.sequence.target
    with plain(task.model, "sdpa"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = inseq.load_model(task.model.network, "occlusion", tokenizer=tokenizer, device="cpu")
        return model.attribute(_text(prompt), _text(prompt + target), show_progress=False, **options)


def _text(tokens: tuple[int, ...]) -> str:
    return " ".join(f"t{token}" for token in tokens)


def _tokenizer(vocabulary: int) -> Any:
    """A word t17 for the token 17."""
    words = Tokenizer(models.WordLevel({f"t{token}": token for token in range(vocabulary)}))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=words)


PEERS = (
    Peer("captum", "128 tokens, 16 chunks, 8 target tokens", lambda model: build_task(model, 128, 16, 8), _captum),
    Peer(
        "inseq",
        "64 tokens and 4 target tokens, each a chunk",
        lambda model: build_task(model, 64, 64, 4, target_chunks=True),
        _inseq,
    ),
)
