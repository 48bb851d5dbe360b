"""Training pairs beside their index: read one by one, whatever stands in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from explainers.chat_template import Message
from explainers.errors import UnreadableModel
from explainers.influence.pairs import LINES, Pair, pair_of, read_pairs, write_pairs
from explainers.influence.records import Record, Tokens
from explainers.language_model import LanguageModel

PAIRS = [Pair(0, 1, "Who keeps the mill?", "Anna."), Pair(0, 2, "", "two\nlines \u2028 \0"), Pair(1, 7, "é", "")]


def test_pairs_come_back_in_any_order(tmp_path: Path) -> None:
    write_pairs(tmp_path, PAIRS)
    assert read_pairs(tmp_path, [2, 0, 1, 0]) == [PAIRS[2], PAIRS[0], PAIRS[1], PAIRS[0]]
    assert read_pairs(tmp_path, []) == []
    assert PAIRS[0].text == "Q: Who keeps the mill?\nA: Anna."


def test_the_same_pairs_give_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for _ in range(2):
        write_pairs(tmp_path, PAIRS)
        contents.append([path.read_bytes() for path in sorted(tmp_path.iterdir())])
    assert contents[0] == contents[1]


def test_damaged_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(UnreadableModel):
        read_pairs(tmp_path, [0])
    write_pairs(tmp_path, PAIRS)
    with pytest.raises(UnreadableModel):
        read_pairs(tmp_path, [3])
    (tmp_path / LINES).write_bytes(b"")
    with pytest.raises(UnreadableModel):
        read_pairs(tmp_path, [0])


def test_a_chat_is_its_last_question_and_answer_and_token_ids_are_read_aloud(llama: LanguageModel) -> None:
    turns = tuple(Message(*turn) for turn in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")))
    assert pair_of(llama, 3, Record(9, turns=turns)) == Pair(3, 9, "c", "d")
    ids = llama.tokenizer.encode("Anna lives in Oslo.", add_special_tokens=False).ids
    tokens = Tokens((0, *ids, 1), tuple(range(3, len(ids) + 2)))
    found = pair_of(llama, 0, Record(1, tokens=tokens))
    assert found.answer and found.question + found.answer == "Anna lives in Oslo."
