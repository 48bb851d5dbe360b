"""XGBoost models as `save_model` writes them: .json, or .ubj (UBJSON).

The file is read here first: its trees are checked, and what it says of its columns, classes and categories is kept.
"""

from __future__ import annotations

import ast
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from explainers.errors import InvalidRequest, MissingCapability, UnreadableModel
from explainers.predictors import trees, ubjson
from explainers.predictors.artifact import ArtifactSpace, Contributions, Signature, as_columns, library
from explainers.predictors.contents import Content
from explainers.predictors.tree_explainer import TreeExplainer
from explainers.table import Table

PROBABILITIES = ("binary:logistic", "multi:softprob", "reg:logistic")
SOFTMAX = "multi:softmax"
"""Predicts labels; its margins are those of multi:softprob."""
VALUES = ("reg:", "count:", "survival:", "rank:")
MAX_OUTPUTS = 10_000
MAX_CATEGORY = 1_000_000
NO_PARENT = 2**31 - 1
LISTS = ("base_weights", "split_conditions", "default_left", "split_type", "loss_changes", "sum_hessian")


@dataclass(frozen=True, slots=True)
class XgboostTrees:
    """A booster; safe to use from several threads, attributions one at a time."""

    booster: Any
    signature: Signature
    digest: str
    softmax: bool
    feature_types: list[str] | None
    explainer: TreeExplainer
    format: str = "xgboost"
    lock: threading.Lock = field(default_factory=threading.Lock)

    def predict(self, table: Table) -> NDArray[np.float64]:  # (n, M) -> (n, K)
        if self.softmax:
            margins = self._run(table.cells, "margin")
            shares = np.exp(margins - margins.max(axis=1, keepdims=True))
            return np.asarray(shares / shares.sum(axis=1, keepdims=True))
        return self._run(table.cells, "value")

    def contributions(self, table: Table) -> Contributions:
        """Of the margins, by the booster's own code behind `shap.TreeExplainer`."""
        xgboost = library("xgboost")
        rows = xgboost.DMatrix(
            table.cells, feature_types=self.feature_types, enable_categorical=self.feature_types is not None
        )
        try:
            with self.lock:
                values, base = self.explainer.values(rows, len(table), len(table.columns))
        except xgboost.core.XGBoostError as error:
            raise MissingCapability(f"XGBoost cannot attribute this model: {_first_line(error)}") from error
        return Contributions(values, base, self._run(table.cells, "margin"), "margin", {"engine": "xgboost"})

    def _run(self, cells: NDArray[np.float64], kind: str) -> NDArray[np.float64]:
        xgboost = library("xgboost")
        try:
            found = self.booster.inplace_predict(cells, predict_type=kind, validate_features=False)
        except (xgboost.core.XGBoostError, ValueError) as error:
            raise InvalidRequest(f"XGBoost refuses the rows: {_first_line(error)}") from error
        return as_columns(found)


def load(content: Content) -> XgboostTrees:
    """Raises UnreadableModel, MissingCapability without the library."""
    document = _document(content)
    learner = _mapping(document, "learner")
    width, groups = _sizes(learner)
    _check_booster(_mapping(learner, "gradient_booster"), width, groups)
    objective = _mapping(learner, "objective").get("name")
    if not isinstance(objective, str) or not objective.startswith((*PROBABILITIES, SOFTMAX, *VALUES)):
        raise UnreadableModel(f"{content.name}: objective {str(objective)[:80]!r} predicts neither shares nor values")
    space: ArtifactSpace = "probability" if objective in (*PROBABILITIES, SOFTMAX) else "value"
    types = _texts(learner, "feature_types", width)
    signature = Signature(
        width=width,
        inputs=_texts(learner, "feature_names", width),
        categories=_categories(learner, types),
        outputs=groups,
        space=None if objective == "reg:logistic" else space,
        accepts_nulls=True,
        exclusive=objective.startswith("multi:") or groups == 1,
    )
    booster, softmax = _booster(content.name, document), objective == SOFTMAX
    return XgboostTrees(booster, signature, content.digest, softmax, types, TreeExplainer(booster))


def _document(content: Content) -> Mapping[str, Any]:
    data = content.data
    if not data.startswith(b"{"):
        raise UnreadableModel(f"{content.name} is no XGBoost model in JSON or UBJSON")
    try:
        found = ubjson.decode(data) if data[1:2] in b"LlIiU" else json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UnreadableModel(f"{content.name} is no readable JSON") from error
    if not isinstance(found, dict):
        raise UnreadableModel(f"{content.name} holds no XGBoost model")
    return found


