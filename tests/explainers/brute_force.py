"""The slow, obvious way: one full forward pass per chunk, all rows, plain softmax, nothing packed or reused.

It shares no code with the engine but the token ids and factor vectors it is handed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from explainers.attention_control import IMPLEMENTATION
from explainers.language_model import LanguageModel, TokenSequence

NAME = "test_brute_force"


def log_probabilities(
    model: LanguageModel,
    sequence: TokenSequence,
    factors: NDArray[np.float64],
    log_additive: bool = True,
    images: Mapping[str, Tensor] | None = None,
) -> NDArray[np.float64]:  # (T,)
    """Log p of every target token in one pass in which column k carries factors[k]."""
    rows = logits(model, sequence.read, factors, log_additive, images)
    first = len(sequence.start) + len(sequence.prompt) - 1
    return np.array(
        [
            float(rows[first + t].log_softmax(-1)[token])  # row P - 1 + t predicts target token t
            for t, token in enumerate(sequence.target)
        ]
    )


def logits(
    model: LanguageModel,
    ids: Sequence[int],
    factors: NDArray[np.float64],
    log_additive: bool = True,
    images: Mapping[str, Tensor] | None = None,
) -> Tensor:  # (S, V)
    """What every row predicts.

    `images` are the arguments by which the whole network, vision tower included, gets the images of the prompt.
    """
    arguments = {"input_ids": torch.tensor([list(ids)]), **(images or {})}
    with _attention(model, factors, log_additive), torch.no_grad():
        found: Tensor = model.network(**arguments, use_cache=False).logits[0].double()
    return found


@contextmanager
def _attention(model: LanguageModel, factors: NDArray[np.float64], log_additive: bool) -> Iterator[None]:
    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor,
        scaling: float | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        heads, rows, size = query.shape[1:]
        group = heads // key.shape[1]
        k, v = (tensor[0].repeat_interleave(group, dim=0) for tensor in (key, value))  # (H, S, d)
        f = torch.tensor(factors, dtype=query.dtype)  # (S,)
        visible = attention_mask[0, 0].bool()  # (R, S)
        scores = query[0] @ k.mT * (size**-0.5 if scaling is None else scaling)  # (H, R, S)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        if log_additive:
            top = scores.where(visible, -torch.inf).amax(-1, keepdim=True)
            weights = torch.exp(scores - top).where(visible, 0.0) * f
            for row in range(rows):
                if not (f * visible[row]).any():
                    weights[:, row, row] = 1.0
        else:
            low = scores.where(visible, torch.inf).amin(-1, keepdim=True)
            stretched = scores + (f - 1) * (scores - low)
            top = stretched.where(visible, -torch.inf).amax(-1, keepdim=True)
            weights = torch.exp(stretched - top).where(visible, 0.0)
        sink = 0.0 if s_aux is None else torch.exp(s_aux[:, None, None] - top)
        output = (weights / (weights.sum(-1, keepdim=True) + sink)) @ v  # (H, R, d)
        return output.transpose(0, 1)[None], None

    def mask(*args: Any, **kwargs: Any) -> Tensor | None:
        return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, mask)
    network: Any = model.network
    text_only = "vision_config" in network.config.sub_configs  # a vision tower keeps its own attention
    network.set_attn_implementation({"text_config": NAME} if text_only else NAME)
    try:
        yield
    finally:
        network.set_attn_implementation({"text_config": IMPLEMENTATION} if text_only else IMPLEMENTATION)
