"""From a folder on disk to a model that is explained exactly, or a reason why not."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSequenceClassification

from explainers import adapters, attention_control, pictures, self_test
from explainers.errors import UnreadableModel
from explainers.folders import (
    chat_template,
    check_files,
    check_same_family,
    check_same_tokens,
    context_length,
    device_of,
    digest_of,
    dtype_of,
    facts_about,
    first_with,
    join_digests,
    largest_id,
    read_image_processor,
    read_network,
    read_tokenizer,
    special_ids,
)
from explainers.image_text_model import ImageTextModel
from explainers.language_model import LanguageModel
from explainers.model_folder import inspect, read_object, steady
from explainers.predictors.artifact import Artifact, TextArtifact
from explainers.predictors.formats import load_artifact, load_text_artifact
from explainers.sequence_classifier import Kind, SequenceClassifier


@steady
def load_causal_lm(folder: Path, dtype: str | None = None, device: str | None = None) -> LanguageModel:
    """Load a causal LM saved by `save_pretrained`, and test that its attention can be suppressed exactly.

    `dtype` None: float32 on a CPU, the stored one on a GPU. `device` None: the first CUDA device where there is one.
    Raises UnreadableModel for a folder that holds no complete, safe model, MissingCapability for one we cannot explain.
    """
    network = _causal_network(folder, dtype, device)
    return _tested(causal_lm(network, (folder,), digest_of(folder)))


@steady
def load_fine_tune(folder: Path, base: Path, dtype: str | None = None, device: str | None = None) -> LanguageModel:
    """Load a fine-tune of the causal LM in the folder `base`: an adapter, merged into it, or a whole model.

    An adapter's tokenizer and chat template are those of its own folder, where it has them; its digest covers both
    folders. Arguments and errors as for `load_causal_lm`; UnreadableModel too for what is no fine-tune of that base.
    """
    check_files(base)
    inspect(folder)
    if not adapters.is_adapter(folder):
        check_files(folder)
        check_same_family(folder, base)
        return load_causal_lm(folder, dtype, device)
    if (folder / "tokenizer.json").is_file():
        check_same_tokens(folder, base)
    where = device_of(device)
    wanted = dtype_of(base, dtype, where)
    network: Any = adapters.merge(_causal_network(base, "float32", "cpu"), folder)
    network = network.to(dtype=wanted, device=where)
    return _tested(causal_lm(network, (folder, base), join_digests(digest_of(base), digest_of(folder))))


def _causal_network(folder: Path, dtype: str | None, device: str | None) -> Any:
    check_files(folder)
    if read_object(folder / "config.json").get("model_type") in pictures.FAMILIES:
        raise UnreadableModel("this is an image-text model: its kind is image-text-lm")
    return read_network(folder, AutoModelForCausalLM, attention_control.IMPLEMENTATION, dtype, device_of(device))


def causal_lm(network: Any, folders: Sequence[Path], digest: str) -> LanguageModel:
    """The model whose tokenizer and chat template are those of the first folder that has them; not tested yet."""
    spoken = first_with(folders, "tokenizer.json")
    tokenizer = read_tokenizer(spoken)
    start, separator = special_ids(spoken, tokenizer)
    length, facts = context_length(network), facts_about(network)
    chats = (chat_template(folder, spoken) for folder in folders)
    chat = next((chat for chat in chats if chat is not None), None)
    return LanguageModel(network, tokenizer, digest, length, start, separator, facts, chat=chat)


@steady
def load_image_text_lm(folder: Path, dtype: str | None = None, device: str | None = None) -> ImageTextModel:
    """Load a model of one of `pictures.FAMILIES` saved by `save_pretrained`, its image processor included.

    Arguments and errors as for `load_causal_lm`.
    """
    check_image_text(folder)
    text_only = {"text_config": attention_control.IMPLEMENTATION}  # the vision tower keeps its own
    network = read_network(folder, AutoModelForImageTextToText, text_only, dtype, device_of(device))
    return _tested(image_text_lm(network, folder, digest_of(folder)))


def check_image_text(folder: Path) -> None:
    """Raises UnreadableModel for a folder that is not safe or complete, or no image-text model's; as `family`."""
    check_files(folder)
    stored = read_object(folder / "config.json")
    if not isinstance(stored.get("vision_config"), dict):
        raise UnreadableModel("this model reads no images: its kind is causal-lm")
    pictures.family(stored)


def image_text_lm(network: Any, folder: Path, digest: str) -> ImageTextModel:
    """The model with the tokenizer, chat template and image processor of its folder; not tested yet."""
    family = pictures.family(read_object(folder / "config.json"))
    tokenizer = read_tokenizer(folder)
    start, separator = special_ids(folder, tokenizer)
    config: Any = network.config
    marks = [getattr(config, name, None) for name in ("image_token_id", "video_token_id")]
    return ImageTextModel(
        network,
        tokenizer,
        digest,
        context_length(network),
        start,
        separator,
        facts_about(network),
        frozenset(mark for mark in marks if mark is not None),
        chat=chat_template(folder),
        eyes=pictures.Eyes(read_image_processor(folder), config, family),
    )


