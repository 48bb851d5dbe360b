"""From a folder on disk to a model that is explained exactly, or a reason why not.

Nothing here unpickles or runs code that came with a model: weights are safetensors, architectures those of the
installed transformers, tokenizers the `tokenizer.json` of a fast tokenizer, image processors those that need no more
than Pillow.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.utils.logging import disable_progress_bar

from explainers import attention_control, pictures, self_test
from explainers.chat_template import ChatTemplate
from explainers.errors import MissingCapability, UnreadableModel
from explainers.image_text_model import ImageTextModel
from explainers.language_model import LanguageModel
from explainers.predictors.artifact import Artifact, TextArtifact
from explainers.predictors.formats import load_artifact, load_text_artifact
from explainers.sequence_classifier import Kind, SequenceClassifier

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


_LOADING = threading.Lock()
"""transformers exchanges functions of its classes while it loads a model, and two loads at once would exchange them for
good: tied weights then are never tied again."""


def load_causal_lm(folder: Path, dtype: str | None = None, device: str | None = None) -> LanguageModel:
    """Load a causal LM saved by `save_pretrained`, and test that its attention can be suppressed exactly.

    `dtype` None: float32 on a CPU, the stored one on a GPU. `device` None: the first CUDA device where there is one.
    Raises UnreadableModel for a folder that holds no complete, safe model, MissingCapability for one we cannot explain.
    """
    _check_files(folder)
    config = _json(folder / "config.json")
    if config.get("model_type") in pictures.FAMILIES:
        raise UnreadableModel("this is an image-text model: its kind is image-text-lm")
    network = _network(folder, AutoModelForCausalLM, attention_control.IMPLEMENTATION, dtype, _device(device))
    tokenizer = _tokenizer(folder)
    start, separator = _special_ids(folder, tokenizer)
    length, facts = _context_length(network), _facts(network)
    chat = _chat_template(folder)
    return _tested(LanguageModel(network, tokenizer, _digest(folder), length, start, separator, facts, chat=chat))


def load_image_text_lm(folder: Path, dtype: str | None = None, device: str | None = None) -> ImageTextModel:
    """Load a model of one of `pictures.FAMILIES` saved by `save_pretrained`, its image processor included.

    Arguments and errors as for `load_causal_lm`.
    """
    _check_files(folder)
    stored = _json(folder / "config.json")
    if not isinstance(stored.get("vision_config"), dict):
        raise UnreadableModel("this model reads no images: its kind is causal-lm")
    family = pictures.family(stored)
    text_only = {"text_config": attention_control.IMPLEMENTATION}  # the vision tower keeps its own
    network = _network(folder, AutoModelForImageTextToText, text_only, dtype, _device(device))
    tokenizer = _tokenizer(folder)
    start, separator = _special_ids(folder, tokenizer)
    config: Any = network.config
    marks = [getattr(config, name, None) for name in ("image_token_id", "video_token_id")]
    model = ImageTextModel(
        network,
        tokenizer,
        _digest(folder),
        _context_length(network),
        start,
        separator,
        _facts(network),
        frozenset(mark for mark in marks if mark is not None),
        chat=_chat_template(folder),
        eyes=pictures.Eyes(_image_processor(folder), config, family),
    )
    return _tested(model)


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


def load_text_classifier(folder: Path, dtype: str | None = None, device: str | None = None) -> SequenceClassifier:
    """Load a sequence classifier saved by `save_pretrained`: its outputs are the classes of its configuration.

    Arguments and errors as for `load_causal_lm`.
    """
    _check_files(folder)
    network = _network(folder, AutoModelForSequenceClassification, None, dtype, _device(device))
    tokenizer, config = _tokenizer(folder), network.config
    if tokenizer.get_vocab_size() > network.get_input_embeddings().num_embeddings:
        raise UnreadableModel("the tokenizer has more tokens than the model embeddings")
    stored = _json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    stated = stored.get("model_max_length")
    length = min(_context_length(network), stated if isinstance(stated, int) and stated > 0 else 2**31)
    return SequenceClassifier(
        network,
        tokenizer,
        _digest(folder),
        length,
        classes=tuple(str(config.id2label[place]) for place in range(config.num_labels)),
        kind=_classifier_kind(config),
        pad=_token_id(config.pad_token_id, stored.get("pad_token"), tokenizer),
        mask=_token_id(None, stored.get("mask_token"), tokenizer),
        facts=_facts(network),
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
    if model.tokenizer.get_vocab_size() > model.vocabulary_size:
        raise UnreadableModel(
            f"the tokenizer has {model.tokenizer.get_vocab_size()} tokens, the model {model.vocabulary_size} embeddings"
        )
    return replace(model, facts={**model.facts, "self_test": self_test.run(model)})


def use_cores(count: int | None = None) -> None:
    """Let models use `count` CPU cores; None: all this process may use but one.

    The spare core matters more than it counts: arithmetic that is spread over a core which the server or its database
    needs too waits at every step for the slowest part.
    """
    torch.set_num_threads(count or max(1, len(os.sched_getaffinity(0)) - 1))


Model: TypeAlias = LanguageModel | Artifact | TextArtifact

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


def _check_files(folder: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise UnreadableModel(f"{folder} holds no {name}")
    if not any(folder.glob("*.safetensors")):
        raise UnreadableModel(f"{folder} holds no .safetensors weights; other formats can run code and are not read")
    config = _json(folder / "config.json")
    if config.get("is_encoder_decoder"):
        raise MissingCapability(
            f"{config.get('model_type')} is an encoder-decoder; only models that read prompt and target as one "
            "sequence can be explained"
        )


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise UnreadableModel(f"there is no device {name!r}") from error
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        raise UnreadableModel(f"device {name!r} is not available here")
    return device


def _dtype(folder: Path, name: str | None, device: torch.device) -> torch.dtype:
    if name is None and device.type == "cuda":
        config = _json(folder / "config.json")
        name = config.get("dtype") or config.get("torch_dtype")
    dtype = DTYPES.get(name or "float32")
    if dtype is None:
        raise UnreadableModel(f"dtype {name!r} is not served; use one of {', '.join(DTYPES)}")
    return dtype


def _network(folder: Path, architecture: Any, attention: Any, dtype: str | None, device: torch.device) -> Any:
    attention_control.register()
    disable_progress_bar()  # type: ignore[no-untyped-call]
    stored_dtype = _dtype(folder, dtype, device)
    try:
        with _LOADING:
            loaded = architecture.from_pretrained(
                folder,
                dtype=stored_dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                attn_implementation=attention,
                output_loading_info=True,
            )
    except KeyError as error:
        if error.args != (attention_control.IMPLEMENTATION,):
            raise UnreadableModel(f"{folder} cannot be loaded: {error}") from error
        raise MissingCapability("the architecture computes attention in its own way, out of our reach") from error
    except Exception as error:  # broken files break the library in many ways, each with an error of its own
        raise UnreadableModel(f"{folder} cannot be loaded: {type(error).__name__}: {error}") from error
    network: PreTrainedModel = loaded[0]
    _check_complete(loaded[1])
    if getattr(network.config.get_text_config(), "attn_temperature_tuning", False):
        # It counts rows from the start of the forward pass, whatever their positions: wrong far into a packed row, and
        # too far for the self-test's two dozen tokens to show.
        raise MissingCapability("the architecture scales attention by row, not by position, so rows cannot be packed")
    return network.train(mode=False).requires_grad_(requires_grad=False).to(device)


def _check_complete(report: Mapping[str, Any]) -> None:
    """transformers fills weights that a checkpoint lacks with random numbers; such a model is no model."""
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        names = sorted(str(name) for name in report.get(kind) or ())
        if names:
            count, kind_words = len(names), kind.replace("_keys", "")
            raise UnreadableModel(f"the weights do not fit the architecture: {count} {kind_words}, first {names[0]}")


def _tokenizer(folder: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library's own errors have no common class
        raise UnreadableModel(f"tokenizer.json cannot be read: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


IMAGE_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    *IMAGE_PROCESSOR_FILES,
)


def _image_processor(folder: Path) -> Any:
    processors: Any = AutoImageProcessor
    try:
        return processors.from_pretrained(folder, backend="pil", local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as for weights
        raise UnreadableModel(f"the image processor cannot be loaded: {type(error).__name__}: {error}") from error


def _special_ids(folder: Path, tokenizer: Tokenizer) -> tuple[tuple[int, ...], int | None]:
    """The ids that the tokenizer puts before a text, and an end-of-text id, where it has them."""
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    start = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    config = _json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    token = config.get("bos_token") or config.get("eos_token")
    name = token.get("content") if isinstance(token, dict) else token
    return tuple(whole[:start]), None if name is None else tokenizer.token_to_id(str(name))


def _context_length(network: PreTrainedModel) -> int:
    length = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(length, int):
        raise MissingCapability(f"{type(network).__name__} states no context length")
    return length


def _chat_template(folder: Path) -> ChatTemplate | None:
    """The template of chats that came with the model, where it has one."""
    file, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    config = _json(settings) if settings.is_file() else {}
    source = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
    if isinstance(source, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
    if not isinstance(source, str):
        return None
    tokens = {name: config.get(name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in tokens.items()}
    return ChatTemplate(source, {name: str(text or "") for name, text in texts.items()})


def _digest(folder: Path) -> str:
    """One name for all files that decide an answer: weights, configurations, tokenizer and chat template."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *(folder / name for name in SETTINGS)]):
        if path.is_file():
            with path.open("rb") as file:
                digest.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\0".encode())
    return f"sha256:{digest.hexdigest()}"


def _facts(network: PreTrainedModel) -> dict[str, Any]:
    return {
        "architecture": type(network).__name__,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "layers": int(network.config.get_text_config().num_hidden_layers),
        "dtype": str(network.dtype).removeprefix("torch."),
        "device": str(network.device),
    }


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnreadableModel(f"{path.name} is not readable JSON") from error
    if not isinstance(content, dict):
        raise UnreadableModel(f"{path.name} holds no JSON object")
    return content
