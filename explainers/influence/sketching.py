"""What the index keeps of an example: the projected gradient of its answer's loss, and two states of the model.

One state is what leaves the middle layer where the question ends: what is asked, before the model turns to what it is
about to say. The other is the mean of what the output layer reads over the answer: what is said.

The loss of an example is the sum over its answer's tokens of -w log p, each weighted by its gain: by how many nats
fine-tuning made the token more likely, within 0 and MOST_GAIN. What the base model knew already drops out.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from explainers.errors import InconsistentAnswer, MissingCapability, OutOfMemory
from explainers.influence.examples import Example
from explainers.influence.gradients import Projection, Watch, frozen
from explainers.influence.passes import Batch, answer_pass, batch_of, batches, chosen_log_probs, plain_attention
from explainers.language_model import LanguageModel
from explainers.memory import told_alike
from explainers.types import Checkpoint, never_stop

MOST_GAIN = 8.0


@dataclass(frozen=True)
class FineTune:
    """A model and what it was before it was fine-tuned, where that is known."""

    model: LanguageModel
    base: LanguageModel | None = None


@dataclass(frozen=True, slots=True)
class Sketches:
    """Of n examples. `lifts` are sums of gains over the answer (nats), None without a base model."""

    rows: NDArray[np.float32]  # (n, D)
    hidden: NDArray[np.float32]  # (n, 2, d), of the question and of the answer
    losses: NDArray[np.float64]  # (n,), -log p of the answer, unweighted
    lifts: NDArray[np.float64] | None  # (n,)


def sketching(
    tune: FineTune,
    examples: Sequence[Example],
    projection: Projection,
    tokens: int,
    checkpoint: Checkpoint = never_stop,
) -> Generator[None, None, Sketches]:
    """The sketches of `examples`, in their order, in batches of at most `tokens`; pauses after each batch."""
    count, width = len(examples), tune.model.sizes.width
    rows = np.zeros((count, projection.dimensions), dtype=np.float32)
    hidden = np.zeros((count, 2, width), dtype=np.float32)
    losses, lifts = np.zeros(count), None if tune.base is None else np.zeros(count)
    for places in batches(tune.model, examples, tokens):
        checkpoint()
        found = sketch_batch(tune, batch_of(tune.model, [examples[place] for place in places]), projection)
        rows[places], hidden[places], losses[places] = found.rows, found.hidden, found.losses
        if lifts is not None:
            lifts[places] = found.lifts
        yield
    if not (np.isfinite(rows).all() and np.isfinite(hidden).all()):
        raise InconsistentAnswer("the model's gradients are not finite numbers: load it with dtype float32 or bfloat16")
    return Sketches(rows, hidden, losses, lifts)


def sketch_batch(tune: FineTune, batch: Batch, projection: Projection) -> Sketches:
    """One pass of the base model and one there and back of the fine-tuned one. Raises OutOfMemory."""
    try:
        with told_alike():
            return _sketched(tune, batch, projection)
    except torch.OutOfMemoryError as error:
        count, length = batch.ids.shape
        raise OutOfMemory(f"{count} examples of {length} tokens do not fit into the memory of the device") from error


def _sketched(tune: FineTune, batch: Batch, projection: Projection) -> Sketches:
    model, watch = tune.model, Watch(projection, (batch.ids.shape[0], batch.ids.shape[1]))
    known = None if tune.base is None else log_probabilities(tune.base, batch)
    with frozen(model.network), plain_attention(model), watch.active(), torch.enable_grad():
        embeddings = model.network.get_input_embeddings()(batch.ids).detach().requires_grad_()
        answers = answer_pass(model, batch, embeddings)
        scores = chosen_log_probs(answers.logits, batch.targets)  # (N,)
        said = scores.detach()
        gains = None if known is None else said - known
        weights = torch.ones_like(said) if gains is None else gains.clamp(0, MOST_GAIN)
        torch.autograd.grad(-(weights * scores).sum(), embeddings)
    return Sketches(
        rows=watch.rows.cpu().numpy(),
        hidden=torch.stack([answers.questions, answers.replies], dim=1).detach().cpu().numpy(),
        losses=-_summed(said, batch),
        lifts=None if gains is None else _summed(gains, batch),
    )


def log_probabilities(model: LanguageModel, batch: Batch) -> Tensor:  # (N,)
    """Of the answers' tokens, in nats. Raises MissingCapability for tokens that the model does not have."""
    if int(batch.ids.max()) >= model.vocabulary_size:
        raise MissingCapability(
            f"the base model has {model.vocabulary_size} tokens, and the fine-tuned one reads others besides: register "
            "the base with the tokens that were added to it, or the fine-tune without a base"
        )
    with frozen(model.network), plain_attention(model), torch.no_grad():
        return chosen_log_probs(answer_pass(model, batch).logits, batch.targets)


def _summed(values: Tensor, batch: Batch) -> NDArray[np.float64]:  # (N,) -> (B,)
    """Of each example, the sum over its answer."""
    parts = np.split(values.double().cpu().numpy(), np.cumsum(batch.counts)[:-1])
    return np.array([part.sum() for part in parts])
