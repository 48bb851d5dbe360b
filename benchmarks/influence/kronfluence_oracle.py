"""EK-FAC as the package kronfluence computes it, held against the one of `baselines`, on the same model and pairs.

    python -m benchmarks.influence.kronfluence_oracle [--seeds 0] [--tangled] [--runs 2] [--cache DIR]

Empirical Fisher matrix, damping 0.1 of the mean eigenvalue, all weights fine-tuned. The LDS is taken against the
retrainings that `python -m benchmarks.influence` has left in the cache. Adds to results/influence.json. Needs
`pip install --no-deps kronfluence einconv einops opt-einsum`, which nothing else here does.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset
from transformers import LlamaForCausalLM

from benchmarks.influence import baselines, metrics
from benchmarks.influence.__main__ import keep, known, name_of
from benchmarks.influence.bed import Bed, bed
from benchmarks.influence.evaluation import kept, relevant, rounded, runs_of
from benchmarks.influence.retraining import halves
from benchmarks.influence.text import Padded, Row, padded
from benchmarks.influence.training import block_linears, token_losses

Floats = NDArray[np.float64]
RETRAININGS, TOGETHER = 24, 32


def main() -> None:
    asked = arguments()
    if find_spec("kronfluence") is None:
        raise SystemExit("kronfluence is not installed: pip install --no-deps kronfluence einconv einops opt-einsum")
    torch.set_num_threads(1)
    for seed in asked.seeds:
        name = name_of(seed, "full", asked.tangled)
        found = compared(bed(seed, "full", asked.cache, tangled=asked.tangled), asked.runs)
        print(name, found)
        keep(name, known(name) | {"kronfluence": found})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.influence.kronfluence_oracle")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--tangled", action="store_true", help="the harder world")
    parser.add_argument("--runs", type=int, default=2, help="of each retraining; 0 leaves the LDS out")
    parser.add_argument("--cache", type=Path, default=Path(".bed"))
    return parser.parse_args()


def compared(made: Bed, runs: int) -> dict[str, Any]:
    """Both scores of each question's pairs, correlated; and what theirs are worth."""
    right = made.of("right")
    theirs = scores_of(made.tuned, made.rows, [query.row for query in right])
    asked = [*right, *made.of("poison")]  # as the benchmark keeps them
    ours = kept(made, "gradients", lambda: baselines.gradient_scores(made, asked))["EK-FAC"][: len(right)]
    wanted = relevant(made, right)
    found = {
        "version": version("kronfluence"),
        "rank correlation with ours": rounded(float(metrics.correlations(theirs.T, ours.T).mean())),
        "correlation with ours": rounded(
            float(np.mean([np.corrcoef(*both)[0, 1] for both in zip(theirs, ours, strict=True)]))
        ),
        "MRR": rounded(metrics.estimate(metrics.reciprocal_ranks(theirs, wanted))),
        "R@10": rounded(metrics.estimate(metrics.recalls(theirs, wanted))),
        "R-precision": rounded(metrics.estimate(metrics.r_precisions(theirs, wanted))),
    }
    if runs:
        held = halves(made, RETRAININGS)
        after = runs_of(made, right, held, runs).mean(0)
        found["LDS"] = rounded(metrics.datamodelling(theirs, held, after))
    return found


def scores_of(model: LlamaForCausalLM, pairs: Sequence[Row], questions: Sequence[Row]) -> Floats:  # (Q, n)
    analyzer, arguments = import_module("kronfluence.analyzer"), import_module("kronfluence.arguments")
    task = _task(model)
    wrapped = analyzer.prepare_model(copy.deepcopy(model), task)
    with TemporaryDirectory() as folder:
        made = analyzer.Analyzer("bed", wrapped, task, cpu=True, disable_tqdm=True, output_dir=folder)
        train = _dataset(pairs)
        factors = arguments.FactorArguments(strategy="ekfac", use_empirical_fisher=True)
        made.fit_all_factors("factors", train, per_device_batch_size=TOGETHER, factor_args=factors)
        made.compute_pairwise_scores(
            "scores",
            "factors",
            query_dataset=_dataset(questions),
            train_dataset=train,
            per_device_query_batch_size=TOGETHER,
            per_device_train_batch_size=TOGETHER,
            score_args=arguments.ScoreArguments(damping_factor=None),  # 0.1 of the mean eigenvalue
        )
        scores: Floats = made.load_pairwise_scores("scores")["all_modules"].double().numpy()
    return scores


def _dataset(rows: Sequence[Row]) -> TensorDataset:
    batch = padded(rows)
    lengths = torch.tensor([len(row.ids) for row in rows])
    return TensorDataset(batch.ids, batch.counted, torch.arange(batch.ids.shape[1]) < lengths[:, None])


def _task(model: LlamaForCausalLM) -> Any:
    names = list(block_linears(model))

    class Answers(import_module("kronfluence.task").Task):  # type: ignore[misc]
        """The summed loss of the answers' tokens, of pairs and questions alike."""

        def compute_train_loss(self, batch: Sequence[Tensor], model: LlamaForCausalLM, sample: bool = False) -> Tensor:
            return token_losses(model, Padded(batch[0], batch[1])).sum()

        def compute_measurement(self, batch: Sequence[Tensor], model: LlamaForCausalLM) -> Tensor:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return names

        def get_attention_mask(self, batch: Sequence[Tensor]) -> Tensor:
            return batch[2][:, :-1].long()  # the last token is only foretold

    return Answers()


if __name__ == "__main__":
    main()
