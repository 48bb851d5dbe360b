"""Texts and tokenizers that break what is only ever tried with English and one tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from tests.tiny_models import SENTENCES

TEXTS = (
    "",
    " ",
    " \t \n ",
    "\n\n\n",
    "Anna lives in Oslo.",
    "  two  blanks  inside  ",
    "tabs\tand\r\nCRLF\r\n\r\nand\u00a0NBSP",
    "family 👩‍👩‍👧 and flag 🇳🇴!",
    "e\u0301 a\u0301\u0323 n\u0303",
    "日本語です。東京は大きい。",
    "a\x00b \x00",
    "¨ a¨ ½ ﬁne ﷺ İ",
    "\ufeffmark\u200b\u2028line\u2029paragraph\x85next",
)

PIECES = (
    "a",
    "in",
    "Oslo",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\u00a0",
    "\x00",
    ".",
    "é",
    "e\u0301",
    "日",
    "👩‍👩‍👧",
    "¨",
    "½",
    "ﷺ",
)

odd_text = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=9).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
)
"""Any text that is one: no lone surrogates."""


def _byte_level(normalizer: normalizers.Normalizer | None = None, trim: bool | None = None) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer is not None:
        made.normalizer = normalizer
    if trim is not None:
        made.post_processor = processors.ByteLevel(trim_offsets=trim)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    )
    return made


def _sentencepiece(prepare: Callable[[Tokenizer], None]) -> Tokenizer:
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    prepare(made)
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    made.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=320, special_tokens=special, show_progress=False)
    )
    return made


def _metaspace(made: Tokenizer) -> None:
    made.pre_tokenizer = pre_tokenizers.Metaspace()


def _prepended(made: Tokenizer) -> None:
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def _unigram() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    made.train_from_iterator(SENTENCES, trainer)
    return made


def _word_piece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]"], show_progress=False)
    made.train_from_iterator(SENTENCES, trainer)
    return made


TOKENIZERS: Mapping[str, Tokenizer] = {
    "byte-level": _byte_level(),
    "byte-level, trimmed": _byte_level(trim=True),
    "byte-level, untrimmed": _byte_level(trim=False),
    "byte-level, NFKC and lower case": _byte_level(
        normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]), trim=True
    ),
    "byte-level, accents stripped": _byte_level(
        normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]), trim=True
    ),
    "metaspace": _sentencepiece(_metaspace),
    "prepended blank": _sentencepiece(_prepended),
    "unigram": _unigram(),
    "word pieces": _word_piece(),
}
"""At most 320 tokens each, so that they fit the tiny models."""
