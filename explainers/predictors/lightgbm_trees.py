"""LightGBM models as `save_model` writes them: text.

LightGBM's own reader believes what it reads, runs in this process, takes for a number whatever begins like one, and
ends the process where it does not know how to go on. So the file is read here first, and what was checked is written
anew for it: of the trees what predictions and attributions need, with the numbers as they stand in the file; nothing of
the training, whose parameters can name other files.
"""

from __future__ import annotations

import json
import re
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
SEVERAL = ("multiclass", "multiclassova")
MAX_OUTPUTS = 10_000
BARE_LINES = ("tree", "average_output")
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")
COUNT = re.compile(r"[0-9]{1,9}")
INTEGER = re.compile(r"-?[0-9]{1,18}")
NUMBER = re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?(?:e[-+]?[0-9]{1,3})?")
START, END = b"tree\n", b"end of trees"
PER_SPLIT = ("split_feature", "threshold", "decision_type", "left_child", "right_child")
OF_MODEL = ("num_class", "num_tree_per_iteration", "max_feature_idx", "objective", "feature_names")
OF_TREE = (
    *("num_leaves", "num_cat", *PER_SPLIT, "internal_value", "internal_count", "leaf_value", "leaf_count"),
    *("cat_boundaries", "cat_threshold"),
)
CATEGORICAL, DECISIONS = 1, 16
"""The bit of a split's `decision_type` that marks a set of categories, and how many types there are."""


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
    names, infos = (listed(header, key) for key in ("feature_names", "feature_infos"))
    if _count(header, "max_feature_idx") + 1 != len(names) or len(names) != len(infos):
        raise UnreadableModel("max_feature_idx, feature_names and feature_infos differ in length")
    outputs = _outputs(header, len(blocks))
    found = [_fields(block) for block in blocks]
    for number, tree in enumerate(found):
        _check_tree(f"tree {number}", tree, len(names))
    objective = _objective(header, outputs)
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
    booster = _booster(content, _rewritten(header, found))
    return LightgbmTrees(booster, signature, content.digest, TreeExplainer(booster))


def _blocks(body: bytes) -> tuple[bytes, list[bytes]]:
    """The header, and the text of each tree, cut where `tree_sizes` says: LightGBM jumps by these numbers."""
    start = body.find(b"\nTree=0\n") + 1
    if not start:
        raise UnreadableModel("the LightGBM model has no trees")
    head = body[:start]
    sizes = listed(_fields(head), "tree_sizes")
    blocks, place = [], start
    for number, size in enumerate(sizes):
        if not COUNT.fullmatch(size) or not body.startswith(b"Tree=%d\n" % number, place):
            raise UnreadableModel("tree_sizes do not fit the trees")
        blocks.append(body[place : place + int(size)])
        place += int(size)
    if place != len(body):
        raise UnreadableModel("tree_sizes do not add up to the trees")
    return head, blocks


def _fields(text: bytes) -> Mapping[str, str]:
    try:
        whole = text.decode()
    except UnicodeDecodeError as error:
        raise UnreadableModel("the LightGBM model is not UTF-8") from error
    if CONTROL.search(whole):
        raise UnreadableModel("the LightGBM model has other ends of lines, or control characters")
    found: dict[str, str] = {}
    for line in filter(None, whole.split("\n")):
        name, sign, value = line.partition("=")
        if not (sign or line in BARE_LINES):
            raise UnreadableModel(f"the LightGBM model has a line that states nothing: {line[:40]!r}")
        if name in found:
            raise UnreadableModel(f"the LightGBM model states {name[:40]!r} twice")
        found[name] = value
    return found


def listed(fields: Mapping[str, str], name: str) -> list[str]:
    """The words of a list; between two stands one space, and nothing else that anybody takes for one."""
    value = fields.get(name, "")
    words = value.split()
    if " ".join(words) != value:
        raise UnreadableModel(f"{name} is not a list with single spaces")
    return words


def _count(fields: Mapping[str, str], name: str) -> int:
    value = fields.get(name, "")
    if not COUNT.fullmatch(value):
        raise UnreadableModel(f"{name} is not a count")
    return int(value)


