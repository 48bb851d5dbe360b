"""What lies in a model's folder: settings, weights, tokenizer, chat template; and what it must not hold.

Nothing here unpickles or runs code that came with a model: weights are safetensors, architectures those of the
installed transformers, tokenizers the `tokenizer.json` of a fast tokenizer, image processors those that need no more
than Pillow.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoImageProcessor, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from explainers import attention_control
from explainers.chat_template import ChatTemplate
from explainers.errors import MissingCapability, UnreadableModel
from explainers.model_folder import inspect, read_object, weights_of

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

ADAPTER = "adapter_config.json"
MOST_TIMES, SMALL = 16, 2**22
"""Numbers of a network for each that is stored, where several are packed into one; and what small ones may compute."""

LOADING = threading.Lock()
"""transformers exchanges functions of its classes while it loads a model, and two loads at once would exchange them for
good: tied weights then are never tied again."""


def check_files(folder: Path) -> None:
    """Raises UnreadableModel for a folder that is not safe to read (`model_folder`), or not complete.

    An adapter beside whole weights, which transformers would add to them, may name a base of its own anywhere.
    """
    if (folder / ADAPTER).exists():
        raise UnreadableModel(f"{folder} holds an adapter: name the base model that it was trained on")
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise UnreadableModel(f"{folder} holds no {name}")
    if not any(folder.glob("*.safetensors")):
        raise UnreadableModel(f"{folder} holds no .safetensors weights; other formats can run code and are not read")
    inspect(folder)
    config = read_object(folder / "config.json")
    if config.get("is_encoder_decoder"):
        raise MissingCapability(
            f"{config.get('model_type')} is an encoder-decoder; only models that read prompt and target as one "
            "sequence can be explained"
        )


def device_of(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise UnreadableModel(f"there is no device {name!r}") from error
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        raise UnreadableModel(f"device {name!r} is not available here")
    return device


def dtype_of(folder: Path, name: str | None, device: torch.device) -> torch.dtype:
    if name is None and device.type == "cuda":
        config = read_object(folder / "config.json")
        name = config.get("dtype") or config.get("torch_dtype")
    dtype = DTYPES.get(name or "float32")
    if dtype is None:
        raise UnreadableModel(f"dtype {name!r} is not served; use one of {', '.join(DTYPES)}")
    return dtype


def read_network(folder: Path, architecture: Any, attention: Any, dtype: str | None, device: torch.device) -> Any:
    attention_control.register()
    disable_progress_bar()  # type: ignore[no-untyped-call]
    stored_dtype = dtype_of(folder, dtype, device)
    try:
        with LOADING:
            check_size(folder, architecture)
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
    except UnreadableModel:
        raise
    except Exception as error:  # broken files break the library in many ways, each with an error of its own
        raise UnreadableModel(f"{folder} cannot be loaded: {type(error).__name__}: {error}") from error
    network: PreTrainedModel = loaded[0]
    check_complete(loaded[1])
    if getattr(network.config.get_text_config(), "attn_temperature_tuning", False):
        # It counts rows from the start of the forward pass, whatever their positions: wrong far into a packed row, and
        # too far for the self-test's two dozen tokens to show.
        raise MissingCapability("the architecture scales attention by row, not by position, so rows cannot be packed")
    return network.train(mode=False).requires_grad_(requires_grad=False).to(device)


def check_size(folder: Path, architecture: Any) -> None:
    """Raises UnreadableModel for a configuration that needs far more numbers than there are.

    transformers makes room for all of them before it compares. The network that is counted here has none.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        network: PreTrainedModel = architecture.from_config(config, trust_remote_code=False)
    needed = sum(parameter.numel() for parameter in [*network.parameters(), *network.buffers()])
    there = weights_of(folder).numbers
    if needed > MOST_TIMES * there + SMALL:
        raise UnreadableModel(f"config.json describes {needed} numbers, and the weights are {there}")


def check_complete(report: Mapping[str, Any]) -> None:
    """transformers fills weights that a checkpoint lacks with random numbers; such a model is no model."""
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        names = sorted(str(name) for name in report.get(kind) or ())
        if names:
            count, kind_words = len(names), kind.replace("_keys", "")
            raise UnreadableModel(f"the weights do not fit the architecture: {count} {kind_words}, first {names[0]}")


PANIC = "PanicException"
"""What the tokenizers' library raises where it has a defect: no Exception, and not to be named."""


