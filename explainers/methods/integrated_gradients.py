"""Integrated gradients of a text classifier, over the embeddings of its tokens.

Sundararajan et al., *Axiomatic Attribution for Deep Networks*, 2017, by captum: the gradient of an output is averaged
on the straight line from a text of mask (or padding) tokens to the text. Scores of tokens are summed to the pieces the
caller names; with what lies outside them they add up to the difference of the two outputs, but for the error of the
average, which is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Encoding

from explainers import clock
from explainers.errors import InvalidRequest, MissingCapability
from explainers.predictors.artifact import library
from explainers.sequence_classifier import SequenceClassifier
from explainers.types import Attribution, Checkpoint, Feature, Span, Target, never_stop
from explainers.undivided import undivided

BATCH_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class IntegratedGradientsConfig:
    """`steps` points on the line, at the nodes of Gauss and Legendre."""

    steps: int = 64


def attribute(
    model: SequenceClassifier,
    text: str,
    pieces: Sequence[Span],
    config: IntegratedGradientsConfig | None = None,
    checkpoint: Checkpoint = never_stop,
) -> Attribution:
    """Scores of the pieces of `text` for every output. Raises ContextLengthExceeded, InvalidRequest and its kin."""
    config = config or IntegratedGradientsConfig()
    if config.steps < 2:
        raise InvalidRequest("integrated gradients need at least 2 steps")
    started, encoding = clock.working(), model.encode(text)
    ids, there, types = model.tensors([encoding])
    masked, name = _masked(model, encoding, ids)
    with torch.inference_mode():
        ends = model.outputs_of(torch.cat([ids, masked]), there.repeat(2, 1), types.repeat(2, 1)).cpu().numpy()
    line, others = (ids, masked), (there, types)
    places = range(len(model.outputs))
    by_token = np.stack([_gradients(model, line, others, k, config.steps, checkpoint) for k in places])  # (K, S)
    shares = _shares(encoding, pieces)  # (S, F)
    rest = (by_token * (1 - shares.sum(axis=1))).sum(axis=1)
    missed = by_token.sum(axis=1) - (ends[0] - ends[1])
    facts = {
        "steps": config.steps,
        "baseline": name,
        "completeness_error": float(np.abs(missed).max()),
        "outside_pieces": rest.tolist(),
        "forwards": config.steps * len(model.outputs) + 2,
        "seconds": clock.working() - started,
        "output": model.space,
        "prediction": ends[0].tolist(),
        "warnings": [],
    }
    features = tuple(Feature(text[piece.start : piece.stop], 0, piece) for piece in pieces)
    targets = tuple(Target(output) for output in model.outputs)
    return Attribution("integrated_gradients", features, targets, by_token @ shares, ends[1], None, facts)


def _masked(model: SequenceClassifier, encoding: Encoding, ids: torch.Tensor) -> tuple[torch.Tensor, str]:
    """The text with every token but the special ones replaced, and by what."""
    token = model.pad if model.mask is None else model.mask
    if token is None:
        raise MissingCapability("the model has neither a mask nor a padding token to stand for an empty text")
    special = torch.tensor(encoding.special_tokens_mask, dtype=torch.bool, device=ids.device)[None]
    return torch.where(special, ids, token), "pad" if model.mask is None else "mask"


def _gradients(
    model: SequenceClassifier,
    line: tuple[torch.Tensor, torch.Tensor],
    others: tuple[torch.Tensor, torch.Tensor],
    output: int,
    steps: int,
    checkpoint: Checkpoint,
) -> NDArray[np.float64]:  # (S,)
    def forward(ids: torch.Tensor, there: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        checkpoint()
        return model.outputs_of(ids, there, types)

    engine: Any = library("captum.attr").LayerIntegratedGradients(forward, model.network.get_input_embeddings())
    checkpoint()  # the last at which others may go first: captum has hooks on the model until it is done
    with undivided():
        found = engine.attribute(
            line[0],
            baselines=line[1],
            target=output,
            additional_forward_args=others,
            n_steps=steps,
            internal_batch_size=max(1, BATCH_TOKENS // line[0].shape[1]),
        )
    summed: NDArray[np.float64] = found.detach().double().sum(dim=-1)[0].cpu().numpy()
    return summed


def _shares(encoding: Encoding, pieces: Sequence[Span]) -> NDArray[np.float64]:  # (S, F)
    """How much of each token belongs to each piece, by characters; special tokens belong to none."""
    shares = np.zeros((len(encoding.ids), len(pieces)))
    starts, stops = np.array([[piece.start, piece.stop] for piece in pieces]).reshape(-1, 2).T
    for token, ((start, stop), special) in enumerate(zip(encoding.offsets, encoding.special_tokens_mask, strict=True)):
        if special or stop <= start:
            continue
        common = (np.minimum(stops, stop) - np.maximum(starts, start)).clip(min=0)
        shares[token] = common / max(common.sum(), 1)
    return shares
