"""Tiny random models of many families, with a small byte-level tokenizer, saved as real folders on disk."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

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


IMAGE_MARKS = (
    *("<image>", "<fake_token_around_image>", "<global-img>"),
    *("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"),
)
"""Special tokens of the image-text families, with ids from 298 on, behind all others."""

TEXT = {**GROUPED, "bos_token_id": 0, "eos_token_id": 1}
PATCHES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 4,
}
AXES = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
QWEN = {"image_token_id": 301, "video_token_id": 302, "vision_start_token_id": 303, "vision_end_token_id": 304}
QWEN_TOWER = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
CLIP = {
    "vision_config": {**PATCHES, "model_type": "clip_vision_model", "image_size": 24, "projection_dim": 32},
    "text_config": {**TEXT, "model_type": "llama"},
    "image_token_index": 298,
    "image_seq_length": 36,
}
SHUFFLED = {"vision_config": {**PATCHES, "image_size": 32}, "image_token_id": 298, "scale_factor": 2}
IMAGE_FAMILIES: dict[str, tuple[dict[str, Any], Any]] = {
    "llava": (CLIP, CLIPImageProcessorPil()),  # crops to 224 pixels, as it comes
    "idefics3": ({**SHUFFLED, "text_config": {**TEXT, "model_type": "llama"}}, Idefics3ImageProcessorPil()),
    "smolvlm": ({**SHUFFLED, "text_config": {**TEXT, "model_type": "llama"}}, SmolVLMImageProcessorPil()),
    "qwen2_vl": (
        {
            **QWEN,
            "text_config": {**TEXT, "rope_parameters": AXES},
            "vision_config": {**QWEN_TOWER, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2},
        },
        Qwen2VLImageProcessorPil(patch_size=4, min_pixels=512, max_pixels=4096),
    ),
    "qwen2_5_vl": (
        {
            **QWEN,
            "text_config": {**TEXT, "rope_parameters": AXES},
            "vision_config": {
                **QWEN_TOWER,
                **{"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32},
                **{"window_size": 16, "fullatt_block_indexes": [1]},
            },
        },
        Qwen2VLImageProcessorPil(patch_size=4, min_pixels=512, max_pixels=4096),
    ),
    "qwen3_vl": (
        {
            **QWEN,
            "text_config": {**TEXT, "head_dim": 8, "rope_parameters": AXES},
            "vision_config": {
                **QWEN_TOWER,
                **{"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32},
                **{"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16},
            },
        },
        Qwen2VLImageProcessorPil(patch_size=4, min_pixels=512, max_pixels=4096),
    ),
}
"""Configuration and image processor of each image-text family."""


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


def save_image_text(folder: Path, family: str = "llava", **overrides: Any) -> Path:
    """Write a tiny random image-text model of `family` to `folder`, with its image processor."""
    settings, processor = IMAGE_FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AutoModelForImageTextToText.from_config(AutoConfig.for_model(family, **{**settings, **overrides}))
        for parameter in network.parameters():
            if parameter.dim() > 1:  # some towers start so small that images hardly matter
                torch.nn.init.normal_(parameter, std=0.3 if parameter.shape[-1] < 64 else 0.15)
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    marked = tokenizer()
    marked.add_tokens(list(IMAGE_MARKS), special_tokens=True)
    assert marked.convert_tokens_to_ids(IMAGE_MARKS[0]) == 298
    marked.save_pretrained(folder)
    return folder


def save_encoder_decoder(folder: Path, family: str) -> Path:
    """Write a tiny random T5 or BART: what reads the prompt and writes the target in two stacks."""
    settings = {
        "t5": {"vocab_size": 320, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
        "bart": {
            **{"vocab_size": 320, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64},
            **{"decoder_ffn_dim": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4},
        },
    }
    AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(family, **settings[family])).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def save_adapter(folder: Path, base: Path, **settings: Any) -> Path:
    """Write a random LoRA adapter of the model in `base` to `folder`, the same weights every time."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **settings})
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(1)
        model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder
