"""Classifiers of texts in ONNX: one string input."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from explainers.errors import UnreadableModel
from explainers.predictors import onnx_graph
from explainers.predictors.binding import Mismatch, Schema, bind_texts
from explainers.predictors.contents import read
from explainers.table import Column

TEXTS = ["good film", "bad film", "good good play", "bad play", "a good one", "so bad", "good", "bad", "", "one"]
LABELS = np.array([1, 0, 1, 0, 1, 0, 1, 0, 0, 1])
SCHEMA = Schema((Column("review", "category"),), ("no", "yes"), "classification")


def save(folder: Path, shape: list[Any]) -> tuple[Path, Any]:
    model = make_pipeline(TfidfVectorizer(lowercase=False), LogisticRegression()).fit(TEXTS, LABELS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the converter
        onnx = convert_sklearn(model, initial_types=[("text", StringTensorType(shape))], options={"zipmap": False})
    (path := folder / "model.onnx").write_bytes(onnx.SerializeToString())
    return path, model


@pytest.mark.parametrize("shape", [[None], [None, 1]])
def test_texts_are_predicted_as_trained(shape: list[Any], tmp_path: Path) -> None:
    path, model = save(tmp_path, shape)
    bound = bind_texts(onnx_graph.load_texts(read(path)), SCHEMA)
    np.testing.assert_allclose(bound.predict(TEXTS), model.predict_proba(TEXTS), atol=1e-6)
    assert bound.predict([]).shape == (0, 2) and bound.space == "probability"


def test_classes_and_inputs_are_held_against_the_schema(tmp_path: Path) -> None:
    path, _ = save(tmp_path, [None])
    artifact = onnx_graph.load_texts(read(path))
    with pytest.raises(Mismatch, match="the schema has 'x', the artifact '0'"):
        bind_texts(artifact, Schema(SCHEMA.columns, SCHEMA.outputs, "classification", classes=("x", "1")))
    with pytest.raises(Mismatch, match="reads one attribute; the schema has 2"):
        bind_texts(artifact, Schema(SCHEMA.columns * 2, SCHEMA.outputs, "classification"))


def test_a_model_of_numbers_is_no_classifier_of_texts(tmp_path: Path) -> None:
    model = LogisticRegression().fit(LABELS[:, None], LABELS)
    onnx = convert_sklearn(model, initial_types=[("x", FloatTensorType([None, 1]))], options={"zipmap": False})
    (path := tmp_path / "m.onnx").write_bytes(onnx.SerializeToString())
    with pytest.raises(UnreadableModel, match="one input of strings"):
        onnx_graph.load_texts(read(path))


def test_a_fixed_number_of_rows_is_refused(tmp_path: Path) -> None:
    model = LogisticRegression().fit(LABELS[:, None], LABELS)
    onnx = convert_sklearn(model, initial_types=[("x", FloatTensorType([1, 1]))], options={"zipmap": False})
    (path := tmp_path / "m.onnx").write_bytes(onnx.SerializeToString())
    with pytest.raises(UnreadableModel, match="takes 1 rows only"):
        onnx_graph.load(read(path))
