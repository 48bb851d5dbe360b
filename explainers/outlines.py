"""Language models without their weights, for a process that asks others to run them.

An outline has the tokenizer, the chat template, the settings and the sizes of a model: all that reading a prompt and
knowing the cost of an answer take. Its network has no numbers, so that whatever would run it fails.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, GenerationConfig

from explainers import adapters
from explainers.errors import MissingCapability, UnreadableModel
from explainers.folders import DTYPES, LOADING, SETTINGS, check_files, check_size, digest_of, join_digests
from explainers.language_model import LanguageModel
from explainers.loaders import causal_lm, check_image_text, image_text_lm
from explainers.model_folder import inspect, steady
from explainers.types import Elsewhere

Folders: TypeAlias = Sequence[Path]
"""That of the model, and that of its base where it is a fine-tune."""


@dataclass(frozen=True, slots=True)
class Told:
    """What whoever holds the weights has said of them: `settings` is what `settings_digest` finds there."""

    digest: str
    settings: str
    facts: Mapping[str, Any]


@steady
def outline(folder: Path, base: Path | None, kind: str, told: Told, elsewhere: Elsewhere) -> LanguageModel:
    """The model in that folder without its weights; raises what its loader raises of everything else.

    MissingCapability where the files here are not those that the weights were read beside.
    """
    folders = (folder,) if base is None else (folder, base)
    if settings_digest(folders) != told.settings:
        raise MissingCapability("the files of this model differ between this server and those that run it")
    if kind not in OUTLINES:
        raise MissingCapability(f"models of kind '{kind}' run in the server itself")
    made = OUTLINES[kind](folders, told)
    return replace(made, facts=told.facts, elsewhere=elsewhere)


def digest_of_weights(folders: Folders) -> str:
    """The digest that a loaded model of these folders has. Raises UnreadableModel."""
    for folder in folders:
        inspect(folder)
    own = digest_of(folders[0])
    return join_digests(digest_of(folders[1]), own) if adapters.is_adapter(folders[0]) and folders[1:] else own


def settings_digest(folders: Folders) -> str:
    """One name for all small files that decide how a prompt is read."""
    digest = hashlib.sha256()
    for place, folder in enumerate(folders):
        for path in (path for name in SETTINGS if (path := folder / name).is_file()):
            digest.update(f"{place}/{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\0".encode())
    return digest.hexdigest()


def _causal_lm(folders: Folders, told: Told) -> LanguageModel:
    """An adapter changes numbers, and neither sizes nor settings."""
    inspect(folders[0])
    whole = folders[-1] if adapters.is_adapter(folders[0]) else folders[0]
    check_files(whole)
    read = folders if adapters.is_adapter(folders[0]) else folders[:1]
    return causal_lm(_network(whole, AutoModelForCausalLM, told), read, told.digest)


def _image_text_lm(folders: Folders, told: Told) -> LanguageModel:
    check_image_text(folders[0])
    return image_text_lm(_network(folders[0], AutoModelForImageTextToText, told), folders[0], told.digest)


def _network(folder: Path, architecture: Any, told: Told) -> Any:
    dtype = DTYPES[str(told.facts["dtype"])]
    try:
        with LOADING:
            check_size(folder, architecture)
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            with torch.device("meta"):
                network = architecture.from_config(config, dtype=dtype, trust_remote_code=False)
        if (folder / "generation_config.json").is_file():
            network.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    except UnreadableModel:
        raise
    except Exception as error:  # as for weights
        raise UnreadableModel(f"{folder} cannot be read: {type(error).__name__}: {error}") from error
    return network.train(mode=False).requires_grad_(requires_grad=False)


OUTLINES: Mapping[str, Callable[[Folders, Told], LanguageModel]] = {
    "causal-lm": _causal_lm,
    "image-text-lm": _image_text_lm,
}
"""Kind of model -> its outline."""
