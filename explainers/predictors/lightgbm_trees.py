"""LightGBM models as `save_model` writes them: text.

The file is read here first: its trees are checked, and only they reach LightGBM, without the training parameters
behind them, which can name other files.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from explainers.errors import InvalidRequest, UnreadableModel
from explainers.predictors import trees
from explainers.predictors.artifact import ArtifactSpace, Contributions, Signature, as_columns, library
from explainers.predictors.contents import Content
from explainers.predictors.tree_explainer import TreeExplainer
from explainers.table import Table

SHARES = ("binary", "multiclass", "multiclassova", "cross_entropy")
VALUES = (
    "regression",
    "regression_l1",
    "huber",
    "fair",
    "poisson",
    "quantile",
    "mape",
    "gamma",
    "tweedie",
    "lambdarank",
    "rank_xendcg",
    "cross_entropy_lambda",
)
MAX_OUTPUTS = 10_000
START, END = b"tree\n", b"end of trees"
PER_SPLIT = ("split_feature", "threshold", "decision_type", "left_child", "right_child")
CATEGORICAL = 1
"""The bit of a split's `decision_type` that marks a set of categories."""


@dataclass(frozen=True, slots=True)
class LightgbmTrees:
    """A booster; attributions one at a time."""

    booster: Any
    signature: Signature
    digest: str
    explainer: TreeExplainer
    format: str = "lightgbm"
    lock: threading.Lock = field(default_factory=threading.Lock)

    def predict(self, table: Table) -> NDArray[np.float64]:  # (n, M) -> (n, K)
        return self._run(table.cells)

    def contributions(self, table: Table) -> Contributions:
        """Of the margins, by the booster's own code behind `shap.TreeExplainer`."""
        with self.lock:
            values, base = self.explainer.values(table.cells, len(table), len(table.columns))
        return Contributions(values, base, self._run(table.cells, raw_score=True), "margin", {"engine": "lightgbm"})

    def _run(self, cells: NDArray[np.float64], **options: bool) -> NDArray[np.float64]:
        try:
            return as_columns(self.booster.predict(cells, **options))
        except library("lightgbm").basic.LightGBMError as error:
            raise InvalidRequest(f"LightGBM refuses the rows: {str(error)[:200]}") from error


def load(content: Content) -> LightgbmTrees:
    """Raises UnreadableModel, MissingCapability without the library."""
    if not content.data.startswith(START) or END not in content.data:
        raise UnreadableModel(f"{content.name} is no whole LightGBM model in text")
    body, _, rest = content.data.partition(END)
    head, blocks = _blocks(body)
    header = _fields(head)
    names, infos = (header.get(key, "").split() for key in ("feature_names", "feature_infos"))
    if _count(header, "max_feature_idx") + 1 != len(names) or len(names) != len(infos):
        raise UnreadableModel("max_feature_idx, feature_names and feature_infos differ in length")
    outputs = _outputs(header, len(blocks))
    for number, block in enumerate(blocks):
        _check_tree(f"tree {number}", _fields(block), len(names))
    objective = header.get("objective", "regression").split()[0]
    if objective not in (*SHARES, *VALUES):
        raise UnreadableModel(f"objective {objective[:40]!r} predicts neither shares nor values")
    space: ArtifactSpace = "probability" if objective in SHARES else "value"
    signature = Signature(
        width=len(names),
        inputs=None if names == [f"Column_{place}" for place in range(len(names))] else tuple(names),
        categories=_categories(infos, rest),
        unused=frozenset(place for place, info in enumerate(infos) if info == "none"),
        outputs=outputs,
        space=None if objective == "cross_entropy" else space,
        accepts_nulls=True,
        exclusive=objective == "multiclass" or outputs == 1,
    )
    booster = _booster(content, body + END + b"\n")
    return LightgbmTrees(booster, signature, content.digest, TreeExplainer(booster))


def _blocks(body: bytes) -> tuple[bytes, list[bytes]]:
    """The header, and the text of each tree, cut where `tree_sizes` says: LightGBM jumps by these numbers."""
    start = body.find(b"\nTree=0\n") + 1
    if not start:
        raise UnreadableModel("the LightGBM model has no trees")
    head = body[:start]
    sizes = _fields(head).get("tree_sizes", "").split()
    blocks, place = [], start
    for number, size in enumerate(sizes):
        if not size.isdecimal() or len(size) > 10 or not body.startswith(b"Tree=%d\n" % number, place):
            raise UnreadableModel("tree_sizes do not fit the trees")
        blocks.append(body[place : place + int(size)])
        place += int(size)
    if place != len(body):
        raise UnreadableModel("tree_sizes do not add up to the trees")
    return head, blocks


def _fields(text: bytes) -> Mapping[str, str]:
    try:
        lines = text.decode().splitlines()
    except UnicodeDecodeError as error:
        raise UnreadableModel("the LightGBM model is not UTF-8") from error
    found: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition("=")
        if name in found:
            raise UnreadableModel(f"the LightGBM model states {name[:40]!r} twice")
        if name:
            found[name] = value
    return found


