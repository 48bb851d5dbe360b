"""Whether the numbers of a tree make a tree: readers of model files follow them without looking."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from explainers.errors import UnreadableModel

MAX_DEPTH = 1000
"""Attribution along paths recurses, and takes the square of the depth in memory."""

Integers = NDArray[np.int64]


def check(name: str, left: Integers, right: Integers, features: Integers, width: int) -> None:
    """Nodes 0..N-1 with their children, -1 for a leaf: one root, every other node below one parent, columns 0..width-1.

    Nodes that nothing points to are allowed: pruning leaves them. Raises UnreadableModel.
    """
    if not len(left) == len(right) == len(features) > 0:
        raise UnreadableModel(f"{name}: its node lists differ in length")
    inner = left != -1
    if (inner != (right != -1)).any():
        raise UnreadableModel(f"{name}: a node has one child")
    children = np.concatenate([left[inner], right[inner]])
    if children.size and (children.min() < 1 or children.max() >= len(left)):
        raise UnreadableModel(f"{name}: a child lies outside the tree")
    if len(np.unique(children)) != len(children):
        raise UnreadableModel(f"{name}: a node has two parents")
    if ((features[inner] < 0) | (features[inner] >= width)).any():
        raise UnreadableModel(f"{name}: a split is on a column that is not there")
    _check_depth(name, left, right)


def _check_depth(name: str, left: Integers, right: Integers) -> None:
    level = np.zeros(1, dtype=np.int64)
    for _ in range(MAX_DEPTH):
        level = level[left[level] != -1]
        if not level.size:
            return
        level = np.concatenate([left[level], right[level]])
    raise UnreadableModel(f"{name}: deeper than {MAX_DEPTH} levels")


def integers(name: str, found: object) -> Integers:
    """A list of whole numbers of a file as int64. Raises UnreadableModel for anything else."""
    values = array(found)
    if values.ndim == 1 and values.size == 0:
        return np.zeros(0, dtype=np.int64)
    if values.ndim != 1 or values.dtype.kind not in "iub":
        raise UnreadableModel(f"{name}: not a list of whole numbers")
    if values.dtype == np.uint64 and values.max() > np.iinfo(np.int64).max:
        raise UnreadableModel(f"{name}: a number is too large")
    return values.astype(np.int64)


def array(found: object) -> NDArray[Any]:
    """A list of a file as numpy takes it; anything else, and lists of several lengths, as an array without axes."""
    try:
        return np.asarray(found if isinstance(found, list | np.ndarray) else None)
    except ValueError:
        return np.asarray(None)
