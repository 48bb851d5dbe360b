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
HEADS = {**GROUPED, "head_dim": 8}
WINDOW = {"sliding_window": 7}
"""Shorter than the prompts of the tests, so that a lost window shows."""
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": HEADS,
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
    "mistral": {**GROUPED, **WINDOW},
    "mixtral": {**GROUPED, "num_local_experts": 4},
    "gemma2": {**HEADS, **WINDOW, "query_pre_attn_scalar": 8},
    "gemma3_text": {**HEADS, **WINDOW, "query_pre_attn_scalar": 8},
    "gpt_oss": {**HEADS, **WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
    "phi3": {**GROUPED, "pad_token_id": 0},
    "opt": {
        "vocab_size": 320,
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "init_std": 0.3,
    },
    "cohere": GROUPED,
    "olmo2": GROUPED,
    "smollm3": {**GROUPED, "pad_token_id": 0},
}
REFUSED: dict[str, dict[str, Any]] = {
    "gptj": {"vocab_size": 320, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256, "rotary_dim": 4},
    "falcon": {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4},
    "bloom": {"vocab_size": 320, "hidden_size": 32, "n_layer": 3, "n_head": 4},
    "qwen3_next": HEADS,
    "llama4_text": {**HEADS, "attention_chunk_size": 8, "num_local_experts": 2, "intermediate_size_mlp": 64},
}
"""Architectures whose attention, or part of it, is out of our reach: to be refused, never explained wrongly."""


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
    config = AutoConfig.for_model(family, **{**(FAMILIES | REFUSED)[family], **overrides})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(config)
    network.save_pretrained(folder)
    tokenizer(start_token).save_pretrained(folder)
    return folder
