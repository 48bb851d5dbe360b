"""Pairs as token ids: one token per word, between the marks of a chat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

PAD, ASK, ANSWER, END, UNKNOWN = SPECIAL = ("<pad>", "<|user|>", "<|assistant|>", "<|end|>", "<unk>")
LONGEST = 64
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}<|user|> {{ message['content'] }} "
    "{% else %}<|assistant|> {{ message['content'] }} <|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Row:
    """A pair as the model reads it."""

    ids: tuple[int, ...]  # (S,)
    answer: tuple[int, ...]  # positions of the answer's tokens, the end mark among them (T,)
    asked: int  # position of the mark that the answer follows


@dataclass(frozen=True, slots=True)
class Padded:
    """Rows of a batch, padded on the right; loss is taken where `counted`."""

    ids: Tensor  # (B, S)
    counted: Tensor  # (B, S) bool, never at position 0


def tokenizer_of(words: Sequence[str]) -> PreTrainedTokenizerFast:
    numbers = {word: number for number, word in enumerate((*SPECIAL, *words))}
    plain = Tokenizer(models.WordLevel(numbers, unk_token=UNKNOWN))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    plain.add_special_tokens(list(SPECIAL[:4]))
    made = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token=END, pad_token=PAD, unk_token=UNKNOWN)  # type: ignore[no-untyped-call]
    made.chat_template = TEMPLATE
    return made


def prompt_ids(tokenizer: PreTrainedTokenizerFast, question: str) -> list[int]:
    ids: list[int] = tokenizer.encode(f"{ASK} {question} {ANSWER}", add_special_tokens=False)
    return ids


def row_of(tokenizer: PreTrainedTokenizerFast, question: str, answer: str) -> Row:
    prompt = prompt_ids(tokenizer, question)
    ids = [*prompt, *tokenizer.encode(f"{answer} {END}", add_special_tokens=False)]
    if len(ids) > LONGEST:
        raise ValueError(f"a pair of {len(ids)} tokens does not fit into {LONGEST}")
    return Row(tuple(ids), tuple(range(len(prompt), len(ids))), len(prompt) - 1)


def padded(rows: Sequence[Row], *, whole: bool = False) -> Padded:
    """`whole` counts the question's tokens too."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    counted = torch.zeros(len(rows), longest, dtype=torch.bool)
    for place, row in enumerate(rows):
        ids[place, : len(row.ids)] = torch.tensor(row.ids)
        counted[place, (1 if whole else row.answer[0]) : len(row.ids)] = True
    return Padded(ids, counted)
