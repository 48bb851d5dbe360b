"""Small real predictors on disk, and the definitions of the models they predict for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import xgboost
from numpy.typing import NDArray
from transformers import BertConfig, BertForSequenceClassification

from tests import tiny_models

INPUTS = ("income", "tenure", "age")
WHEN = "2026-03-01T08:00:00Z"


def definition(name: str, **changes: Any) -> dict[str, Any]:
    """Of the model that `boosted` predicts for."""
    inputs = [
        {"name": each, "value_type": "FLOAT", "stage": "PIPELINE_INPUT", "position": place}
        for place, each in enumerate(INPUTS)
    ]
    outputs = [
        {"name": "stays", "value_type": "FLOAT", "stage": "PREDICTED_VALUE", "position": 0, "gt_class_link": "0"},
        {
            "name": "leaves",
            "value_type": "FLOAT",
            "stage": "PREDICTED_VALUE",
            "position": 1,
            "gt_class_link": "1",
            "is_positive_predicted_attribute": True,
        },
    ]
    truth = {"name": "left", "value_type": "INTEGER", "stage": "GROUND_TRUTH_CLASS", "position": 0}
    whole = {"partner_model_id": name, "input_type": "TABULAR", "output_type": "MULTICLASS"}
    return whole | {"attributes": [*inputs, *outputs, truth]} | changes


def rows(count: int, seed: int = 0) -> NDArray[np.float64]:  # (count, 3)
    return np.random.default_rng(seed).normal(size=(count, len(INPUTS))).round(3)


def boosted(folder: Path, name: str = "churn", trees: int = 20) -> Path:
    """Trees of two classes, as a file; `predicted` says what they answer."""
    values = rows(400, seed=9)
    labels = (values[:, 0] - 2 * values[:, 1] * values[:, 2] > 0).astype(int)
    model = xgboost.XGBClassifier(n_estimators=trees, max_depth=3, random_state=0, n_jobs=1).fit(values, labels)
    path = folder / f"{name}.json"
    model.save_model(path)
    return path


def predicted(path: Path, values: NDArray[np.float64]) -> NDArray[np.float64]:  # (n, 3) -> (n, 2)
    model = xgboost.XGBClassifier()
    model.load_model(path)
    found: NDArray[np.float64] = model.predict_proba(values).astype(float)
    return found


def records(path: Path, values: NDArray[np.float64], prefix: str = "u") -> list[dict[str, Any]]:
    """Inferences with what the model in the file predicts for them."""
    pairs = zip(values.tolist(), predicted(path, values).tolist(), strict=True)
    return [
        {
            "partner_inference_id": f"{prefix}-{place}",
            "inference_timestamp": WHEN,
            "inference_data": dict(zip(INPUTS, row, strict=True)) | {"stays": output[0], "leaves": output[1]},
        }
        for place, (row, output) in enumerate(pairs)
    ]


def text_definition(name: str) -> dict[str, Any]:
    attributes = [
        {"name": "note", "value_type": "UNSTRUCTURED_TEXT", "stage": "PIPELINE_INPUT", "position": 0},
        {"name": "routine", "value_type": "FLOAT", "stage": "PREDICTED_VALUE", "position": 0},
        {"name": "urgent", "value_type": "FLOAT", "stage": "PREDICTED_VALUE", "position": 1},
    ]
    return {"partner_model_id": name, "input_type": "NLP", "output_type": "MULTICLASS", "attributes": attributes}


def text_classifier(folder: Path) -> Path:
    """A tiny random encoder of two classes."""
    torch.manual_seed(0)
    tokenizer = tiny_models.tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        pad_token_id=0,
        initializer_range=1.0,
        id2label={0: "routine", 1: "urgent"},
        label2id={"routine": 0, "urgent": 1},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
