"""Classifiers of texts: what transformers says, whatever is batched; and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from explainers import sequence_classifier
from explainers.errors import ContextLengthExceeded, UnreadableModel
from explainers.loaders import load_text_classifier
from explainers.predictors.binding import Mismatch, Schema, bind_texts
from explainers.table import Column
from tests.explainers import tiny_classifiers

TEXTS = ["Anna lives in Oslo.", "", "The key", "Ben lives in Rome. The key is in the red box.", "Oslo", "Anna"] * 3
TEXT = (Column("text", "category"),)


def reference(folder: Path, text: str) -> torch.Tensor:
    words = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    words = {name: value for name, value in words.items() if name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        logits: torch.Tensor = AutoModelForSequenceClassification.from_pretrained(folder)(**words).logits[0].double()
    return logits


@pytest.mark.parametrize("family", tiny_classifiers.FAMILIES)
def test_probabilities_are_those_of_transformers(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence_classifier, "BATCH_TOKENS", 40)
    folder = tiny_classifiers.save(tmp_path / "m", family)
    model = load_text_classifier(folder)
    found = model.predict(TEXTS)
    assert found.shape == (len(TEXTS), 3) and model.space == "probability"
    for text, row in list(zip(TEXTS, found, strict=True))[:6]:
        np.testing.assert_allclose(row, reference(folder, text).softmax(dim=-1), atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-12)


def test_labels_of_their_own_go_through_a_sigmoid(tmp_path: Path) -> None:
    folder = tiny_classifiers.save(tmp_path / "m", problem_type="multi_label_classification")
    model = load_text_classifier(folder)
    np.testing.assert_allclose(model.predict(TEXTS[:1])[0], reference(folder, TEXTS[0]).sigmoid(), atol=1e-6)
    assert bind_texts(model, Schema(TEXT, ("a", "b", "c"), "multilabel")).outputs == ("a", "b", "c")
    with pytest.raises(Mismatch, match="declare it as multi-label"):
        bind_texts(model, Schema(TEXT, ("a", "b", "c"), "classification"))


def test_a_single_label_is_a_value(tmp_path: Path) -> None:
    folder = tiny_classifiers.save(tmp_path / "m", num_labels=1)
    model = load_text_classifier(folder)
    np.testing.assert_allclose(model.predict(TEXTS[:1])[0], reference(folder, TEXTS[0]), atol=1e-5)
    assert bind_texts(model, Schema(TEXT, ("score",), "regression")).space == "value"
    with pytest.raises(Mismatch, match="the schema declares classification; the artifact predicts values"):
        bind_texts(model, Schema(TEXT, ("score",), "classification"))


def test_without_a_padding_token_texts_go_one_by_one(tmp_path: Path) -> None:
    folder = tiny_classifiers.save(tmp_path / "m", "llama", pad_token_id=None)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    model = load_text_classifier(folder)
    assert model.pad is None
    np.testing.assert_allclose(model.predict(TEXTS[:1])[0], reference(folder, TEXTS[0]).softmax(dim=-1), atol=1e-6)


def test_bound_outputs_lie_as_the_classes(tmp_path: Path) -> None:
    labels = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}, "num_labels": 2}
    model = load_text_classifier(tiny_classifiers.save(tmp_path / "m", **labels))
    bound = bind_texts(model, Schema(TEXT, ("no", "yes"), "classification"))
    np.testing.assert_array_equal(bound.predict(TEXTS), model.predict(TEXTS))
    assert (bound.digest, bound.predict([]).shape) == (model.digest, (0, 2))
    with pytest.raises(Mismatch, match="classes differ at position 0: the schema has 'yes', the artifact 'no'"):
        bind_texts(model, Schema(TEXT, ("yes", "no"), "classification"))
    with pytest.raises(Mismatch, match=r"the schema has 3 outputs .* the artifact 2"):
        bind_texts(model, Schema(TEXT, ("a", "b", "c"), "classification"))


def test_classes_may_be_declared_by_their_numbers(tmp_path: Path) -> None:
    names = {0: "no", 1: "perhaps", 2: "yes"}
    labels = {"id2label": names, "label2id": {label: number for number, label in names.items()}}
    model = load_text_classifier(tiny_classifiers.save(tmp_path / "m", **labels))
    schema = Schema(TEXT, ("a", "b", "c"), "classification", classes=("0", "1", "2"))
    np.testing.assert_array_equal(bind_texts(model, schema).predict(TEXTS), model.predict(TEXTS))
    for declared in (("0", "2", "1"), ("1", "2", "3"), ("0", "1", "yes"), ("0", "0", "1")):
        with pytest.raises(Mismatch, match="classes differ at position"):
            bind_texts(model, replace(schema, classes=declared))


def test_numbers_that_are_labels_themselves_are_taken_as_such(tmp_path: Path) -> None:
    labels = {"id2label": {0: "1", 1: "0"}, "label2id": {"1": 0, "0": 1}, "num_labels": 2}
    model = load_text_classifier(tiny_classifiers.save(tmp_path / "m", **labels))
    schema = Schema(TEXT, ("yes", "no"), "classification", classes=("1", "0"))
    assert bind_texts(model, schema).outputs == ("yes", "no")
    with pytest.raises(Mismatch, match="the schema has '0', the artifact '1'"):
        bind_texts(model, replace(schema, classes=("0", "1")))


def test_long_texts_are_refused_not_cut(tmp_path: Path) -> None:
    model = load_text_classifier(tiny_classifiers.save(tmp_path / "m"))
    with pytest.raises(ContextLengthExceeded, match="the model reads 64"):
        model.predict(["Anna " * 100])


def test_other_weights_are_refused(tmp_path: Path) -> None:
    folder = tiny_classifiers.save(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnreadableModel, match="can run code"):
        load_text_classifier(folder)
