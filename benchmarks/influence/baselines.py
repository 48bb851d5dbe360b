"""Other ways to score pairs, each as (Q, n): a row per query, a column per training pair.

- BM25 on question and answer (k1 1.5, b 0.75); the cosine of hidden states at the last prompt token.
- The gradients' dot product and cosine; the sum of dots over checkpoints, times the rate (TracInCP).
- DataInf: each layer's inverse taken example by example (arXiv 2310.00902, equation 5), damping 0.1 of the mean square.
- LESS-like: cosine with training gradients divided by the root of their mean square, as Adam would (2402.04333).
- EK-FAC: empirical, eigenbasis per layer, eigenvalues corrected, damping 0.1 of their mean (2308.03296).
- TrackStar-like: 8x8 projections per layer, whitened by their damped second moments, cosine (2410.17413).
- Exact Fisher: the same without projections, through the kernel of all pairs.

"normed" divides by the training side's own length in the metric of the method.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlamaForCausalLM

from benchmarks.influence.bed import Bed, Query
from benchmarks.influence.gradients import Passes, layers, passes
from benchmarks.influence.text import Row, padded
from benchmarks.influence.training import checkpoints, rate_share, with_weights

Floats = NDArray[np.float64]
Scores = dict[str, Floats]
DAMPING, PROJECTED = 0.1, 8


def lexical(bed: Bed, queries: Sequence[Query], k1: float = 1.5, b: float = 0.75) -> Floats:
    """BM25 of the query's question and answer against each pair's."""
    texts = [Counter(f"{pair.question} {pair.answer}".split()) for pair in bed.pairs]
    lengths = np.array([text.total() for text in texts])
    holders = Counter(word for text in texts for word in text)
    weights = {word: log(1 + (len(texts) - many + 0.5) / (many + 0.5)) for word, many in holders.items()}
    scores = np.zeros((len(queries), len(texts)))
    for row, query in enumerate(queries):
        for word in set(f"{query.question} {query.answer}".split()) & weights.keys():
            found = np.array([text[word] for text in texts])
            scores[row] += weights[word] * found * (k1 + 1) / (found + k1 * (1 - b + b * lengths / lengths.mean()))
    return scores


@torch.inference_mode()
def hidden(model: LlamaForCausalLM, rows: Sequence[Row]) -> Tensor:  # (n, d)
    """After the last layer and its norm, where the answer begins."""
    states = model.model(input_ids=padded(rows).ids, use_cache=False).last_hidden_state
    found: Tensor = states[torch.arange(len(rows)), torch.tensor([row.asked for row in rows])]
    return found


def hidden_cosine(bed: Bed, queries: Sequence[Query]) -> Floats:
    train, asked = (_unit(hidden(bed.tuned, rows).double()) for rows in (bed.rows, [query.row for query in queries]))
    return (asked @ train.T).numpy()


@dataclass
class Sums:
    """What all gradient methods need, summed over layers in one walk."""

    dot: Tensor  # (Q, n)
    kernel: Tensor  # (n, n)
    own: Tensor  # (Q,) squared lengths of the queries' gradients
    inverse: Tensor  # (Q, n) DataInf
    inverse_own: Tensor  # (n,)
    scaled: Tensor  # (Q, n) LESS
    scaled_own: Tensor  # (n,)
    factored: Tensor  # (Q, n) EK-FAC
    factored_own: Tensor  # (n,)
    sketches: tuple[list[Tensor], list[Tensor]] = field(default_factory=lambda: ([], []))

    @classmethod
    def empty(cls, asked: int, train: int) -> Sums:
        def nothing(*sizes: int) -> Tensor:
            return torch.zeros(*sizes, dtype=torch.float64)

        both, pairs = (asked, train), (train,)
        return cls(
            *(nothing(*both), nothing(train, train), nothing(asked)),
            *(nothing(*both), nothing(*pairs), nothing(*both), nothing(*pairs), nothing(*both), nothing(*pairs)),
        )


def gradient_scores(bed: Bed, queries: Sequence[Query]) -> Scores:
    """Every method on exact gradients of the last checkpoint."""
    train, asked = passes(bed.tuned, bed.rows), passes(bed.tuned, [query.row for query in queries])
    sums = Sums.empty(len(queries), len(bed.rows))
    draw = torch.Generator().manual_seed(0)
    for name, pairs, questions in layers(train, asked):
        _add_exact(sums, pairs.flatten(1), questions.flatten(1))
        _add_factored(sums, train, name, pairs, questions)
        _add_sketch(sums, pairs, questions, draw)
    return _finished(sums)


def _add_exact(sums: Sums, pairs: Tensor, questions: Tensor) -> None:  # (n, p), (Q, p)
    dot, kernel = (questions @ pairs.T).double(), (pairs @ pairs.T).double()
    sums.dot += dot
    sums.kernel += kernel
    sums.own += questions.double().square().sum(1)
    sums.inverse += _data_inf(dot, kernel, pairs.shape[1])
    sums.inverse_own += _data_inf(kernel, kernel, pairs.shape[1]).diagonal()
    moments = pairs.square().mean(0).sqrt()
    scaled = pairs / (moments + 1e-3 * moments.mean())
    sums.scaled += (questions @ scaled.T).double()
    sums.scaled_own += scaled.double().square().sum(1)


def _data_inf(dot: Tensor, kernel: Tensor, size: int) -> Tensor:  # (Q, n)
    """A mean over pairs of the inverses of rank one, in one layer of `size` weights."""
    lengths = kernel.diagonal()
    damping = DAMPING * lengths.mean() / size
    taken = (dot / (damping + lengths)) @ kernel / len(kernel)
    found: Tensor = (dot - taken) / damping
    return found


def _add_factored(sums: Sums, train: Passes, name: str, pairs: Tensor, questions: Tensor) -> None:
    inputs, gradients = train.layers[name].tokens()
    left, right = (torch.linalg.eigh((part.T @ part).double())[1].float() for part in (gradients, inputs))
    turned = [torch.einsum("op,noi,ij->npj", left, part, right).flatten(1) for part in (pairs, questions)]
    values = turned[0].square().mean(0)
    inverse = 1 / (values + DAMPING * values.mean())
    sums.factored += (turned[1] @ (turned[0] * inverse).T).double()
    sums.factored_own += (turned[0].square() @ inverse).double()


def _add_sketch(sums: Sums, pairs: Tensor, questions: Tensor, draw: torch.Generator) -> None:
    out, inner = (torch.randn(size, PROJECTED, generator=draw) / sqrt(PROJECTED) for size in pairs.shape[1:])
    for kept, part in zip(sums.sketches, (pairs, questions), strict=True):
        kept.append(torch.einsum("noi,ok,il->nkl", part, out, inner).flatten(1))


def _finished(sums: Sums) -> Scores:
    pairs, questions = (torch.cat(parts, 1).double() for parts in sums.sketches)
    lengths = sums.kernel.diagonal().sqrt()
    found = {
        "gradient dot": sums.dot,
        "gradient cosine": sums.dot / lengths / sums.own.sqrt()[:, None],
        "DataInf": sums.inverse,
        "DataInf normed": sums.inverse / sums.inverse_own.clamp_min(1e-30).sqrt(),
        "LESS-like": sums.scaled / sums.scaled_own.sqrt(),
        "EK-FAC": sums.factored,
        "EK-FAC normed": sums.factored / sums.factored_own.sqrt(),
        "exact Fisher": whitened(sums.dot, sums.kernel, sums.own, len(sums.kernel)),
        "TrackStar-like": whitened(
            questions @ pairs.T, pairs @ pairs.T, questions.square().sum(1), min(len(pairs), pairs.shape[1])
        ),
    }
    return {name: scores.numpy() for name, scores in found.items()}


def whitened(dot: Tensor, kernel: Tensor, own: Tensor, rank: int) -> Tensor:  # (Q, n)
    """Cosine in the metric (F + damping)^-1, from inner products alone: `dot` (Q, n), `kernel` (n, n), `own` (Q,)."""
    damping = DAMPING * kernel.trace() / rank
    damped = kernel + damping * torch.eye(len(kernel), dtype=kernel.dtype)
    inner, itself = torch.linalg.solve(damped, dot.T).T, torch.linalg.solve(damped, kernel).diagonal()
    asked = (own - (inner * dot).sum(1)) / damping
    return inner / itself.sqrt() / asked.sqrt()[:, None]


def traced(bed: Bed, queries: Sequence[Query], points: int = 3) -> Floats:
    """TracInCP over a few checkpoints, the last one among them, each with the rate in the middle of its pass."""
    scores = torch.zeros(len(queries), len(bed.rows), dtype=torch.float64)
    count = bed.recipe.passes
    passed = list(checkpoints(bed.base, bed.rows, bed.kind, bed.seed, bed.recipe))
    for number in (round(count * point / points) - 1 for point in range(1, points + 1)):
        model = with_weights(bed.base, passed[number])
        train, asked = passes(model, bed.rows), passes(model, [query.row for query in queries])
        for _, pairs, questions in layers(train, asked):
            dot = questions.flatten(1) @ pairs.flatten(1).T
            scores += rate_share(2 * number + 1, 2 * count, bed.recipe.warm_up) * dot.double()
    return scores.numpy()


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=-1)
