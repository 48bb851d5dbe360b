"""What fine-tuning again without some pairs changes: the truth that influence is measured against.

Every retraining starts from the same base with the same recipe and is kept in the cache, so that a broken-off run goes
on where it stopped. Its weights are kept rather than its losses: other questions may be asked of it later.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file

from benchmarks.influence.bed import Bed, Query, keep_weights
from benchmarks.influence.training import Weights, losses
from benchmarks.influence.world import drawing

Floats = NDArray[np.float64]


def halves(bed: Bed, count: int) -> NDArray[np.bool_]:  # (R, n)
    """Which pairs each of the random subsets of half the size holds."""
    held = np.zeros((count, len(bed.pairs)), dtype=bool)
    for number in range(count):
        held[number, drawing(f"half {bed.seed} {number}").sample(range(len(bed.pairs)), len(bed.pairs) // 2)] = True
    return held


def retrained(bed: Bed, held: NDArray[np.bool_], seed: int) -> Weights:
    """After fine-tuning on the pairs that `held` (n,) names, from the cache where it was done before."""
    name = f"{sha256(np.packbits(held).tobytes()).hexdigest()[:16]}-{seed}"
    place = bed.folder / f"{bed.kind}-subsets" / f"{name}.safetensors"
    if not place.exists():
        keep_weights(bed.retrained(np.flatnonzero(held).tolist(), seed), place)
    return load_file(place)


def losses_after(bed: Bed, queries: Sequence[Query], held: NDArray[np.bool_], seed: int) -> Floats:  # (R, Q)
    """Loss of each query's answer, in nats, after retraining on each subset (R, n)."""
    rows = [query.row for query in queries]
    return np.array([losses(bed.tuned, rows, retrained(bed, one, seed)).double().numpy() for one in held])


def without(bed: Bed, removed: Sequence[int]) -> NDArray[np.bool_]:  # (n,)
    held = np.ones(len(bed.pairs), dtype=bool)
    held[list(removed)] = False
    return held
