"""Formats of table models, one line each: a file's name says which is meant, its content must agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from explainers.errors import UnreadableModel
from explainers.predictors import lightgbm_trees, onnx_graph, skops_model, xgboost_trees
from explainers.predictors.artifact import Artifact, TextArtifact
from explainers.predictors.contents import MAX_BYTES, Content, read

FORMATS: Mapping[str, Callable[[Content], Artifact]] = {
    ".onnx": onnx_graph.load,
    ".json": xgboost_trees.load,
    ".ubj": xgboost_trees.load,
    ".txt": lightgbm_trees.load,
    ".skops": skops_model.load,
}
"""Ending of a file's name -> its loader."""


def load_artifact(path: Path, limit: int = MAX_BYTES) -> Artifact:
    """The model in a file of at most `limit` bytes. Raises UnreadableModel, MissingCapability without its library."""
    content = read(path, limit)  # first: what could run code is refused under any name
    loader = FORMATS.get(path.suffix.lower())
    if loader is None:
        raise UnreadableModel(f"{path.name}: a model of tables is a file in {', '.join(FORMATS)}")
    return loader(content)


def load_text_artifact(path: Path, limit: int = MAX_BYTES) -> TextArtifact:
    """The classifier of texts in an ONNX file. Errors as for `load_artifact`."""
    content = read(path, limit)
    if path.suffix.lower() != ".onnx":
        raise UnreadableModel(f"{path.name}: a classifier of texts is a folder, or a file in .onnx")
    return onnx_graph.load_texts(content)