def read_tokenizer(folder: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library's own errors have no common class
        raise UnreadableModel(f"tokenizer.json cannot be read: {error}") from error
    except BaseException as error:
        if type(error).__name__ != PANIC:
            raise
        raise UnreadableModel("tokenizer.json cannot be read: its library gives up on it") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def largest_id(tokenizer: Tokenizer) -> int:
    """Of all tokens: ids need not be without gaps."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)


IMAGE_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "adapter_config.json",
    *IMAGE_PROCESSOR_FILES,
)


def read_image_processor(folder: Path) -> Any:
    processors: Any = AutoImageProcessor
    try:
        return processors.from_pretrained(folder, backend="pil", local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as for weights
        raise UnreadableModel(f"the image processor cannot be loaded: {type(error).__name__}: {error}") from error


def special_ids(folder: Path, tokenizer: Tokenizer) -> tuple[tuple[int, ...], int | None]:
    """The ids that the tokenizer puts before a text, and an end-of-text id, where it has them."""
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    start = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    config = tokenizer_settings(folder)
    token = config.get("bos_token") or config.get("eos_token")
    name = token.get("content") if isinstance(token, dict) else token
    return tuple(whole[:start]), None if name is None else tokenizer.token_to_id(str(name))


def context_length(network: PreTrainedModel) -> int:
    length = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(length, int):
        raise MissingCapability(f"{type(network).__name__} states no context length")
    return length


def chat_template(folder: Path, spoken: Path | None = None) -> ChatTemplate | None:
    """The template of chats that lies in the folder, where it has one.

    The special tokens that it may name are those of the folder `spoken`; None: of the same folder.
    """
    file, config = folder / "chat_template.jinja", tokenizer_settings(folder)
    try:
        source = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableModel(f"{file.name} is no readable text") from error
    if isinstance(source, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
    if not isinstance(source, str):
        return None
    said = tokenizer_settings(spoken or folder)
    tokens = {name: said.get(name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in tokens.items()}
    return ChatTemplate(source, {name: str(text or "") for name, text in texts.items()})


def tokenizer_settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return read_object(path) if path.is_file() else {}


def first_with(folders: Sequence[Path], name: str) -> Path:
    """The first folder that holds a file of that name, or the last of all."""
    return next((folder for folder in folders if (folder / name).is_file()), folders[-1])


def check_same_family(folder: Path, base: Path) -> None:
    """Raises UnreadableModel for a model that cannot be a fine-tune of the one in `base`."""
    kinds = [read_object(each / "config.json").get("model_type") for each in (folder, base)]
    if kinds[0] != kinds[1]:
        raise UnreadableModel(f"a {kinds[0]} is no fine-tune of a {kinds[1]}: name the base it was trained from")
    check_same_tokens(folder, base)


def check_same_tokens(folder: Path, base: Path) -> None:
    """Raises UnreadableModel where a token has another id than in the base, or one that the base cannot read."""
    own, known = (read_tokenizer(each).get_vocab(with_added_tokens=True) for each in (folder, base))
    config = read_object(base / "config.json")
    rows = config.get("vocab_size")
    for id, token in sorted((id, token) for token, id in own.items() if known.get(token, id) != id):
        raise UnreadableModel(f"the tokenizer differs from the base's: token {id} has the id {known[token]} there")
    new = [id for token, id in own.items() if token not in known and isinstance(rows, int) and id >= rows]
    if new:
        raise UnreadableModel(
            f"the tokenizer has {len(new)} tokens that the base has no embeddings for, first {min(new)}: what "
            "fine-tuning changed can only be told where both read the same tokens"
        )


def join_digests(*digests: str) -> str:
    """One name for files that several digests name."""
    return f"sha256:{hashlib.sha256(chr(0).join(digests).encode()).hexdigest()}"


def digest_of(folder: Path) -> str:
    """One name for all files that decide an answer: weights, configurations, tokenizer and chat template."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *(folder / name for name in SETTINGS)]):
        if path.is_file():
            with path.open("rb") as file:
                digest.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\0".encode())
    return f"sha256:{digest.hexdigest()}"


def facts_about(network: PreTrainedModel) -> dict[str, Any]:
    return {
        "architecture": type(network).__name__,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "layers": int(network.config.get_text_config().num_hidden_layers),
        "dtype": str(network.dtype).removeprefix("torch."),
        "device": str(network.device),
    }
