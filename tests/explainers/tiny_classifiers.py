"""Tiny random classifiers of texts, saved as real folders on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from tests.tiny_models import SENTENCES

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
SIZES = {"vocab_size": 120, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {**SIZES, "intermediate_size": 48, "max_position_embeddings": 64},
    "llama": {**SIZES, "intermediate_size": 48, "max_position_embeddings": 64, "num_key_value_heads": 2},
    "distilbert": {"vocab_size": 120, "dim": 24, "n_layers": 2, "n_heads": 2, "hidden_dim": 48}
    | {"max_position_embeddings": 64},
}


def tokenizer(mask: bool) -> PreTrainedTokenizerFast:
    special = SPECIAL | ({"mask_token": "[MASK]"} if mask else {})
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=100, special_tokens=list(special.values()))
    made.train_from_iterator(SENTENCES, trainer)
    ends = [(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def save(folder: Path, family: str = "bert", mask: bool = True, **settings: Any) -> Path:
    """A model of that family with some of its settings changed."""
    torch.manual_seed(0)
    words = tokenizer(mask)
    stated = {"num_labels": 3, "pad_token_id": words.pad_token_id, "initializer_range": 0.3} | settings
    config = AutoConfig.for_model(family, **FAMILIES[family] | stated)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
