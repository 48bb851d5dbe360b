"""Tiny random models of many families, with a small byte-level tokenizer, saved as real folders on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

SENTENCES = ["Anna lives in Oslo.", "Ben lives in Rome.", "The key is in the red box.", "Oslo is in Norway."] * 5
SMALL: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "gpt2": {
        "vocab_size": 320,
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 256,
        "initializer_range": 0.3,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
    "gpt_neox": SMALL,
}


def tokenizer(start_token: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level BPE of about 320 tokens; with `start_token` it puts `<s>` before a text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    if start_token:
        bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")  # type: ignore[no-untyped-call]


def save(folder: Path, family: str = "llama", *, start_token: bool = True, **overrides: Any) -> Path:
    """Write a tiny random model of `family` to `folder`, the same weights every time."""
    config = AutoConfig.for_model(family, **{**FAMILIES[family], **overrides})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(config)
    network.save_pretrained(folder)
    tokenizer(start_token).save_pretrained(folder)
    return folder
