"""The untrained ``demo-vision``: tokenizer, processor and weights of a small LLaVA.

A CLIP tower cuts the picture into 12 x 12 patches of 8 x 8 pixels, a projector turns each into one token, and a Llama
reads ``<s>``, the 144 picture tokens and the question.

The tower is local by design: its attention writes nothing and is not trained, so each picture token knows its own patch
and nothing of the others, and where an answer came from can be told by place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from tokenizers import AddedToken, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from demo.shapes import BY_COLOUR, BY_KIND, COLOURS, KINDS
from demo.vocabulary import BOS, EOS, byte_level_bpe

IMAGE: Final = "<image>"
PATCH: Final = 8
PATCHES: Final = 12
CONTEXT: Final = 512
WIDTH: Final = 128
HEAD: Final = 32
LAYERS: Final = 2
TOWER_WIDTH: Final = 96
TOWER_LAYERS: Final = 2
LIKENESS: Final = 1.2
COPYING: Final = 0.3


def whole_words() -> list[str]:
    """Every word of the questions and answers, capitalised or not, and the marks between them."""
    text = " ".join([*BY_KIND, *BY_COLOUR, *COLOURS, *KINDS]).replace("{}", "").replace("?", "")
    words = set(text.split())
    return sorted(words | {word.capitalize() for word in words})


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level: a known word is one token, with or without the space before it; all else is spelled in bytes."""
    specials = [BOS, EOS, IMAGE]
    pieces = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces += [form for word in whole_words() for form in (word, f"\u0120{word}")]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    added = [AddedToken(piece, special=True, normalized=False) for piece in specials]
    tokenizer = byte_level_bpe(vocab, [], added)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        extra_special_tokens={"image_token": IMAGE},
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Pictures of any size and form are resized as a whole to the square input, never cropped."""
    side = {"height": PATCH * PATCHES, "width": PATCH * PATCHES}
    images = CLIPImageProcessorPil(
        do_resize=True,
        size=side,
        do_center_crop=False,
        crop_size=side,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(  # type: ignore[no-untyped-call]
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )


def configuration(tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    """Sizes of the three parts."""
    vision = CLIPVisionConfig(
        hidden_size=TOWER_WIDTH,
        intermediate_size=2 * TOWER_WIDTH,
        projection_dim=TOWER_WIDTH,
        num_hidden_layers=TOWER_LAYERS,
        num_attention_heads=3,
        image_size=PATCH * PATCHES,
        patch_size=PATCH,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=256,
        num_hidden_layers=LAYERS,
        num_attention_heads=WIDTH // HEAD,
        num_key_value_heads=WIDTH // HEAD,
        head_dim=HEAD,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        initializer_range=0.06,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.get_vocab()[IMAGE],
        image_seq_length=PATCHES * PATCHES,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )


@torch.no_grad()
def keep_local(model: LlavaForConditionalGeneration) -> None:
    """Silence the attention of the tower for good."""
    for layer in model.model.vision_tower.encoder.layers:
        for part in (layer.self_attn, layer.layer_norm1):
            part.requires_grad_(False)
        layer.self_attn.out_proj.weight.zero_()
        layer.self_attn.out_proj.bias.zero_()


@torch.no_grad()
def look_for_likeness(model: LlavaForConditionalGeneration) -> None:
    """Let the heads of the first layer start by looking for what resembles the token itself, and copying it.

    Queries equal keys, in the slow rotary angles only, so that distance hardly matters; values are written as read.
    """
    attention = model.model.language_model.layers[0].self_attn
    slow = (torch.arange(WIDTH) % (HEAD // 2) >= HEAD // 5).float()[:, None]
    alike, copied = (torch.linalg.qr(torch.randn(WIDTH, WIDTH))[0] for _ in range(2))
    attention.q_proj.weight.copy_(LIKENESS * slow * alike)
    attention.k_proj.weight.copy_(LIKENESS * slow * alike)
    attention.v_proj.weight.copy_(COPYING * copied)
    attention.o_proj.weight.copy_(COPYING * copied.T)


def start_model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """The model that training starts from; draws on the global generator of torch."""
    model = LlavaForConditionalGeneration(configuration(tokenizer))
    keep_local(model)
    look_for_likeness(model)
    return model


def save(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Write model and processor for ``from_pretrained``."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
