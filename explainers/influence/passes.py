"""Plain forward passes over batches of examples, which score the answers' tokens and nothing else.

Prompt tokens have no loss, and their logits are most of what a pass would make. A hook hands the output layer only the
rows that predict an answer's token; whatever the architecture does with logits afterwards (scales, soft caps) it does
itself, to these. Inside a pass the model attends as transformers does by itself, with its own masks and right padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from explainers.continuation import turning_point
from explainers.errors import MissingCapability, OutOfMemory
from explainers.influence.blocks import blocks_of
from explainers.influence.examples import Example
from explainers.language_model import LanguageModel
from explainers.memory import told_alike
from explainers.types import Checkpoint, never_stop
from explainers.undivided import undivided

TOKEN_BUDGET = 8192
"""Positions of one pass, padding included, unless the caller says otherwise."""
LOGITS = 2**28
"""Numbers that the output layer may make in one pass over several examples: 1 GiB in 32 bits."""
BLOCK = 256
"""Rows of logits that are normalised at once."""


@dataclass(frozen=True, slots=True)
class Batch:
    """B examples side by side, padded at the right to S positions; their answers have N tokens together."""

    ids: Tensor  # (B, S); padding repeats an example's last id
    mask: Tensor  # (B, S), 1 where an example has a token
    rows: Tensor  # (N,), into (B * S): the position before each answer token, example by example
    targets: Tensor  # (N,), the answer tokens' ids
    asked: Tensor  # (B,), into (B * S): where each question ends
    counts: tuple[int, ...]  # B numbers of answer tokens; N in all


@dataclass(frozen=True, slots=True)
class Answers:
    """What a pass says of a batch. Has a graph where the caller records one."""

    logits: Tensor  # (N, V)
    questions: Tensor  # (B, d): what leaves the middle layer where each question ends
    replies: Tensor  # (B, d): what the output layer reads to predict an answer's tokens, their mean


def batches(model: LanguageModel, examples: Sequence[Example], token_budget: int) -> Iterator[list[int]]:
    """Indices of examples to be read together, shortest first: at most `token_budget` positions, one example at least.

    Where a model places the tokens of long sequences in another way, no batch has examples of both kinds.
    """
    turn, batch, scored = turning_point(model) or 0, list[int](), 0
    for index in sorted(range(len(examples)), key=lambda index: len(examples[index].ids)):
        length, answer = len(examples[index].ids), len(examples[index].answer)
        turns = bool(batch) and len(examples[batch[-1]].ids) <= turn < length
        fits = (len(batch) + 1) * length <= token_budget and (scored + answer) * model.vocabulary_size <= LOGITS
        if batch and (turns or not fits):
            yield batch
            batch, scored = [], 0
        batch.append(index)
        scored += answer
    if batch:
        yield batch


def batch_of(model: LanguageModel, examples: Sequence[Example]) -> Batch:
    """These examples on the model's device."""
    width = max(len(example.ids) for example in examples)
    ids = [[*example.ids, *example.ids[-1:] * (width - len(example.ids))] for example in examples]
    mask = [[1] * len(example.ids) + [0] * (width - len(example.ids)) for example in examples]
    rows = [place * width + at - 1 for place, example in enumerate(examples) for at in example.answer]
    asked = [place * width + example.asked for place, example in enumerate(examples)]
    targets = [target for example in examples for target in example.targets]
    return Batch(
        ids=torch.tensor(ids, device=model.device),
        mask=torch.tensor(mask, device=model.device),
        rows=torch.tensor(rows, device=model.device),
        targets=torch.tensor(targets, device=model.device),
        asked=torch.tensor(asked, device=model.device),
        counts=tuple(len(example.answer) for example in examples),
    )


@contextmanager
def plain_attention(model: LanguageModel) -> Iterator[None]:
    """Inside, `model` attends as its architecture does by itself, in batches; no attention is under control."""
    before = str(model.network.config.get_text_config()._attn_implementation)
    model.attend_with("sdpa" if model.network._supports_sdpa else "eager")
    try:
        with undivided():
            yield
    finally:
        model.attend_with(before)


def answer_pass(model: LanguageModel, batch: Batch, embeddings: Tensor | None = None) -> Answers:
    """One pass over a batch inside `plain_attention`, with `embeddings` (B, S, d) in place of its ids where given.

    Raises MissingCapability for an architecture that makes its logits in another way than by one output layer.
    """
    network: Any = model.network  # transformers' own method has no types
    head = network.get_output_embeddings()
    if not isinstance(head, nn.Module):
        raise MissingCapability(f"{model.architecture} has no output layer whose rows could be chosen")
    read: dict[str, Tensor] = {"input_ids": batch.ids} if embeddings is None else {"inputs_embeds": embeddings}
    middle = blocks_of(network)[1][middle_layer(model) - 1]
    with told_alike(), _scoring(head, batch) as rows, _leaving(middle, batch) as questions:
        output = network(**read, attention_mask=batch.mask, use_cache=False)
    model.passes.ran(batch.ids.numel())
    logits: Tensor = output.logits
    if len(rows) != 1 or len(questions) != 1 or logits.shape[:2] != (1, len(batch.rows)):
        raise MissingCapability(f"{model.architecture} does not make its logits by one output layer")
    return Answers(logits[0], questions[0].float(), _means(rows[0], batch.counts))


def middle_layer(model: LanguageModel) -> int:
    """How many layers have read what `Answers.questions` are."""
    return (model.layers + 1) // 2


def _means(rows: Tensor, counts: Sequence[int]) -> Tensor:  # (N, d) -> (B, d)
    return torch.stack([part.float().mean(dim=0) for part in torch.split(rows, list(counts))])


@contextmanager
def _scoring(head: nn.Module, batch: Batch) -> Iterator[list[Tensor]]:
    """Inside, the output layer gets the batch's rows only, as (1, N, d); yields these."""

    def select(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        rows.append(inputs[0].flatten(0, 1)[batch.rows])
        return (rows[-1].unsqueeze(0), *inputs[1:])

    rows: list[Tensor] = []  # (N, d) each
    hook = head.register_forward_pre_hook(select)
    try:
        with undivided():
            yield rows
    finally:
        hook.remove()


@contextmanager
def _leaving(block: nn.Module, batch: Batch) -> Iterator[list[Tensor]]:
    """Inside, yields what leaves a block where questions end, (B, d)."""

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        states: Tensor = output[0] if isinstance(output, tuple) else output
        found.append(states.reshape(-1, states.shape[-1])[batch.asked])

    found: list[Tensor] = []
    hook = block.register_forward_hook(keep)
    try:
        with undivided():
            yield found
    finally:
        hook.remove()


def chosen_log_probs(logits: Tensor, targets: Tensor) -> Tensor:  # (N, V), (N,) -> (N,)
    """The log-probability of each row's target in nats, in 32 bits."""
    blocks = zip(torch.split(logits, BLOCK), torch.split(targets, BLOCK), strict=True)
    return torch.cat([_log_probs(block.float(), chosen) for block, chosen in blocks])


def _log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.gather(1, targets.unsqueeze(1)).squeeze(1) - logits.logsumexp(dim=1)


def token_log_probs(
    model: LanguageModel,
    examples: Sequence[Example],
    token_budget: int = TOKEN_BUDGET,
    checkpoint: Checkpoint = never_stop,
) -> list[NDArray[np.float64]]:  # of each example (T,)
    """The log-probability of each answer token in nats, from batched passes without a graph.

    Raises OutOfMemory where a single example does not fit, MissingCapability, and what `checkpoint` raises (it is
    called before each pass). The model is left as it was.
    """
    found: dict[int, NDArray[np.float64]] = {}
    for indices in batches(model, examples, token_budget):
        scores = _fitting(model, [examples[index] for index in indices], checkpoint)
        found |= dict(zip(indices, scores, strict=True))
    return [found[index] for index in range(len(examples))]


def _fitting(model: LanguageModel, examples: list[Example], checkpoint: Checkpoint) -> list[NDArray[np.float64]]:
    """The scores of one batch, or of its halves where it does not fit into memory."""
    checkpoint()
    try:
        with torch.inference_mode(), plain_attention(model):
            batch = batch_of(model, examples)
            scores = chosen_log_probs(answer_pass(model, batch).logits, batch.targets).double().cpu().numpy()
        return np.split(scores, np.cumsum(batch.counts)[:-1])
    except torch.OutOfMemoryError as error:
        if len(examples) == 1:
            reason = f"an example of {len(examples[0].ids)} tokens does not fit into the memory of the device"
            raise OutOfMemory(reason) from error
    model.passes.halvings += 1
    half = len(examples) // 2
    return _fitting(model, examples[:half], checkpoint) + _fitting(model, examples[half:], checkpoint)
