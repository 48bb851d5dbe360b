"""Model folders made to do harm: each is refused with a reason, soon, and nothing but what is read is ever opened."""

from __future__ import annotations

import base64
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch

from explainers import loaders, tokenizer_file
from explainers.errors import ExplainerError, UnreadableModel
from explainers.loaders import load_causal_lm, load_fine_tune
from explainers.model_folder import READ, check_config, header_of, steady
from tests import tiny_models

ROOT = Path(__file__).parents[2]
Harm: TypeAlias = Callable[[Path], None]
HEAD = struct.Struct("<Q")


def config(**changes: Any) -> Harm:
    return edited("config.json", lambda found: found | changes)


def edited(name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Harm:
    def harm(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return harm


def tokenizer(**parts: Any) -> Harm:
    return edited("tokenizer.json", lambda found: found | parts)


def file(name: str, content: bytes) -> Harm:
    def harm(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return harm


def weights(change: Callable[[dict[str, Any], bytes], tuple[bytes, bytes]]) -> Harm:
    def harm(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        end = 8 + HEAD.unpack(data[:8])[0]
        head, body = change(json.loads(data[8:end]), data[end:])
        path.write_bytes(HEAD.pack(len(head)) + head + body)

    return harm


def tensor(**changes: Any) -> Harm:
    """One tensor says something else of itself."""

    def change(head: dict[str, Any], body: bytes) -> tuple[bytes, bytes]:
        head["lm_head.weight"] |= changes
        return json.dumps(head).encode(), body

    return weights(change)


def twice(head: dict[str, Any], body: bytes) -> tuple[bytes, bytes]:
    again = json.dumps({"lm_head.weight": head["lm_head.weight"]})[1:]
    return (json.dumps(head)[:-1] + "," + again).encode(), body


def sharded(where: object) -> Harm:
    """The weights lie elsewhere, as the list of weights says; the folder has others."""

    def harm(folder: Path) -> None:
        shutil.copy(folder / "model.safetensors", folder.parent / "outside.safetensors")
        (folder / "model.safetensors").rename(folder / "other.safetensors")
        named = str(folder.parent / "outside.safetensors") if where is None else where
        names = header_of(folder / "other.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, named)}))

    return harm


def fifo(name: str) -> Harm:
    def harm(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return harm


def linked(name: str, target: str) -> Harm:
    def harm(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return harm


def replacing(pattern: Any, content: str, times: int = 1) -> dict[str, Any]:
    rule = {"type": "Replace", "pattern": pattern, "content": content}
    return {"type": "Sequence", "normalizers": [rule] * times}


def splitting(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


DEEP = b'{"a":' * 100_000
START = {"SpecialToken": {"id": "<s>", "type_id": 0}}
MANY = {
    "type": "TemplateProcessing",
    "single": [START] * 100 + [{"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
}
HARM: dict[str, Harm] = {
    "a billion layers": config(num_hidden_layers=10**9),
    "a billion heads": config(num_attention_heads=10**9),
    "a billion classes": config(num_labels=10**9),
    "a vocabulary of all words": config(vocab_size=10**11),
    "layers of another width": config(hidden_size=10**7),
    "a context without end": config(max_position_embeddings=10**15),
    "code of its own": config(model_type="evil", auto_map={"AutoModelForCausalLM": "evil.Model"}),
    "code from elsewhere": config(model_type="evil", auto_map={"AutoConfig": "x/y--evil.Config"}),
    "attention from elsewhere": config(_attn_implementation="someone/attention"),
    "another way to pack": config(quantization_config={"quant_method": "gptq", "bits": 4}),
    "odd positions": config(rope_parameters={"rope_type": "yarn", "factor": 1e308, "rope_theta": 0}),
    "deep settings": file("config.json", DEEP),
    "deep settings of tokens": file("tokenizer_config.json", DEEP),
    "deep settings of answers": file("generation_config.json", b'{"a":' * 100_000),
    "settings in no text": file("config.json", b"\xff\xfe{}"),
    "a head too long": file("model.safetensors", HEAD.pack(2**62) + b"{}"),
    "a head of 60 MB in nothing": file("model.safetensors", HEAD.pack(60 * 2**20) + b"{}"),
    "a deep head": weights(lambda _, body: (DEEP, body)),
    "a place outside": tensor(data_offsets=[0, 2**40]),
    "a negative place": tensor(data_offsets=[-4, 4]),
    "a negative axis": tensor(shape=[-1, 4]),
    "axes beyond counting": tensor(shape=[2**40, 2**40]),
    "an axis that is no number": tensor(shape=[True, 4]),
    "an unknown type": tensor(dtype="OBJECT"),
    "a tensor twice": weights(twice),
    "bytes behind the end": weights(lambda head, body: (json.dumps(head).encode(), body + b"x")),
    "a pickle for weights": file("model.safetensors", pickle.dumps([1])),
    "no bytes": file("model.safetensors", b""),
    "weights above": sharded("../outside.safetensors"),
    "weights anywhere": sharded(None),
    "weights in a pickle": sharded("pytorch_model.bin"),
    "weights of another name": config(transformers_weights="adapter_model.bin"),
    "another list of weights": config(text_config={"transformers_weights": "other.safetensors.index.json"}),
    "an adapter beside the weights": file("adapter_config.json", b'{"base_model_name_or_path": "/elsewhere"}'),
    "weights in a number": sharded(5),
    "a deep list of weights": file("model.safetensors.index.json", DEEP),
    "a pipe for weights": fifo("model.safetensors"),
    "a pipe for settings": fifo("generation_config.json"),
    "a device for settings": linked("tokenizer_config.json", "/dev/zero"),
    "a link to itself": linked("generation_config.json", "generation_config.json"),
    "a folder for a template": lambda folder: (folder / "chat_template.jinja").mkdir(),
    "a template in no text": file("chat_template.jinja", b"\xff\xfe"),
    "a template too long": file("chat_template.jinja", b"x" * (2**20 + 1)),
    "deep tokens": file("tokenizer.json", DEEP),
    "a choice repeated": tokenizer(pre_tokenizer=splitting("^(a|a|aa)+$")),
    "a repetition repeated": tokenizer(normalizer=replacing({"Regex": "(a+)+$"}, "")),
    "a word that grows": tokenizer(normalizer=replacing({"String": "a"}, "a" * 1000)),
    "a word that doubles": tokenizer(normalizer=replacing({"String": "a"}, "aa", times=40)),
    "many rules": tokenizer(normalizer=replacing({"String": "a"}, "b", times=100)),
    "a long beginning": tokenizer(normalizer={"type": "Prepend", "prepend": "x" * 10**6}),
    "many tokens around": tokenizer(post_processor=MANY),
    "a table of characters that lies": tokenizer(
        normalizer={"type": "Precompiled", "precompiled_charsmap": base64.b64encode(b"\xff" * 4096).decode()}
    ),
    "tokens by chance": edited("tokenizer.json", lambda found: found | {"model": found["model"] | {"dropout": 0.5}}),
    "a token without a place": edited(
        "tokenizer.json",
        lambda found: found | {"model": found["model"] | {"vocab": found["model"]["vocab"] | {"zz": 4 * 10**9}}},
    ),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(tmp_path_factory.mktemp("sound") / "model")


@pytest.mark.parametrize("name", HARM)
def test_it_is_refused_soon(name: str, sound: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "model"))
    HARM[name](folder)
    started = time.process_time()
    with pytest.raises(ExplainerError) as caught:
        load_causal_lm(folder)
    assert time.process_time() - started < 10
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("name", ["a pipe for weights", "weights above", "a choice repeated", "a place outside"])
def test_a_base_and_a_fine_tune_are_looked_at_alike(name: str, sound: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "model"))
    HARM[name](folder)
    with pytest.raises(UnreadableModel):
        load_fine_tune(folder, sound)
    with pytest.raises(UnreadableModel):
        load_fine_tune(sound, folder)


OPENED = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from explainers.errors import ExplainerError
from explainers.loaders import LOADERS, load_fine_tune
opened, deeds, folders = set(), set(), sys.argv[2:]

def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path = os.fsdecode(arguments[0])
        if any(path.startswith(folder) for folder in folders):
            opened.add(os.path.relpath(path, os.path.dirname(folders[0])))
    elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "pickle.find_class"):
        deeds.add(event)

def told(load, *paths):
    try:
        load(*paths)
    except ExplainerError as error:
        return type(error).__name__
    return "loaded"

loaders = [load for kind, load in LOADERS.items() if kind != "tabular"]
told(loaders[0], Path(folders[0]), None, "cpu")  # what libraries open and start when they are first used
opened.clear()
sys.addaudithook(watch)
answers = {load.__name__: told(load, Path(folders[0]), None, "cpu") for load in loaders}
answers["adapter"] = told(load_fine_tune, Path(folders[1]), Path(folders[0]), None, "cpu")
print(json.dumps([answers, sorted(opened), sorted(deeds)]))
"""


def test_nothing_else_in_a_folder_is_ever_opened(sound: Path, tmp_path: Path) -> None:
    """As folders from hubs are: code, pickles and weights in other formats beside the ones that are read."""
    folder = Path(shutil.copytree(sound, tmp_path / "model"))
    config(
        auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.T", None]}
    )(folder)
    adapter = tiny_models.save_adapter(tmp_path / "adapter", sound)
    code = f"import pathlib; pathlib.Path({str(tmp_path / 'canary')!r}).touch()"
    for place in (folder, adapter):
        for name in ("evil.py", "modeling_llama.py", "__init__.py", "custom_generate/generate.py", "chat_template.py"):
            (place / name).parent.mkdir(exist_ok=True)
            (place / name).write_text(code)
        for name in (
            "pytorch_model.bin",
            "adapter_model.bin",
            "training_args.bin",
            "model.pkl",
            "optimizer.pt",
            "tf_model.h5",
        ):
            torch.save({"x": torch.zeros(1)}, place / name)
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OPENED, str(ROOT), str(folder), str(adapter)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    answers, opened, deeds = json.loads(ran.stdout.splitlines()[-1])
    assert answers["load_causal_lm"] == answers["adapter"] == "loaded", ran.stderr
    read = {f"{place}/{name}" for place in ("model", "adapter") for name in READ}
    assert set(opened) <= read | {"model/model.safetensors", "adapter/adapter_model.safetensors"}
    assert deeds == [] and not (tmp_path / "canary").exists()


def test_files_that_change_while_they_are_read(sound: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "model"))

    @steady
    def load(path: Path) -> str:
        data = (path / "model.safetensors").read_bytes()
        (path / "new").write_bytes(data)
        (path / "new").rename(path / "model.safetensors")
        return "loaded"

    with pytest.raises(UnreadableModel, match="have changed while they were read"):
        load(folder)
    folders = (loaders.load_causal_lm, loaders.load_fine_tune, loaders.load_image_text_lm, loaders.load_text_classifier)
    assert all(hasattr(each, "__wrapped__") for each in folders)


SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CAPITALS, SMALLS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
EXPRESSIONS = {
    "GPT-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "Llama 3": rf"{SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{REST}",
    "gpt-oss": rf"[^\r\n\p{{L}}\p{{N}}]?{CAPITALS}{SMALLS}{SHORT}?|{REST}",
    "DeepSeek": rf"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{{|}}~][A-Za-z]+|[^\r\n\p{{L}}]?[\p{{L}}\p{{M}}]+|{REST}",
    "digits by three": r"\d{1,3}(?=(?:\d{3})*\b)",
    "CLIP": r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_expressions_in_use_are_read(name: str) -> None:
    tokenizer_file.check({"pre_tokenizer": splitting(EXPRESSIONS[name])})


@pytest.mark.parametrize("pattern", [r"(a|b)*c", r"(?:a+){2,}", r"((a)b?)+", r"(?i:x*)*", r"([^)]+)+", "a" * 5000])
def test_expressions_that_can_take_for_ever_are_not(pattern: str) -> None:
    with pytest.raises(UnreadableModel, match="can take too long"):
        tokenizer_file.check({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [splitting(pattern)]}})


def test_numbers_of_real_models_are_taken() -> None:
    from explainers.model_folder import Weights

    real = {
        **{
            "num_hidden_layers": 80,
            "max_window_layers": 80,
            "vocab_size": 152064,
            "max_position_embeddings": 10_485_760,
        },
        **{"rope_theta": 10**9, "num_attention_heads": 64, "num_experts": 128, "vision_config": {"depth": 32}},
    }
    check_config(real, Weights(1000, 10**10, 152064))
