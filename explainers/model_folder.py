"""The one way into a model's folder: what is read of it, and what is held against its content before a library sees it.

Context: the libraries that read such a folder trust it. A configuration may ask for a billion layers, a list of weights
name files anywhere on the disk, a tokenizer grow a word into gigabytes, and the process that reads it is the server.
Decision: only the names in `READ` and `*.safetensors` are read; whatever else lies there (code, pickles, other
weights) is never opened. Each must be a plain file of moderate size, numbers must agree with the weights that are
really there, and names of files must be those of this folder. Consequence: a folder made to do harm is refused with a
reason, at the cost of reading its small files once more.
"""

from __future__ import annotations

import json
import math
import re
import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from explainers import tokenizer_file
from explainers.errors import UnreadableModel

MEBI = 2**20
INDEX = "model.safetensors.index.json"
READ: Mapping[str, int] = {
    "config.json": 16 * MEBI,  # the names of a million classes
    "generation_config.json": MEBI,
    "tokenizer.json": 128 * MEBI,
    "tokenizer_config.json": 16 * MEBI,
    "special_tokens_map.json": 16 * MEBI,
    "chat_template.jinja": MEBI,
    "adapter_config.json": MEBI,
    "preprocessor_config.json": MEBI,
    "processor_config.json": MEBI,
    "chat_template.json": MEBI,
    INDEX: 64 * MEBI,
}
"""Name of a file that is read -> bytes that it may have. Weights, which are mapped into memory, may have any number."""

LARGEST_HEADER = 64 * MEBI
ITEM_BITS: Mapping[str, int] = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
    **{"I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32},
    **{"I64": 64, "U64": 64, "F64": 64, "C64": 64},
}
"""Types of safetensors (https://github.com/huggingface/safetensors, safetensors/src/tensor.rs)."""

LAYERS = re.compile(r"(?<!window_)layers?$|^n_layer|depth$|blocks?$|stages$")
"""Numbers in a configuration of parts that each have weights."""
COUNTS = re.compile(r"^(num|n)_|experts")
FEW = 2**16
LONGEST_CONTEXT = 2**24
NAMES_CODE = re.compile(r"attn_implementation|experts_implementation")
NAMES_FILES = "transformers_weights"
"""Weights, or a list of weights, that transformers reads instead of those that are looked at here."""

Arguments = ParamSpec("Arguments")
Loaded = TypeVar("Loaded")


@dataclass(frozen=True, slots=True)
class Weights:
    """What the heads of all weight files say: how many tensors and numbers there are, and the longest axis."""

    tensors: int
    numbers: int
    longest: int


def inspect(folder: Path) -> None:
    """Raises UnreadableModel for a folder that must not be read any further; it need not be complete."""
    for path in files_read(folder):
        check_plain(path, READ.get(path.name))
    weights = weights_of(folder)
    if (folder / INDEX).is_file():
        check_index(folder)
    if (folder / "config.json").is_file():
        check_config(read_object(folder / "config.json"), weights)
    if (folder / "tokenizer.json").is_file():
        tokenizer_file.check(read_object(folder / "tokenizer.json"))


def steady(
    load: Callable[Concatenate[Path, Arguments], Loaded],
) -> Callable[Concatenate[Path, Arguments], Loaded]:
    """A loader that refuses a folder whose files change while it reads them."""

    @wraps(load)
    def loaded(folder: Path, /, *args: Arguments.args, **named: Arguments.kwargs) -> Loaded:
        before = stamps(folder)
        model = load(folder, *args, **named)
        if stamps(folder) != before:
            raise UnreadableModel(f"the files in {folder} have changed while they were read")
        return model

    return loaded


def stamps(folder: Path) -> list[tuple[str, int, int, int]]:
    """Name, number, size and time of change of every file that is read; none where that cannot be told."""
    try:
        found = [(path.name, path.stat()) for path in files_read(folder)]
    except OSError:
        return []
    return [(name, each.st_ino, each.st_size, each.st_mtime_ns) for name, each in found]


def files_read(folder: Path) -> list[Path]:
    """The files of a folder that are opened, as far as they are there."""
    named = [path for name in READ if (path := folder / name).is_symlink() or path.exists()]
    return sorted([*named, *folder.glob("*.safetensors")])


