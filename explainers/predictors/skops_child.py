"""The scikit-learn model of a .skops file, in a process of its own: it is read there, then predicts until the end.

Runs inside `sandbox`; asked by `skops_model`.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.abc import MetaPathFinder
from typing import Any

import numpy as np

from explainers.confined.sandbox import Refusal
from explainers.errors import UnreadableModel
from explainers.predictors import trees

TRUSTED = (
    "numpy.dtype",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.compose._column_transformer._RemainderColsList",
    "sklearn.compose._column_transformer.make_column_selector",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.feature_selection._univariate_selection.f_classif",
    "sklearn.feature_selection._univariate_selection.f_regression",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.tree._tree.Tree",
    "sklearn.utils._bunch.Bunch",
)
"""What fitted models of scikit-learn hold beside the types skops trusts: containers of numbers. Their trees are checked
below, as skops advises."""
UNUSED = frozenset({"torch", "pytest"})
"""What skops and scikit-learn import where it is installed, and need for nothing that a stored model does: half of the
processor time of a start, and of the memory.
"""
FORESTS = ("RandomForest", "ExtraTrees", "DecisionTree", "ExtraTree")
BOOSTED = ("GradientBoosting", "HistGradientBoosting")


class Uninstalled(MetaPathFinder):
    """Makes them look so."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname in UNUSED:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


