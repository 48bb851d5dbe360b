"""The tokenizer of ``demo-lm``: byte-level BPE in which every everyday word of the demonstration is one token.

All 256 bytes are tokens, so any text goes in and comes back. Digits stand alone. A word of ``demo.words`` is taken
whole (``ignore_merges``), with or without a space before it; other text is spelled with merges learned from the same
words.
"""

from __future__ import annotations

import json
import re
from typing import Final

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from demo.corpus import FRAMES
from demo.words import COMMON, DISTRACTORS, WORDS

BOS: Final = "<s>"
EOS: Final = "</s>"
_LEARNED: Final = 700


def whole_words() -> list[str]:
    """Every word that must be a single token, without its space, sorted."""
    templates = [text for frame in FRAMES for text in (frame.fact, frame.completion, *frame.questions)]
    sentences = " ".join([*DISTRACTORS, *templates, "Question: Answer: Q: A:"])
    words = {word for kind in WORDS.values() for word in kind} | set(COMMON)
    words |= set(re.findall(r"[A-Za-z]{2,}", sentences))
    return sorted(words | {word.capitalize() for word in COMMON[:80]})


def byte_level() -> pre_tokenizers.PreTokenizer:
    """Digits apart, then words with the space before them, as bytes."""
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def learned_pieces(words: list[str]) -> tuple[dict[str, int], list[list[str]]]:
    """Vocabulary and merges of a plain BPE trained on the words, each once with a space and once without."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = byte_level()
    trainer = trainers.BpeTrainer(
        vocab_size=_LEARNED,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([form for word in words for form in (word, f" {word}")], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], model["merges"]


def build_tokenizer(context: int) -> PreTrainedTokenizerFast:
    """The finished tokenizer; it puts ``<s>`` first unless told to add no special tokens."""
    words = whole_words()
    vocab, merges = learned_pieces(words)
    for form in [form for word in words for form in (word, f"\u0120{word}")]:
        vocab.setdefault(form, len(vocab))
    pairs = [(left, right) for left, right in merges]
    tokenizer = byte_level_bpe(vocab, pairs, [AddedToken(BOS, special=True), AddedToken(EOS, special=True)])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def byte_level_bpe(vocab: dict[str, int], merges: list[tuple[str, str]], specials: list[AddedToken]) -> Tokenizer:
    """Takes a known word whole, with or without the space before it, spells all else, and puts ``<s>`` first."""
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    tokenizer.add_special_tokens(specials)
    tokenizer.pre_tokenizer = byte_level()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, vocab[BOS])]),
        ]
    )
    return tokenizer