def check_plain(path: Path, limit: int | None) -> None:
    """Raises UnreadableModel for a pipe, a device or a folder: to open one may wait for ever."""
    try:
        found = path.stat()
    except (OSError, RuntimeError) as error:  # a link to nowhere, or to itself
        raise UnreadableModel(f"{path.name} cannot be read") from error
    if not stat.S_ISREG(found.st_mode):
        raise UnreadableModel(f"{path.name} is no plain file")
    if limit is not None and found.st_size > limit:
        raise UnreadableModel(f"{path.name} is larger than the limit of {limit} bytes")


def weights_of(folder: Path) -> Weights:
    heads = [header_of(path) for path in folder.glob("*.safetensors")]
    shapes = [entry["shape"] for head in heads for entry in head.values()]
    longest = max((axis for shape in shapes for axis in shape), default=0)
    return Weights(len(shapes), sum(map(math.prod, shapes)), longest)


def header_of(path: Path) -> dict[str, Any]:
    """Name -> dtype, shape and place of each tensor, which fill the file without a gap. Raises UnreadableModel."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(LARGEST_HEADER, size - 8):
            raise UnreadableModel(f"{path.name} claims a head of {length} bytes")
        head = parsed(file.read(length), path.name)
    head.pop("__metadata__", None)
    end = 0
    for name, entry in sorted(head.items(), key=lambda item: place_of(item[1], path.name)):
        begin, stop = place_of(entry, path.name)
        if begin != end or 8 * (stop - begin) != bits_of(entry, path.name):
            raise UnreadableModel(f"{path.name}: the place of tensor {name[:80]!r} is not that of its shape")
        end = stop
    if end != size - 8 - length:
        raise UnreadableModel(f"{path.name} has other bytes than its tensors")
    return head


def place_of(entry: Any, name: str) -> tuple[int, int]:
    match entry:
        case {"data_offsets": [int() as begin, int() as stop]} if 0 <= begin <= stop:
            return begin, stop
    raise UnreadableModel(f"{name}: a tensor has no place")


def bits_of(entry: Mapping[str, Any], name: str) -> int:
    shape, item = entry.get("shape"), ITEM_BITS.get(str(entry.get("dtype")))
    if item is None or not isinstance(shape, list) or not all(type(axis) is int and axis >= 0 for axis in shape):
        raise UnreadableModel(f"{name}: a tensor has no type or shape that is known")
    return item * math.prod(shape)


def check_index(folder: Path) -> None:
    """Weights in several files: each must lie in this folder itself."""
    named = read_object(folder / INDEX).get("weight_map")
    known = {path.name for path in folder.glob("*.safetensors")}
    if not isinstance(named, dict) or not all(isinstance(name, str) and name in known for name in named.values()):
        raise UnreadableModel(f"{INDEX} names other files than the .safetensors of its folder")


def check_config(config: Mapping[str, Any], weights: Weights) -> None:
    """Raises UnreadableModel for numbers of parts that the weights cannot have, which a library would build first."""
    for name, value in members_of(config):
        if name == NAMES_FILES:
            raise UnreadableModel(f"config.json: `{name}` names other weights than the folder's")
        if NAMES_CODE.search(name) and isinstance(value, str) and "/" in value:
            raise UnreadableModel(f"config.json: `{name}` names code in another place")
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        most = most_of(name, weights)
        if most is not None and value > most:
            raise UnreadableModel(f"config.json: `{name}` is {value}, and with these weights {most} at most")


def most_of(name: str, weights: Weights) -> int | None:
    if LAYERS.search(name):
        return weights.tensors
    if COUNTS.search(name):
        return max(FEW, weights.longest)
    return LONGEST_CONTEXT if "position_embeddings" in name else None


def members_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Every named value, however deep."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case dict() as found:
                yield from found.items()
                waiting.extend(found.values())
            case list() as found:
                waiting.extend(found)


def read_object(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableModel(f"{path.name} is not readable JSON") from error
    return parsed(data, path.name)


def parsed(data: bytes, name: str) -> dict[str, Any]:
    """The object of a JSON document in which no name stands twice. Raises UnreadableModel."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise UnreadableModel(f"{name}: a name stands twice in an object")
        return found

    try:
        content = json.loads(data.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise UnreadableModel(f"{name} is not readable JSON") from error
    if not isinstance(content, dict):
        raise UnreadableModel(f"{name} holds no JSON object")
    return content
