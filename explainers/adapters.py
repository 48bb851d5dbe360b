"""PEFT adapters of the LoRA family, merged into the weights of their base model.

Context: attention control, gradients and decoding all expect a plain network, and an adapter's wrappers would be in
their way. Decision: the adapter is merged once, in float32, by the library that trained it, and the sum is cast to
the wanted precision afterwards; before and after the merge the network reads the same few tokens, and must say the
same. Consequence: an adapter costs as much memory as a model of its own, and what cannot be merged exactly is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from explainers.errors import MissingCapability, UnreadableModel
from explainers.folders import ADAPTER, LOADING
from explainers.model_folder import read_object

WEIGHTS = "adapter_model.safetensors"
STATED = frozenset(
    {
        *("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "bias", "lora_bias"),
        *("use_rslora", "use_dora", "fan_in_fan_out", "modules_to_save", "layers_to_transform", "layers_pattern"),
        *("rank_pattern", "alpha_pattern", "init_lora_weights", "inference_mode", "task_type", "peft_type"),
        *("peft_version", "auto_mapping", "base_model_name_or_path", "revision", "runtime_config"),
    }
)
"""Settings that an adapter may have; any other one must be as it is by default."""
FIRST_VALUES = (True, False, "gaussian", "orthogonal", "eva")
"""Ways to begin a training that leave the base's weights as they are."""
TOLERANCE = 1e-3
"""Of logits, against the largest of them: a merge that is right is a thousand times nearer."""
PROBE_TOKENS = 16


def is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER).is_file()


def merge(network: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The base network with the adapter of that folder added to its weights: the same object, changed.

    The network must be in float32 and nobody else's. Raises UnreadableModel for an adapter that is broken or another
    base's, MissingCapability for one that cannot be merged exactly.
    """
    config, tensors = _config(folder), _tensors(folder)
    with LOADING, _plain_attention(network), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's notes to those who train
        ids = _some_tokens(network)
        wrapped = _wrapped(network, config)
        _check_shapes(wrapped, tensors)
        _fill(wrapped, tensors)
        before = _probe(wrapped, ids)
        try:
            merged = wrapped.merge_and_unload(safe_merge=True)
        except ValueError as error:
            raise UnreadableModel(f"the adapter cannot be merged: {error}") from error
        _check_same(before, _probe(merged, ids))
    plain: PreTrainedModel = merged.train(mode=False).requires_grad_(requires_grad=False)
    return plain


@contextmanager
def _plain_attention(network: PreTrainedModel) -> Iterator[None]:
    """Inside, the network computes attention as the library does."""
    ours = network.config._attn_implementation
    network.set_attn_implementation("eager")
    try:
        yield
    finally:
        network.set_attn_implementation(ours)


def _config(folder: Path) -> Any:
    """The adapter's settings; raises MissingCapability for those that make it more than a sum of weights."""
    from peft import LoraConfig  # noqa: PLC0415 - takes seconds to import

    stored = read_object(folder / ADAPTER)
    kind = stored.get("peft_type")
    if kind != "LORA":
        raise MissingCapability(f"adapters of type {kind} are not served: only LoRA, rsLoRA and DoRA can be merged")
    usual = LoraConfig()
    known = {field.name for field in fields(LoraConfig)}
    for name, value in stored.items():
        if name not in STATED and value and (name not in known or value != getattr(usual, name)):
            raise MissingCapability(f"{ADAPTER}: adapters with `{name}` are not served")
    if stored.get("init_lora_weights", True) not in FIRST_VALUES:
        raise MissingCapability(
            f"{ADAPTER}: `init_lora_weights` {stored['init_lora_weights']!r} changes the base's weights: save the "
            "adapter converted to plain LoRA"
        )
    named = {name: stored[name] for name in STATED - {"auto_mapping", "runtime_config"} if name in known & set(stored)}
    return LoraConfig(**{**named, "inference_mode": True, "init_lora_weights": True})


def _tensors(folder: Path) -> dict[str, Tensor]:
    if not (folder / WEIGHTS).is_file():
        raise UnreadableModel(f"{folder} holds no {WEIGHTS}; other formats can run code and are not read")
    try:
        return load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise UnreadableModel(f"{WEIGHTS} cannot be read: {error}") from error


def _wrapped(network: PreTrainedModel, config: Any) -> Any:
    """The network with empty places for the adapter."""
    from peft import PeftModel  # noqa: PLC0415 - takes seconds to import

    try:
        return PeftModel(network, config, autocast_adapter_dtype=False).eval()
    except (ValueError, TypeError, AttributeError) as error:
        raise UnreadableModel(f"the adapter does not fit the base model: {error}") from error


def _check_shapes(wrapped: Any, tensors: Mapping[str, Tensor]) -> None:
    """Raises UnreadableModel that names the first tensor at fault."""
    from peft import get_peft_model_state_dict  # noqa: PLC0415 - takes seconds to import

    wanted: dict[str, Tensor] = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    places = {**wrapped.state_dict(), **wanted}
    for name, tensor in sorted(tensors.items()):
        if name not in places:
            raise UnreadableModel(f"the adapter is another base model's: it has {name}, the base no place for it")
        if tensor.shape != places[name].shape:
            raise UnreadableModel(
                f"the adapter is another base model's: {name} has the shape {list(tensor.shape)}, "
                f"the base model needs {list(places[name].shape)}"
            )
    for name in sorted(wanted.keys() - tensors.keys()):
        raise UnreadableModel(f"the adapter is not complete: it lacks {name}")


def _fill(wrapped: Any, tensors: Mapping[str, Tensor]) -> None:
    from peft import set_peft_model_state_dict  # noqa: PLC0415 - takes seconds to import

    single = {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
    report: Any = set_peft_model_state_dict(wrapped, single)
    if report.unexpected_keys:
        raise UnreadableModel(f"the adapter has tensors without a place: {report.unexpected_keys[0]}")


def _some_tokens(network: PreTrainedModel) -> Tensor:  # (1, S)
    count: Any = network.get_input_embeddings()
    step = max(1, count.num_embeddings // PROBE_TOKENS)
    return torch.arange(PROBE_TOKENS).mul(step).remainder(count.num_embeddings)[None]


def _probe(network: Any, ids: Tensor) -> Tensor:  # (S, V)
    with torch.inference_mode():
        logits: Tensor = network(input_ids=ids, use_cache=False).logits[0]
    return logits


def _check_same(before: Tensor, after: Tensor) -> None:
    if not torch.isfinite(after).all():
        raise UnreadableModel("the adapter's weights are not finite")
    if (before - after).abs().max() > TOLERANCE * before.abs().max():
        raise MissingCapability(
            "merged into the weights, the adapter says something else than beside them (tied embeddings that it "
            "changes, for one): merge it yourself and register the whole model"
        )