def _outputs(header: Mapping[str, str], count: int) -> int:
    classes, outputs = _count(header, "num_class"), _count(header, "num_tree_per_iteration")
    if classes != outputs or not 0 < outputs <= MAX_OUTPUTS or count % outputs:
        raise UnreadableModel(f"{count} trees do not make {outputs} outputs of {classes} classes")
    return outputs


def _objective(header: Mapping[str, str], outputs: int) -> str:
    """Its name. What it says behind that is obeyed: so many outputs are written as `num_class` says there."""
    name, *settings = listed({"objective": "regression"} | dict(header), "objective") or [""]
    if name not in (*SHARES, *VALUES):
        raise UnreadableModel(f"objective {name[:40]!r} predicts neither shares nor values")
    stated = dict(setting.partition(":")[::2] for setting in settings)
    if len(stated) != len(settings) or not all(NUMBER.fullmatch(value or "0") for value in stated.values()):
        raise UnreadableModel("the objective has settings that are not numbers, or one twice")
    if stated.get("num_class", "1") != str(outputs) or (outputs > 1 and name not in SEVERAL):
        raise UnreadableModel(f"objective {name!r} does not have the {outputs} outputs of the trees")
    return name


def _check_tree(name: str, tree: Mapping[str, str], width: int) -> None:
    leaves = _count(tree, "num_leaves")
    if tree.get("is_linear", "0") != "0":
        raise UnreadableModel(f"{name}: trees with linear leaves are not served")
    if not 0 < leaves < 2**24 or len(_numbers(tree, "leaf_value", float)) != leaves:
        raise UnreadableModel(f"{name}: leaf_value is not one number per leaf")
    if len(_numbers(tree, "leaf_count", int)) not in (0, leaves):
        raise UnreadableModel(f"{name}: leaf_count is not one number per leaf")
    if leaves == 1 and _count(tree, "num_cat"):
        raise UnreadableModel(f"{name}: num_cat is not the number of its category splits")
    if leaves > 1:
        _check_splits(name, tree, leaves, width)


def _check_splits(name: str, tree: Mapping[str, str], leaves: int, width: int) -> None:
    columns = {key: _numbers(tree, key, float if key == "threshold" else int) for key in PER_SPLIT}
    beside = (_numbers(tree, "internal_value", float), _numbers(tree, "internal_count", int))
    lengths = {len(column) for column in (*columns.values(), *beside)}
    if lengths - {0} != {leaves - 1} or any(not len(column) for column in columns.values()):
        raise UnreadableModel(f"{name}: its lists are not one number per split")
    if not ((columns["decision_type"] >= 0) & (columns["decision_type"] < DECISIONS)).all():
        raise UnreadableModel(f"{name}: a decision_type is none")
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
    words, form = listed(tree, key), NUMBER if kind is float else INTEGER
    endless = "inf" if key == "threshold" else None  # of a split that parts what is missing from all else
    if not all(word == endless or form.fullmatch(word) for word in words):
        raise UnreadableModel(f"{key} is not a list of numbers")
    values = np.array(words, dtype=np.float64)
    if endless is None and not np.isfinite(values).all():
        raise UnreadableModel(f"{key}: a number is too large")
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


def _rewritten(header: Mapping[str, str], found: list[Mapping[str, str]]) -> str:
    blocks = [
        "\n".join([f"Tree={number}", *(f"{key}={tree[key]}" for key in OF_TREE if key in tree), "", "", ""])
        for number, tree in enumerate(found)
    ]
    average = ["average_output"] if "average_output" in header else []
    stated = [f"{key}={header[key]}" for key in OF_MODEL if key in header]
    infos = " ".join("none" for _ in listed(header, "feature_infos"))  # ranges and categories, which nothing looks at
    sizes = " ".join(str(len(block)) for block in blocks)
    head = ["tree", "version=v4", "label_index=0", *average, *stated, f"feature_infos={infos}", f"tree_sizes={sizes}"]
    return "\n".join([*head, "", ""]) + "".join(blocks) + END.decode() + "\n"


def _booster(content: Content, text: str) -> Any:
    lightgbm = library("lightgbm")
    try:
        return lightgbm.Booster(model_str=text)
    except (lightgbm.basic.LightGBMError, ValueError) as error:
        raise UnreadableModel(f"{content.name} is refused by LightGBM: {str(error)[:200]}") from error
