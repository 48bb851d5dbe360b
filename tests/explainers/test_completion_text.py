from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from explainers.completion_text import Detokenizer, Draft, ScoredToken, TokenTexts
from tests import tiny_models

BYTES: Tokenizer = tiny_models.tokenizer()._tokenizer
TEXTS = [
    "Anna lives in Oslo.",
    " Grüße, 東京 \N{SNOWMAN}\n\n\N{FAMILY} e\u0301",
    "\N{PARTY POPPER}\N{PARTY POPPER}",
    "a\N{REPLACEMENT CHARACTER}b",
    "",
]


def by_word() -> Tokenizer:
    """A tokenizer whose decoder drops the blank before a text, with bytes for what is no word."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581Oslo", "\u2581in", "\u2581", "s"]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def pieces(tokenizer: Tokenizer, ids: list[int], context: tuple[int, ...] = ()) -> list[str]:
    detokenizer = Detokenizer(tokenizer, context)
    return [*(detokenizer.add(token) for token in ids), detokenizer.rest()]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_whole_characters_and_join_to_the_text(text: str) -> None:
    ids = BYTES.encode(text, add_special_tokens=False).ids
    found = pieces(BYTES, ids)
    assert "".join(found) == text
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in found)


def test_half_a_character_waits_and_is_told_at_the_end() -> None:
    ids = BYTES.encode("a\N{SNOWMAN}", add_special_tokens=False).ids
    assert len(ids) == 4
    assert pieces(BYTES, ids) == ["a", "", "", "\N{SNOWMAN}", ""]
    assert pieces(BYTES, ids[:3]) == ["a", "", "", "\N{REPLACEMENT CHARACTER}"]
    assert pieces(BYTES, ids[2:], context=tuple(ids[:2])) == ["", "\N{SNOWMAN}", ""]


def test_bytes_that_are_no_text_do_not_stop_what_follows() -> None:
    byte = BYTES.token_to_id("\u0122")  # 0xA2 alone begins no character
    ids = [byte] * 30 + BYTES.encode(" Oslo", add_special_tokens=False).ids
    assert "".join(pieces(BYTES, ids)) == "\N{REPLACEMENT CHARACTER}" * 30 + " Oslo"


def test_the_first_blank_is_kept_behind_a_prompt() -> None:
    tokenizer = by_word()
    oslo, into = (tokenizer.token_to_id(word) for word in ("\u2581Oslo", "\u2581in"))
    assert pieces(tokenizer, [into, oslo, into], context=(oslo,)) == [" in", " Oslo", " in", ""]
    assert pieces(tokenizer, [oslo, into]) == ["Oslo", " in", ""]
    snowman = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "\N{SNOWMAN}".encode()]
    assert pieces(tokenizer, [*snowman, into], context=(oslo,)) == ["", "", "\N{SNOWMAN}", " in", ""]


def test_special_tokens_only_show_when_asked_for() -> None:
    end = BYTES.token_to_id("</s>")
    ids = BYTES.encode(" Oslo", add_special_tokens=False).ids
    assert "".join(pieces(BYTES, [*ids, end])) == " Oslo"
    raw = Detokenizer(BYTES, (), special_tokens=True)
    assert "".join(map(raw.add, [*ids, end])) + raw.rest() == " Oslo</s>"


def test_token_texts_keep_their_blanks_and_name_what_is_no_text() -> None:
    texts = TokenTexts(BYTES)
    assert "".join(texts[token] for token in BYTES.encode(" Oslo is", add_special_tokens=False).ids) == " Oslo is"
    assert texts[BYTES.token_to_id("\u0122")] == "\u0122"
    assert texts[BYTES.token_to_id("</s>")] == "</s>"
    assert texts[10_000] == ""
    words = by_word()
    assert TokenTexts(words)[words.token_to_id("\u2581in")] == " in"


def drafted(text: str, *stops: str) -> tuple[list[str], Draft]:
    draft = Draft(Detokenizer(BYTES, ()), stops)
    released = []
    for token in BYTES.encode(text, add_special_tokens=False).ids:
        draft.add(ScoredToken(token, "", None))
        released.append(draft.release().text)
        if draft.stopped:
            break
    return [*released, draft.finish().text], draft


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one. two.", (".",), "one"),
        ("one. two.", ("two", "e. t"), "on"),
        ("one. two.", ("e", "one"), ""),
        ("aaab", ("aab",), "a"),
        ("one\n\ntwo", ("\n\n",), "one"),
        ("one \N{SNOWMAN} two", ("\N{SNOWMAN}",), "one "),
        ("one", ("one two",), "one"),
        ("one", (), "one"),
    ],
)
def test_text_ends_before_the_first_stop_sequence(text: str, stops: tuple[str, ...], expected: str) -> None:
    released, draft = drafted(text, *stops)
    assert "".join(released) == expected
    assert draft.stopped == (expected != text)


def test_the_beginning_of_a_stop_sequence_waits() -> None:
    released, _ = drafted("abababc", "ababc")
    so_far = ""
    for piece in released:
        so_far += piece
        assert "ab".startswith(so_far)
    assert so_far == "ab"


def test_tokens_are_released_with_the_text_they_begin_in() -> None:
    ids = BYTES.encode("a\N{SNOWMAN}b", add_special_tokens=False).ids
    draft = Draft(Detokenizer(BYTES, ()), ["b"])
    counts = []
    for token in ids:
        draft.add(ScoredToken(token, "", None))
        counts.append(len(draft.release().tokens))
    assert counts == [1, 0, 0, 3, 0]
    assert draft.stopped and not draft.finish().tokens
