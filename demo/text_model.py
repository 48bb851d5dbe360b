"""Tokenizer and untrained network of ``demo-text``: words as tokens, a BERT of two narrow layers."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from demo.messages import MASK, vocabulary

CLASSES: Final = ("urgent", "routine")
LENGTH: Final = 128
"""Tokens of a text at most, special ones included."""

SPECIAL: Final = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": MASK,
}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Every word of the messages is a token, in lower case; whatever stands between words is none."""
    names = [*SPECIAL.values(), *vocabulary()]
    places = {name: place for place, name in enumerate(names)}
    made = Tokenizer(models.WordLevel(places, unk_token=SPECIAL["unk_token"]))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"\W+"), "removed")
    ends = [(name, names.index(name)) for name in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=LENGTH, **SPECIAL)  # type: ignore[no-untyped-call]


def start_model(tokenizer: PreTrainedTokenizerFast) -> BertForSequenceClassification:
    """With random weights."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.1,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: place for place, name in enumerate(CLASSES)},
        pad_token_id=tokenizer.pad_token_id,
        problem_type="single_label_classification",
    )
    return BertForSequenceClassification(config)


def save(model: BertForSequenceClassification, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