def _count(fields: Mapping[str, str], name: str) -> int:
    value = fields.get(name, "")
    if not value.isdecimal() or len(value) > 9:
        raise UnreadableModel(f"{name} is not a count")
    return int(value)


def _outputs(header: Mapping[str, str], count: int) -> int:
    classes, outputs = _count(header, "num_class"), _count(header, "num_tree_per_iteration")
    if classes != outputs or not 0 < outputs <= MAX_OUTPUTS or count % outputs:
        raise UnreadableModel(f"{count} trees do not make {outputs} outputs of {classes} classes")
    return outputs


def _check_tree(name: str, tree: Mapping[str, str], width: int) -> None:
    leaves = _count(tree, "num_leaves")
    if tree.get("is_linear", "0") != "0":
        raise UnreadableModel(f"{name}: trees with linear leaves are not served")
    if not 0 < leaves < 2**24 or len(_numbers(tree, "leaf_value", float)) != leaves:
        raise UnreadableModel(f"{name}: leaf_value is not one number per leaf")
    for key in ("leaf_weight", "leaf_count"):
        if len(_numbers(tree, key, float)) not in (0, leaves):
            raise UnreadableModel(f"{name}: {key} is not one number per leaf")
    if leaves > 1:
        _check_splits(name, tree, leaves, width)


def _check_splits(name: str, tree: Mapping[str, str], leaves: int, width: int) -> None:
    columns = {key: _numbers(tree, key, float if key == "threshold" else int) for key in PER_SPLIT}
    optional = ("split_gain", "internal_value", "internal_weight", "internal_count")
    lengths = {len(column) for column in columns.values()} | {len(_numbers(tree, key, float)) for key in optional}
    if lengths - {0} != {leaves - 1} or any(not len(column) for column in columns.values()):
        raise UnreadableModel(f"{name}: its lists are not one number per split")
    left, right = (_common_numbering(columns[key], leaves) for key in ("left_child", "right_child"))
    split = np.concatenate([columns["split_feature"], np.zeros(leaves, dtype=np.int64)])
    trees.check(name, left, right, split, width)
    if len(np.unique(np.concatenate([left, right]))) != 2 * leaves - 1:  # with the -1 of leaves
        raise UnreadableModel(f"{name}: a leaf or split hangs nowhere")
    _check_categories(name, tree, columns)


def _common_numbering(children: NDArray[Any], leaves: int) -> NDArray[np.int64]:
    """Splits 0..leaves-2, then leaves; LightGBM writes leaf k as -k-1."""
    numbered = np.where(children < 0, leaves - 2 - children, np.where(children < leaves - 1, children, 2 * leaves))
    return np.concatenate([numbered, np.full(leaves, -1)])


def _check_categories(name: str, tree: Mapping[str, str], columns: Mapping[str, NDArray[Any]]) -> None:
    marked = (columns["decision_type"] & CATEGORICAL) > 0
    sets, count = columns["threshold"][marked], _count(tree, "num_cat")
    bounds, words = _numbers(tree, "cat_boundaries", int), _numbers(tree, "cat_threshold", int)
    if count != len(sets) or (count and len(bounds) != count + 1):
        raise UnreadableModel(f"{name}: num_cat is not the number of its category splits")
    if count and ((sets < 0) | (sets >= count) | (sets != np.floor(sets))).any():
        raise UnreadableModel(f"{name}: a category split points nowhere")
    if count and (bounds[0] != 0 or bounds[-1] != len(words) or (np.diff(bounds) < 0).any()):
        raise UnreadableModel(f"{name}: cat_boundaries do not divide cat_threshold")


def _numbers(tree: Mapping[str, str], key: str, kind: type) -> NDArray[Any]:
    try:
        values = np.array([kind(value) for value in tree.get(key, "").split()], dtype=np.float64)
    except (ValueError, OverflowError) as error:
        raise UnreadableModel(f"{key} is not a list of numbers") from error
    if kind is float:
        return values
    if len(values) and np.abs(values).max() >= 2**32:
        raise UnreadableModel(f"{key}: a number is too large")
    return values.astype(np.int64)


def _categories(infos: list[str], rest: bytes) -> Mapping[int, tuple[str, ...] | None]:
    """Category columns by their `feature_infos`; their values too where the model was trained on a frame."""
    places = [place for place, info in enumerate(infos) if not info.startswith("[") and info != "none"]
    stored = _pandas_categories(rest)
    if stored is None or len(stored) != len(places):
        return dict.fromkeys(places)
    return dict(zip(places, stored, strict=True))


def _pandas_categories(rest: bytes) -> list[tuple[str, ...]] | None:
    _, found, line = rest.rpartition(b"\npandas_categorical:")
    if not found:
        return None
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UnreadableModel("pandas_categorical is no JSON") from error
    if not isinstance(values, list) or not all(isinstance(column, list) for column in values):
        return None
    return [tuple(str(value) for value in column) for column in values]


def _booster(content: Content, text: bytes) -> Any:
    lightgbm = library("lightgbm")
    try:
        return lightgbm.Booster(model_str=text.decode())
    except (lightgbm.basic.LightGBMError, ValueError) as error:
        raise UnreadableModel(f"{content.name} is refused by LightGBM: {str(error)[:200]}") from error
