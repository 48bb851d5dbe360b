"""Small tokenizers of three kinds, and chat templates in the forms that are about."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from explainers.chat_template import ChatTemplate, Message
from explainers.influence.records import Record
from explainers.language_model import LanguageModel
from tests import tiny_models

SPECIAL = ["<s>", "</s>", "<unk>", "<|start|>", "<|end|>"]
NAMED = {"bos_token": "<s>", "eos_token": "</s>"}
LETTERS = [*"abcdefghijklmnopqrstuvwxyzABCNORWTHéä .,?!:[]\n▁"]


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(tiny_models.SENTENCES, trainer)
    return tokenizer


def _word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=LETTERS, show_progress=False
    )
    tokenizer.train_from_iterator(tiny_models.SENTENCES, trainer)
    return tokenizer


def _metaspace() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=LETTERS, show_progress=False)
    tokenizer.train_from_iterator(tiny_models.SENTENCES, trainer)
    return tokenizer


TOKENIZERS = {"byte-level": _byte_level, "word-piece": _word_piece, "metaspace": _metaspace}


@cache
def _trained(kind: str) -> Tokenizer:
    """Once in a process: word pieces come out in another order each time."""
    return TOKENIZERS[kind]()


_LOOP, _ENDFOR = "{% for m in messages %}", "{% endfor %}"
_OPEN = "{% if add_generation_prompt %}"
PLAIN = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
    "{{ '\\n' }}{% else %}{{ m.content }}{{ eos_token }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
TEMPLATES = {
    "chatml": _LOOP + "<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n" + _ENDFOR + _OPEN
    + "<|start|>assistant\n{% endif %}",
    "with a start token and trimmed": "{{ bos_token }}" + _LOOP
    + "<|start|>{{ m.role }}\n\n{{ m.content | trim }}<|end|>" + _ENDFOR + _OPEN + "<|start|>assistant\n\n{% endif %}",
    "instructions": "{{ bos_token }}" + _LOOP + "{% if m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
    "{% else %}[INST] {{ m.content }} [/INST]{% endif %}" + _ENDFOR,
    "an end of everything": _LOOP + "<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n" + _ENDFOR + _OPEN
    + "<|start|>assistant\n{% else %}{{ eos_token }}{% endif %}",
}  # fmt: skip


def unmarked(source: str) -> str:
    return source.replace("{% generation %}", "").replace("{% endgeneration %}", "")


def chatty(model: LanguageModel, kind: str, source: str | None) -> LanguageModel:
    """`model` with another tokenizer and chat template; its ids are in the model's vocabulary."""
    fast = reference(kind, source)
    chat = None if source is None else ChatTemplate(source, NAMED)
    return replace(model, tokenizer=fast.backend_tokenizer, start=(), chat=chat)


def reference(kind: str, source: str | None) -> Any:
    """The same as transformers has it."""
    made: Any = PreTrainedTokenizerFast
    others = {"extra_special_tokens": SPECIAL[3:], "unk_token": "<unk>", "chat_template": source}
    return made(tokenizer_object=_trained(kind), **NAMED, **others)


def talk(*contents: str, line: int = 1) -> Record:
    """A chat of the user and the assistant in turn."""
    roles = ("user", "assistant")
    return Record(line, tuple(Message(roles[place % 2], content) for place, content in enumerate(contents)))
