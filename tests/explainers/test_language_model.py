"""Text into ids and spans, what is refused on the way, and the similarity of embeddings."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from explainers.errors import ContextLengthExceeded, InvalidRequest, MissingCapability
from explainers.language_model import LanguageModel, Token, TokenSequence
from explainers.types import Image, Prompt, Span, Text, TokenIds
from tests.explainers.odd_texts import TEXTS, TOKENIZERS, odd_text

SECRET = "Zanzibar"


def ids_of(model: LanguageModel, text: str) -> list[int]:
    return list(model.tokenizer.encode(text, add_special_tokens=False).ids)


def spoken(llama: LanguageModel, tokenizer: str) -> LanguageModel:
    """The tiny model with another tokenizer, without a start token."""
    return replace(llama, tokenizer=TOKENIZERS[tokenizer], start=())


def assert_well_formed(text: str, tokens: list[Token]) -> None:
    """Inside the text and in order; two tokens have at most one character, a split one, in common."""
    for token in tokens:
        assert token.span is not None
        assert token.body is not None
        assert 0 <= token.span.start <= token.span.stop <= len(text)
        body = text[token.body.start : token.body.stop]
        assert token.span.start <= token.body.start <= token.body.stop == token.span.stop
        assert body == body.lstrip() or token.body == token.span
    spans = [token.span for token in tokens if token.span]
    for span, following in pairwise(spans):
        assert span.start <= following.start
        assert span.stop <= following.stop
        assert span.stop - following.start <= 1


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_spans_of_odd_texts(llama: LanguageModel, name: str, text: str) -> None:
    sequence = spoken(llama, name).encode((TokenIds((5,)), Text(text)), "x")
    tokens = [token for token in sequence.tokens if token.item == 1]
    assert [token.index for token in tokens] == list(range(len(tokens)))
    assert list(sequence.prompt[1:]) == TOKENIZERS[name].encode(text, add_special_tokens=False).ids
    assert_well_formed(text, tokens)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=30)
@given(text=odd_text)
def test_spans_of_any_text(llama: LanguageModel, name: str, text: str) -> None:
    assert_well_formed(text, list(spoken(llama, name).encode((TokenIds((5,)), Text(text)), "x").tokens[1:]))


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if "NFKC" not in name])
@pytest.mark.parametrize("text", TEXTS)
def test_spans_are_the_tokenizers_own_offsets(llama: LanguageModel, name: str, text: str) -> None:
    tokens = spoken(llama, name).encode((TokenIds((5,)), Text(text)), "x").tokens[1:]
    offsets = TOKENIZERS[name].encode(text, add_special_tokens=False).offsets
    assert [(token.span.start, token.span.stop) for token in tokens if token.span] == offsets


def test_tokens_of_a_split_character_share_its_span(llama: LanguageModel) -> None:
    tokens = llama.encode((Text("a👩b"),), "x").tokens
    assert [token.span for token in tokens] == [Span(0, 1), *[Span(1, 2)] * 4, Span(2, 3)]


def test_a_blank_that_a_normaliser_made_of_a_character_shares_its_span(llama: LanguageModel) -> None:
    """NFKC makes a blank and a combining mark of ¨; the tokenizer trims that blank to behind the character."""
    model = spoken(llama, "byte-level, NFKC and lower case")
    assert model.tokenizer.encode("a¨", add_special_tokens=False).offsets == [(0, 1), (2, 2), (1, 2), (1, 2)]
    tokens = model.encode((Text("a¨"),), "x").tokens
    assert [token.span for token in tokens] == [Span(0, 1), Span(1, 2), Span(1, 2), Span(1, 2)]


def test_blank_tokens_may_be_empty(llama: LanguageModel) -> None:
    tokens = spoken(llama, "byte-level, trimmed").encode((Text("a  in"),), "x").tokens
    assert [token.span for token in tokens] == [Span(0, 1), Span(2, 2), Span(3, 5)]
    assert [token.body for token in tokens] == [token.span for token in tokens]


def test_bodies_leave_leading_white_space_out(llama: LanguageModel) -> None:
    tokens = spoken(llama, "byte-level, untrimmed").encode((Text("Anna lives in \n"),), "x").tokens
    by_span = {token.span: token.body for token in tokens}
    assert by_span[Span(4, 10)] == Span(5, 10)
    assert by_span[Span(10, 13)] == Span(11, 13)
    assert by_span[Span(14, 15)] == Span(14, 15), "a token of nothing but white space keeps it"


def test_items_are_tokenised_one_by_one_and_joined(llama: LanguageModel) -> None:
    prompt = (Text("Anna li"), TokenIds((7, 7, 300)), Text(""), Text("ves in"))
    sequence = llama.encode(prompt, " Oslo")
    parts = [ids_of(llama, "Anna li"), [7, 7, 300], [], ids_of(llama, "ves in")]
    assert list(sequence.prompt) == [token for part in parts for token in part]
    assert sequence.prompt != tuple(ids_of(llama, "Anna lives in")), "or nothing was shown"
    assert [token.item for token in sequence.tokens] == [0] * len(parts[0]) + [1] * 3 + [3] * len(parts[3])
    assert [sequence.tokens_of(item) for item in range(4)] == [
        range(len(parts[0])),
        range(len(parts[0]), len(parts[0]) + 3),
        range(len(parts[0]) + 3, len(parts[0]) + 3),
        range(len(parts[0]) + 3, len(sequence.prompt)),
    ]


def test_the_target_is_tokenised_on_its_own(llama: LanguageModel) -> None:
    sequence = llama.encode((Text("Anna li"),), "ves in")
    assert list(sequence.target) == ids_of(llama, "ves in")
    assert len(sequence.target_spans) == len(sequence.target)
    assert sequence.read == (*llama.start, *sequence.prompt, *sequence.target[:-1])
    assert sequence.positions == len(sequence.read)
    assert sequence.first_scored == len(llama.start) + len(sequence.prompt) - 1


def test_the_start_token_stands_before_the_first_item_only(llama: LanguageModel) -> None:
    assert llama.start == (llama.tokenizer.token_to_id("<s>"),)
    sequence = llama.encode((Text("Anna"), Text("Ben")), " Oslo")
    assert sequence.start == llama.start
    assert sequence.read.count(llama.start[0]) == 1
    assert len(sequence.tokens) == len(sequence.prompt), "it is no token of an item"


@pytest.mark.parametrize("prompt", [(), (Text(""),), (TokenIds(()), Text(""))])
def test_an_empty_prompt_is_the_start_token_alone(llama: LanguageModel, prompt: Prompt) -> None:
    sequence = llama.encode(prompt, " Oslo")
    assert (sequence.start, sequence.prompt, sequence.tokens, sequence.warnings) == (llama.start, (), (), ())
    assert sequence.first_scored == 0


@pytest.mark.parametrize("prompt", [(), (Text(""),)])
def test_without_a_start_token_the_end_of_text_stands_in_for_an_empty_prompt(
    llama: LanguageModel, prompt: Prompt
) -> None:
    model = replace(llama, start=(), separator=1)
    sequence = model.encode(prompt, " Oslo")
    assert sequence.start == (1,)
    assert "end-of-text" in sequence.warnings[0]
    full = model.encode((Text("Anna"),), " Oslo")
    assert (full.start, full.warnings) == ((), ())


def test_without_any_such_token_an_empty_prompt_is_refused(llama: LanguageModel) -> None:
    with pytest.raises(InvalidRequest, match="no start token") as refused:
        replace(llama, start=(), separator=None).encode((Text(""),), " Oslo")
    assert refused.value.pointer == "/prompt"


@pytest.mark.parametrize("wrong", [-1, 320, 10**30])
def test_ids_outside_the_vocabulary_are_named_by_position(llama: LanguageModel, wrong: int) -> None:
    with pytest.raises(InvalidRequest, match="position 2 is outside the vocabulary") as refused:
        llama.encode((Text("a"), TokenIds((0, 319, wrong, 5))), "x")
    assert refused.value.pointer == "/prompt/1/data/2"
    assert llama.vocabulary_size == 320


@pytest.mark.parametrize(
    ("prompt", "target", "error", "pointer"),
    [
        ((Text(SECRET), Text(SECRET + "\ud800")), "x", InvalidRequest, "/prompt/1/data"),
        ((Text(SECRET),), SECRET + "\udfff", InvalidRequest, "/target"),
        ((Text(SECRET),), "", InvalidRequest, "/target"),
        ((Text(SECRET), Image(SECRET.encode())), "x", MissingCapability, "/prompt/1"),
        ((Text(SECRET * 100),), "x", ContextLengthExceeded, "/prompt"),
    ],
)
def test_refusals_point_to_the_place_and_quote_nothing(
    llama: LanguageModel, prompt: Prompt, target: str, error: type[InvalidRequest], pointer: str
) -> None:
    with pytest.raises(error) as refused:
        llama.encode(prompt, target)
    assert type(refused.value) is error
    assert refused.value.pointer == pointer
    assert SECRET not in str(refused.value)


def test_a_target_of_which_the_tokenizer_leaves_nothing_is_refused(llama: LanguageModel) -> None:
    with pytest.raises(InvalidRequest, match="no token") as refused:
        spoken(llama, "word pieces").encode((Text("Anna"),), "\u200d \t")
    assert refused.value.pointer == "/target"


def test_too_long_names_both_numbers_and_the_limit(llama: LanguageModel) -> None:
    assert llama.context_length == 256
    room = 256 - len(llama.start) - 2
    fits = llama.encode((TokenIds((5,) * room),), "ab")
    assert len(fits.target) == 2
    with pytest.raises(ContextLengthExceeded, match=r"255 tokens.*2 tokens.*257 tokens.*holds 256$"):
        llama.encode((TokenIds((5,) * (room + 1)),), "ab")


@settings(deadline=None, max_examples=50)
@given(text=odd_text, edges=st.tuples(st.integers(0, 12), st.integers(0, 12)), name=st.sampled_from(sorted(TOKENIZERS)))
def test_tokens_near_a_place_are_those_that_touch_it(
    llama: LanguageModel, text: str, edges: tuple[int, int], name: str
) -> None:
    sequence: TokenSequence = spoken(llama, name).encode((Text("in Oslo"), Text(text), Text("in Oslo")), "x")
    place = Span(min(edges), max(edges))
    touching = [
        position
        for position, token in enumerate(sequence.tokens)
        if token.item == 1 and token.span and token.span.stop >= place.start and token.span.start <= place.stop
    ]
    assert list(sequence.tokens_near(1, place)) == touching


def test_similarities_are_cosines_of_the_input_embeddings(llama: LanguageModel) -> None:
    ids = [3, 90, 200, 319, 3]
    weight = llama.network.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    rows = weight.detach().double().numpy()[ids]
    expected = rows @ rows.T / np.outer(np.linalg.norm(rows, axis=1), np.linalg.norm(rows, axis=1))
    kinds, cosine = llama.similarities(llama.encode((TokenIds(tuple(ids)),), "x"))
    assert kinds[1] == kinds[5]
    found = cosine[np.ix_(kinds[1:], kinds[1:])]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (np.diag(found) == 1).all()
    assert np.abs(found).max() <= 1