def load_tabular(path: Path, dtype: str | None = None, device: str | None = None) -> Artifact:
    """Load a model of table rows, a file in one of `formats.FORMATS`, which runs on the CPU as it was saved.

    `device` is where other models run, and says nothing here. Raises UnreadableModel, MissingCapability.
    """
    _check_as_saved(dtype)
    return load_artifact(path)


def load_texts(path: Path, dtype: str | None = None, device: str | None = None) -> TextArtifact:
    """Load a classifier of texts: a folder as for `load_text_classifier`, or an ONNX file as for `load_tabular`."""
    if path.is_dir():
        return load_text_classifier(path, dtype, device)
    _check_as_saved(dtype)
    return load_text_artifact(path)


def _check_as_saved(dtype: str | None) -> None:
    if dtype is not None:
        raise UnreadableModel("a dtype is for models with a folder: this one computes as it was saved")


@steady
def load_text_classifier(folder: Path, dtype: str | None = None, device: str | None = None) -> SequenceClassifier:
    """Load a sequence classifier saved by `save_pretrained`: its outputs are the classes of its configuration.

    Arguments and errors as for `load_causal_lm`.
    """
    check_files(folder)
    network = read_network(folder, AutoModelForSequenceClassification, None, dtype, device_of(device))
    tokenizer, config = read_tokenizer(folder), network.config
    if largest_id(tokenizer) >= network.get_input_embeddings().num_embeddings:
        raise UnreadableModel("the tokenizer has more tokens than the model embeddings")
    stored = read_object(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    stated = stored.get("model_max_length")
    length = min(context_length(network), stated if isinstance(stated, int) and stated > 0 else 2**31)
    return SequenceClassifier(
        network,
        tokenizer,
        digest_of(folder),
        length,
        classes=tuple(str(config.id2label[place]) for place in range(config.num_labels)),
        kind=_classifier_kind(config),
        pad=_token_id(config.pad_token_id, stored.get("pad_token"), tokenizer),
        mask=_token_id(None, stored.get("mask_token"), tokenizer),
        facts=facts_about(network),
    )


def _classifier_kind(config: Any) -> Kind:
    """As transformers trains: by `problem_type`, and a single label without one is a value."""
    if config.problem_type == "multi_label_classification":
        return "multi-label"
    if config.problem_type == "regression" or (config.problem_type is None and config.num_labels == 1):
        return "value"
    if config.num_labels == 1:
        raise UnreadableModel("a classifier of one class says nothing: give it two, or problem_type regression")
    return "single-label"


def _token_id(known: int | None, name: Any, tokenizer: Tokenizer) -> int | None:
    text = name.get("content") if isinstance(name, dict) else name
    return known if known is not None or not isinstance(text, str) else tokenizer.token_to_id(text)


AnyModel = TypeVar("AnyModel", bound=LanguageModel)


def _tested(model: AnyModel) -> AnyModel:
    if largest_id(model.tokenizer) >= model.vocabulary_size:
        raise UnreadableModel(
            f"the tokenizer has {model.tokenizer.get_vocab_size()} tokens and ids up to {largest_id(model.tokenizer)}, "
            f"the model {model.vocabulary_size} embeddings"
        )
    return replace(model, facts={**model.facts, "self_test": self_test.run(model)})


def use_cores(count: int | None = None) -> None:
    """Let models use `count` CPU cores; None: all this process may use but one.

    The spare core matters more than it counts: arithmetic that is spread over a core which the server or its database
    needs too waits at every step for the slowest part.
    """
    torch.set_num_threads(count or max(1, len(os.sched_getaffinity(0)) - 1))


Model: TypeAlias = LanguageModel | Artifact | TextArtifact

FINE_TUNES: Mapping[str, Callable[[Path, Path, str | None, str | None], Model]] = {"causal-lm": load_fine_tune}
"""Kind of model -> the loader of a fine-tune, which is given the folder of its base too."""

LOADERS: Mapping[str, Callable[[Path, str | None, str | None], Model]] = {
    "causal-lm": load_causal_lm,
    "image-text-lm": load_image_text_lm,
    "tabular": load_tabular,
    "text-classifier": load_texts,
}
"""Kind of model -> its loader."""

PREDICTORS = ("tabular", "text-classifier")
"""Kinds of models that explain stored inferences; the others complete prompts."""


def facts_of(model: Model) -> Mapping[str, Any]:
    """What is worth knowing of a loaded model."""
    if isinstance(model, LanguageModel | SequenceClassifier):
        return model.facts
    said = model.signature
    return {"format": model.format, "inputs": said.width, "outputs": said.outputs, "classes": said.classes}