class Served:
    """The model, once loaded, and its tree explainer, once asked for."""

    def __init__(self) -> None:
        sys.meta_path.insert(0, Uninstalled())
        self.model: Any = None
        self.explainer: Any = None

    def answer(self, header: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        if header["ask"] == "load":
            self.model = load(payload)
            return facts(self.model), b""
        cells = np.frombuffer(payload, dtype="<f8").reshape(header["rows"], header["width"])
        rows = inputs(self.model, cells, header["names"], header["levels"])
        work: dict[str, Callable[[Any], tuple[dict[str, Any], bytes]]] = {
            "predict": self.predict,
            "contributions": self.contributions,
        }
        return work[header["ask"]](rows)

    def predict(self, rows: Any) -> tuple[dict[str, Any], bytes]:
        return packed({"found": outputs(self.model, rows)})

    def contributions(self, rows: Any) -> tuple[dict[str, Any], bytes]:
        """Path-dependent TreeSHAP; `output` says what the trees add up to."""
        if self.explainer is None:
            self.explainer = tree_explainer(self.model)
        rows = np.asarray(rows, dtype=np.float64)
        values = np.asarray(self.explainer.shap_values(rows, check_additivity=False), dtype=np.float64)
        values = values.reshape(len(rows), rows.shape[1], -1).transpose(0, 2, 1)
        base = np.atleast_1d(np.asarray(self.explainer.expected_value, dtype=np.float64))
        output, margins = tree_output(self.model, rows)
        answer, numbers = packed({"values": values, "base": base, "margins": margins})
        return answer | {"output": output}, numbers


def packed(arrays: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    return {"arrays": shapes}, b"".join(np.ascontiguousarray(array, dtype="<f8").tobytes() for array in arrays.values())


def load(data: bytes) -> Any:
    """The model of a .skops file of trusted types, its trees checked. Raises Refusal."""
    skops, untrusted = import_module("skops.io"), import_module("skops.io.exceptions").UntrustedTypesFoundException
    try:
        model = skops.load(io.BytesIO(data), trusted=list(TRUSTED))
    except untrusted as error:
        raise Refusal("unreadable", f"types that are not trusted: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # broken files break the library in many ways
        raise Refusal("unreadable", f"{type(error).__name__}: {error}") from error
    if not hasattr(model, "predict"):
        raise Refusal("unreadable", f"{type(model).__name__} is no model")
    check_trees(model)
    alone = {name: 1 for name in model.get_params() if name.split("__")[-1] == "n_jobs"}
    return model.set_params(**alone)


def check_trees(model: Any) -> None:
    """Every tree inside: scikit-learn follows their numbers without looking."""
    width = int(getattr(model, "n_features_in_", 2**20))
    for number, (left, right, features, within) in enumerate(_trees(model)):
        try:
            trees.check(f"tree {number}", left, right, features, within or width)
        except UnreadableModel as error:
            raise Refusal("unreadable", str(error)) from error


def _trees(model: Any) -> Iterator[tuple[Any, Any, Any, int | None]]:
    fast = import_module("sklearn.ensemble._hist_gradient_boosting.predictor").TreePredictor
    plain = import_module("sklearn.tree._tree").Tree
    for found in _parts(model):
        if isinstance(found, plain):
            left, right = found.children_left.astype(np.int64), found.children_right.astype(np.int64)
            yield left, right, found.feature.astype(np.int64), int(found.n_features)
        elif isinstance(found, fast):
            nodes = found.nodes
            leaf = nodes["is_leaf"] != 0
            left, right = (np.where(leaf, -1, nodes[side].astype(np.int64)) for side in ("left", "right"))
            sets = nodes["bitset_idx"][(nodes["is_categorical"] != 0) & ~leaf]
            bitsets = (found.raw_left_cat_bitsets, found.binned_left_cat_bitsets)
            if len(sets) and any(sets.max() >= len(bits) for bits in bitsets):
                raise Refusal("unreadable", "a category split points nowhere")
            yield left, right, nodes["feature_idx"].astype(np.int64), None


def _parts(model: Any) -> Iterator[Any]:
    """All objects that a model holds, however deep."""
    waiting, seen = [model], set()
    while waiting:
        part = waiting.pop()
        if id(part) in seen or isinstance(part, str | bytes | int | float | type(None)):
            continue
        seen.add(id(part))
        yield part
        if isinstance(part, dict):
            waiting.extend(part.values())
        elif isinstance(part, list | tuple | set):
            waiting.extend(part)
        elif isinstance(part, np.ndarray):
            waiting.extend(part.ravel().tolist() if part.dtype == object else [])
        else:
            waiting.extend(vars(part).values() if hasattr(part, "__dict__") else [])


def facts(model: Any) -> dict[str, Any]:
    kinds = import_module("sklearn.base")
    classifier = bool(kinds.is_classifier(model))
    if not classifier and not kinds.is_regressor(model):
        raise Refusal("unreadable", f"{type(model).__name__} is neither a classifier nor a regressor")
    if classifier and not hasattr(model, "predict_proba"):
        raise Refusal(
            "unreadable", f"{type(model).__name__} gives no probabilities: calibrate it with CalibratedClassifierCV"
        )
    names, classes = getattr(model, "feature_names_in_", None), getattr(model, "classes_", None)
    several = isinstance(classes, list) or getattr(model, "multilabel_", False) is True
    return {
        "classifier": classifier,
        "several": several,
        "classes": None if several or classes is None else [str(label) for label in classes],
        "width": int(model.n_features_in_) if hasattr(model, "n_features_in_") else None,
        "names": None if names is None else [str(name) for name in names],
        "type": type(model).__name__,
    }


def inputs(model: Any, cells: Any, names: list[str], levels: list[list[str] | None]) -> Any:
    """Rows as the model was trained on: a frame where it knows its columns by name, else an array; NaN is null."""
    categories = {place: known for place, known in enumerate(levels) if known is not None}
    if not hasattr(model, "feature_names_in_"):
        if not categories:
            return cells
        mixed = cells.astype(object)
        for place, known in categories.items():
            mixed[:, place] = _words(cells[:, place], known)
        return mixed
    try:
        pandas = import_module("pandas")
    except ImportError as error:
        raise Refusal("capability", "the model was trained on a frame: pip install pandas") from error
    columns = {
        name: _words(cells[:, place], categories[place]) if place in categories else cells[:, place]
        for place, name in enumerate(names)
    }
    return pandas.DataFrame(columns)


def _words(cells: Any, known: list[str]) -> Any:
    words = np.array([*known, np.nan], dtype=object)
    return words[np.where(np.isnan(cells), len(known), cells).astype(int)]


def outputs(model: Any, rows: Any) -> Any:  # (n, K)
    if not import_module("sklearn.base").is_classifier(model):
        return np.asarray(model.predict(rows), dtype=np.float64).reshape(len(rows), -1)
    found = model.predict_proba(rows)
    if isinstance(found, list):  # one array per label
        if any(shares.shape[1] != 2 for shares in found):
            raise Refusal("capability", "only labels of two classes each can be explained")
        return np.stack([shares[:, 1] for shares in found], axis=1)
    return np.asarray(found, dtype=np.float64)


def tree_explainer(model: Any) -> Any:
    name = type(model).__name__
    if not name.startswith((*FORESTS, *BOOSTED)):
        raise Refusal("capability", f"{name} is no tree model, so TreeSHAP does not apply")
    try:
        return import_module("shap").TreeExplainer(model, feature_perturbation="tree_path_dependent")
    except ImportError as error:
        raise Refusal("capability", "shap is not installed: pip install -c constraints.txt -e .") from error
    except Exception as error:  # the library refuses models with errors of many classes
        raise Refusal("capability", f"shap cannot explain {name}: {error}") from error


def tree_output(model: Any, rows: Any) -> tuple[str, Any]:  # (n, G)
    """What the trees add up to, and by which name."""
    boosted = type(model).__name__.startswith(BOOSTED)
    if hasattr(model, "predict_proba"):
        found = model.decision_function(rows) if boosted else model.predict_proba(rows)
        return ("margin" if boosted else "probability"), np.asarray(found).reshape(len(rows), -1)
    return "value", model.predict(rows).reshape(len(rows), -1)