def _mapping(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    inner = found.get(name)
    if not isinstance(inner, dict):
        raise UnreadableModel(f"the XGBoost model has no {name}")
    return inner


def _sizes(learner: Mapping[str, Any]) -> tuple[int, int]:
    """Input columns, and outputs per row."""
    parameters = _mapping(learner, "learner_model_param")
    width = _count(parameters, "num_feature")
    groups = max(1, _count(parameters, "num_class"), _count(parameters, "num_target", "1"))
    if not 0 < width < 2**20 or groups > MAX_OUTPUTS:
        raise UnreadableModel(f"the XGBoost model claims {width} columns and {groups} outputs")
    _check_base_score(parameters.get("base_score"), groups)
    return width, groups


def _check_base_score(stored: object, groups: int) -> None:
    try:
        score = ast.literal_eval(stored) if isinstance(stored, str) and len(stored) < 10**6 else None
        values = np.atleast_1d(np.asarray(score, dtype=float))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise UnreadableModel("base_score is not a number") from error
    if values.shape not in ((1,), (groups,)) or not np.isfinite(values).all():
        raise UnreadableModel("base_score is not one number per output")


def _count(found: Mapping[str, Any], name: str, default: str | None = None) -> int:
    value = found.get(name, default)
    if not isinstance(value, str) or not value.isdecimal() or len(value) > 10:
        raise UnreadableModel(f"{name} is not a count")
    return int(value)


def _texts(learner: Mapping[str, Any], name: str, width: int) -> Any:
    found = learner.get(name)
    if not found:
        return None
    if not isinstance(found, list) or len(found) != width or not all(isinstance(text, str) for text in found):
        raise UnreadableModel(f"{name} are not {width} texts")
    return tuple(found) if name == "feature_names" else found


def _check_booster(booster: Mapping[str, Any], width: int, groups: int) -> None:
    kind = booster.get("name")
    if kind == "dart":
        dropped = booster.get("weight_drop")
        booster = _mapping(booster, "gbtree")
        if np.asarray(dropped, dtype=object).shape != (len(_trees(booster)),):
            raise UnreadableModel("weight_drop is not one number per tree")
    elif kind != "gbtree":
        raise UnreadableModel(f"booster {str(kind)[:40]!r} is not served: use gbtree or dart")
    _check_forest(booster, groups)
    for number, tree in enumerate(_trees(booster)):
        _check_tree(f"tree {number}", tree, width)
        if tree.get("id", number) != number:
            raise UnreadableModel(f"tree {number} claims another place")


def _trees(booster: Mapping[str, Any]) -> list[Any]:
    found = _mapping(booster, "model").get("trees")
    if not isinstance(found, list) or not found:
        raise UnreadableModel("the XGBoost model has no trees")
    return found


def _check_forest(booster: Mapping[str, Any], groups: int) -> None:
    model, count = _mapping(booster, "model"), len(_trees(booster))
    parameters = _mapping(model, "gbtree_model_param")
    if _count(parameters, "num_trees") != count or _count(parameters, "num_parallel_tree", "1") > count:
        raise UnreadableModel(f"the XGBoost model has {count} trees and claims others")
    group = trees.integers("tree_info", model.get("tree_info"))
    if len(group) != count or group.min() < 0 or group.max() >= groups:
        raise UnreadableModel("tree_info does not give each tree an output")
    if "iteration_indptr" in model:
        ends = trees.integers("iteration_indptr", model["iteration_indptr"])
        if not len(ends) or ends[0] != 0 or ends[-1] != count or (np.diff(ends) <= 0).any():
            raise UnreadableModel("iteration_indptr does not divide the trees")


def _check_tree(name: str, tree: Any, width: int) -> None:
    if not isinstance(tree, dict):
        raise UnreadableModel(f"{name} is no object")
    parameters = _mapping(tree, "tree_param")
    if _count(parameters, "size_leaf_vector", "1") > 1:
        raise UnreadableModel(f"{name} has several outputs per leaf, which is not served")
    left, right, split = (
        trees.integers(name, tree.get(key)) for key in ("left_children", "right_children", "split_indices")
    )
    trees.check(name, left, right, split, width)
    if _count(parameters, "num_nodes") != len(left) or _count(parameters, "num_feature") > width:
        raise UnreadableModel(f"{name} claims other sizes than it has")
    _check_parents(name, tree, left, right)
    for key in LISTS:
        if len(_numbers(name, tree.get(key))) != len(left):
            raise UnreadableModel(f"{name}: {key} is not one number per node")
    for key in ("default_left", "split_type"):
        if not set(trees.integers(name, tree[key]).tolist()) <= {0, 1}:
            raise UnreadableModel(f"{name}: {key} is neither 0 nor 1")
    _check_categories(name, tree, left)


def _check_parents(name: str, tree: Mapping[str, Any], left: NDArray[np.int64], right: NDArray[np.int64]) -> None:
    """XGBoost walks upwards too. Nodes without a parent but the root must be those that it says it deleted."""
    parents = trees.integers(name, tree.get("parents"))
    if len(parents) != len(left) or parents[0] != NO_PARENT:
        raise UnreadableModel(f"{name}: parents is not one number per node, the root without")
    inner = np.flatnonzero(left != -1)
    if (parents[left[inner]] != inner).any() or (parents[right[inner]] != inner).any():
        raise UnreadableModel(f"{name}: a parent is not that of its children")
    if len(left) - 1 - 2 * len(inner) != _count(_mapping(tree, "tree_param"), "num_deleted", "0"):
        raise UnreadableModel(f"{name}: nodes hang nowhere")


def _numbers(name: str, found: object) -> NDArray[Any]:
    values = trees.array(found)
    if values.ndim != 1 or values.dtype.kind not in "fiub":
        raise UnreadableModel(f"{name}: not a list of numbers")
    return values


def _check_categories(name: str, tree: Mapping[str, Any], left: NDArray[np.int64]) -> None:
    nodes, starts, sizes, values = (
        trees.integers(name, tree.get(key, []))
        for key in ("categories_nodes", "categories_segments", "categories_sizes", "categories")
    )
    kinds = trees.integers(name, tree["split_type"])
    marked = np.flatnonzero((kinds != 0) & (left >= 0))
    if not np.array_equal(nodes, marked) or not len(nodes) == len(starts) == len(sizes):
        raise UnreadableModel(f"{name}: its category splits have no categories")
    if len(nodes) and ((starts < 0) | (sizes < 0) | (starts > len(values)) | (sizes > len(values) - starts)).any():
        raise UnreadableModel(f"{name}: a category split points outside the categories")
    if len(values) and (values.min() < 0 or values.max() > MAX_CATEGORY):
        raise UnreadableModel(f"{name}: a category is out of range")


def _categories(learner: Mapping[str, Any], types: Sequence[str] | None) -> Mapping[int, tuple[str, ...] | None] | None:
    """Category columns; their values too where the model was trained on a frame (XGBoost 3.1 and later)."""
    if types is None:
        return None
    booster = learner["gradient_booster"]
    stored = booster.get("gbtree", booster)["model"].get("cats")
    encoded = stored.get("enc") if isinstance(stored, dict) else None
    found: dict[int, tuple[str, ...] | None] = {}
    for place, kind in enumerate(types):
        if kind == "c":
            known = encoded[place] if isinstance(encoded, list) and len(encoded) == len(types) else None
            found[place] = _stored_values(known) if isinstance(known, dict) else None
    return found


def _stored_values(known: Mapping[str, Any]) -> tuple[str, ...] | None:
    values = known.get("values")
    if not isinstance(values, list | np.ndarray | None):
        raise UnreadableModel("the stored categories are damaged")
    if values is None or not len(values):
        return None
    if "offsets" not in known:
        numbers = trees.array(values)
        if numbers.ndim != 1:
            raise UnreadableModel("the stored categories are damaged")
        return tuple(str(value) for value in numbers.tolist())
    ends = trees.integers("categories", known["offsets"])
    letters = (trees.integers("categories", values) & 255).astype(np.uint8).tobytes()
    if not len(ends) or (np.diff(ends) < 0).any() or ends[0] != 0 or ends[-1] != len(letters):
        raise UnreadableModel("the stored categories are damaged")
    try:
        return tuple(letters[start:stop].decode() for start, stop in pairwise(ends.tolist()))
    except UnicodeDecodeError as error:
        raise UnreadableModel("a stored category is not UTF-8") from error


def _booster(name: str, document: Mapping[str, Any]) -> Any:
    """The booster; of a scikit-learn wrapper that stopped early, the iterations that the wrapper predicts with."""
    xgboost, learner = library("xgboost"), document["learner"]
    booster = xgboost.Booster()
    try:
        booster.load_model(bytearray(_rewritten(document)))
    except (xgboost.core.XGBoostError, ValueError, TypeError) as error:
        raise UnreadableModel(f"{name} is refused by XGBoost: {_first_line(error)}") from error
    attributes = learner.get("attributes")
    best = attributes.get("best_iteration") if isinstance(attributes, dict) else None
    if best is None or "scikit_learn" not in learner["attributes"]:
        return booster
    if not isinstance(best, str) or not best.isdecimal() or int(best) >= booster.num_boosted_rounds():
        raise UnreadableModel("best_iteration is not an iteration of the model")
    return booster[: int(best) + 1]


def _rewritten(document: Mapping[str, Any]) -> bytes:
    """What was checked, in JSON again: the reader must see neither another document nor the encoder of frames."""
    learner = document["learner"]
    booster = learner["gradient_booster"]
    if "gbtree" in booster:
        booster = {**booster, "gbtree": _without_frames(booster["gbtree"])}
    else:
        booster = _without_frames(booster)
    return json.dumps({**document, "learner": {**learner, "gradient_booster": booster}}, default=_listed).encode()


def _without_frames(booster: Mapping[str, Any]) -> dict[str, Any]:
    model = {name: value for name, value in booster["model"].items() if name != "cats"}
    return {**booster, "model": model}


def _listed(value: object) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise UnreadableModel("the XGBoost model holds a value of no known kind")


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
