"""From controls to one factor per column: overlap, similarity, combination, and what is refused."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from explainers.controls import LARGEST_FACTOR, FactorRule, addressed, resolve
from explainers.errors import InvalidRequest
from explainers.granularity import words
from explainers.language_model import LanguageModel
from explainers.types import Control, Overlap, Place, Prompt, Span, Text, Tile, TokenIds
from tests.explainers import plain_rules
from tests.explainers.odd_texts import TOKENIZERS

TEXT = "Anna lives in Oslo. Anna is in Norway."
TARGET = " Oslo, Anna"
SECRET = "Zanzibar"


def combined(
    model: LanguageModel,
    prompt: Prompt,
    *,
    overlap: Overlap = "partial",
    threshold: float | None = None,
    target: str = TARGET,
) -> NDArray[np.float64]:
    sequence = model.encode(prompt, target)
    return FactorRule(model, sequence, threshold).combine(resolve(sequence, prompt, overlap)).factors


def on_tokens(model: LanguageModel, text: str, *controls: Control, overlap: Overlap = "partial") -> list[float]:
    """The factors of the tokens of a single text item."""
    factors = combined(model, (Text(text, controls),), overlap=overlap)
    start = len(model.start)
    return [float(factor) for factor in factors[start : start + len(model.encode((Text(text),), "x").tokens)]]


def tokens_of(model: LanguageModel, text: str) -> list[str]:
    return [text[a:b] for a, b in model.tokenizer.encode(text, add_special_tokens=False).offsets]


def test_only_tokens_inside_are_addressed(llama: LanguageModel) -> None:
    text = "Anna lives in Oslo."
    assert tokens_of(llama, text) == ["Anna", " lives", " in", " Oslo", "."]
    assert on_tokens(llama, text, Control(Span(5, 13), 0.1)) == [1, 0.1, 0.1, 1, 1]
    assert on_tokens(llama, text, Control(Span(0, len(text)), 0.0)) == [0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("place", "factor", "overlap", "expected"),
    [
        (Span(0, 2), 3.0, "partial", 2.0),  # half of "Anna"
        (Span(0, 2), 0.0, "partial", 0.5),
        (Span(1, 2), 0.2, "partial", 0.8),
        (Span(0, 4), 3.0, "partial", 3.0),
        (Span(0, 2), 3.0, "complete", 3.0),
        (Span(3, 4), 0.0, "complete", 0.0),
        (Span(2, 2), 0.0, "complete", 1.0),
        (Span(2, 2), 0.0, "partial", 1.0),
    ],
)
def test_overlap(llama: LanguageModel, place: Span, factor: float, overlap: Overlap, expected: float) -> None:
    assert on_tokens(llama, "Anna lives", Control(place, factor), overlap=overlap)[0] == pytest.approx(expected)
    other: Overlap = "complete" if overlap == "partial" else "partial"
    own = on_tokens(llama, "Anna lives", Control(place, factor, overlap), overlap=other)
    assert own[0] == pytest.approx(expected), "a control's own overlap wins over the request's"


@pytest.mark.parametrize("name", ["byte-level, untrimmed", "byte-level, trimmed"])
def test_leading_white_space_of_a_token_does_not_count(llama: LanguageModel, name: str) -> None:
    model = replace(llama, tokenizer=TOKENIZERS[name], start=())
    assert on_tokens(model, "Anna lives", Control(Span(4, 5), 0.0), overlap="complete") == [1, 1]
    assert on_tokens(model, "Anna lives", Control(Span(0, 5), 0.0), overlap="complete") == [0, 1]
    half = on_tokens(model, "Oslo is in", Control(Span(8, 9), 3.0))
    assert half[-1] == pytest.approx(2.0), "half of the two letters of ' in'"


def test_blank_tokens_of_no_length_follow_the_white_space_they_stand_for(llama: LanguageModel) -> None:
    model = replace(llama, tokenizer=TOKENIZERS["byte-level, trimmed"], start=())
    text = "a  in"  # the first blank is a token of its own, reported as empty at 2
    assert on_tokens(model, text, Control(Span(0, 5), 0.1)) == [0.1, 0.1, 0.1]
    assert on_tokens(model, text, Control(Span(1, 2), 0.1)) == [1, 0.1, 1]
    assert on_tokens(model, text, Control(Span(0, 1), 0.1)) == [0.1, 1, 1], "the word before it"
    assert on_tokens(model, text, Control(Span(3, 5), 0.1)) == [1, 1, 0.1], "the word behind it"
    assert on_tokens(model, text, Control(Span(2, 2), 0.1)) == [1, 1, 1]
    assert on_tokens(model, " ", Control(Span(0, 1), 0.1)) == [0.1]


def test_all_tokens_of_a_split_character_are_addressed(llama: LanguageModel) -> None:
    assert on_tokens(llama, "a👩b", Control(Span(1, 2), 0.1)) == [1, 0.1, 0.1, 0.1, 0.1, 1]


def test_token_ids_are_addressed_by_their_position(llama: LanguageModel) -> None:
    prompt = (Text("Anna"), TokenIds((7, 8, 7), (Control(2, 0.3), Control(0, 0.5, "complete"))))
    assert combined(llama, prompt, target="x").tolist() == [1, 1, 0.5, 1, 0.3]


def test_controls_reach_their_own_item_only(llama: LanguageModel) -> None:
    prompt = (Text("Anna"), Text("Anna", (Control(Span(0, 4), 0.1),)), Text("Anna"))
    assert combined(llama, prompt, target="x").tolist() == [1, 1, 0.1, 1]


def test_several_explicit_factors_multiply(llama: LanguageModel) -> None:
    whole, half = Control(Span(0, 4), 0.2), Control(Span(0, 2), 3.0)
    assert on_tokens(llama, "Anna", whole, half, whole) == [pytest.approx(0.2 * 2 * 0.2)]


def test_similar_tokens(llama: LanguageModel) -> None:
    """Tokens equal to an addressed one are reached everywhere, the target included, but never the start token."""
    oslo = llama.encode((Text(" Oslo"),), "x").prompt
    prompt = (Text(" Oslo is in Oslo"), TokenIds((oslo[0], 20), (Control(0, 0.1),)))
    factors = combined(llama, prompt, threshold=1.0, target=" Oslo is")
    assert factors.tolist() == [1, 0.1, 1, 1, 0.1, 0.1, 1, 0.1]
    assert llama.start == (0,)
    from_start = combined(llama, (TokenIds((0, 9, 0), (Control(0, 0.1),)),), threshold=1.0, target="x")
    assert from_start.tolist() == [1, 0.1, 1, 0.1], "the id of the start token is reached inside the prompt only"


def test_a_threshold_of_minus_one_reaches_all_that_points_the_same_way(llama: LanguageModel) -> None:
    prompt = (TokenIds((9, 20, 30), (Control(0, 0.1),)),)
    kinds, similarities = llama.similarities(llama.encode(prompt, "x"))
    cosine = similarities[kinds[1], kinds[1:]]
    expected = [1, *(1 - 0.9 * max(0.0, s) for s in cosine)]
    np.testing.assert_allclose(combined(llama, prompt, threshold=-1.0, target="x"), expected)
    assert combined(llama, prompt, threshold=None, target="x").tolist() == [1, 0.1, 1, 1]
    zero = combined(llama, prompt, threshold=0.0, target="x")
    np.testing.assert_allclose(zero, expected, err_msg="below 0 the factor is 1 in any case")


def test_explicit_factors_win_over_similar_ones(llama: LanguageModel) -> None:
    prompt = (TokenIds((9, 9, 9), (Control(0, 0.1), Control(1, 0.7))),)
    assert combined(llama, prompt, threshold=0.9, target="x").tolist() == [1, 0.1, 0.7, 0.1]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(0.4, 0.7, 0.4), (2.0, 3.0, 3.0), (0.5, 1.2, 0.5), (0.5, 1.8, 1.8), (0.5, 1.5, 0.5), (0.0, 0.3, 0.0)],
)
def test_of_several_similar_factors_the_farthest_from_one(
    llama: LanguageModel, first: float, second: float, expected: float
) -> None:
    for a, b in permutations((first, second)):
        prompt = (TokenIds((9, 9, 9), (Control(0, a), Control(1, b))),)
        assert combined(llama, prompt, threshold=0.9, target="x")[3] == expected


@pytest.mark.parametrize("threshold", [None, 0.0, -1.0])
@pytest.mark.parametrize("idle", [Control(Span(0, 19), 1.0), Control(Span(7, 7), 0.0), Control(Span(0, 0), 9.0)])
def test_factor_one_and_length_zero_do_nothing(llama: LanguageModel, idle: Control, threshold: float | None) -> None:
    """Not even stand in the way of a factor for being similar."""
    acting = Control(Span(5, 10), 0.1)
    alone = combined(llama, (Text(TEXT, (acting,)),), threshold=threshold)
    both = combined(llama, (Text(TEXT, (idle, acting)),), threshold=threshold)
    assert (alone == both).all()


places = st.tuples(st.integers(0, len(TEXT)), st.integers(0, len(TEXT))).map(lambda ends: Span(min(ends), max(ends)))
factors = st.sampled_from([0.0, 0.05, 0.5, 1.0, 2.0, 7.0])
controls = st.lists(st.builds(Control, places, factors, st.sampled_from([None, "partial", "complete"])), max_size=4)
id_controls = st.lists(st.builds(Control, st.integers(0, 2), factors), max_size=3)
thresholds = st.sampled_from([None, -1.0, -0.2, 0.0, 0.1, 0.3, 1.0])
overlaps = st.sampled_from(["partial", "complete"])


@settings(deadline=None, max_examples=100)
@given(controls, id_controls, overlaps, thresholds, st.sampled_from(["byte-level", "metaspace", "prepended blank"]))
def test_any_controls_give_what_the_rules_say(
    llama: LanguageModel,
    on_text: list[Control],
    on_ids: list[Control],
    overlap: Overlap,
    threshold: float | None,
    tokenizer: str,
) -> None:
    model = replace(llama, tokenizer=TOKENIZERS[tokenizer])
    prompt = (Text(TEXT, tuple(on_text)), TokenIds((260, 270, 260), tuple(on_ids)))
    found = combined(model, prompt, overlap=overlap, threshold=threshold)
    expected = plain_rules.factors(model, prompt, TARGET, overlap=overlap, threshold=threshold)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=50)
@given(st.data(), controls, thresholds)
def test_the_order_of_controls_never_matters(
    llama: LanguageModel, data: st.DataObject, on_text: list[Control], threshold: float | None
) -> None:
    shuffled = data.draw(st.permutations(on_text))
    one = combined(llama, (Text(TEXT, tuple(on_text)),), threshold=threshold)
    other = combined(llama, (Text(TEXT, tuple(shuffled)),), threshold=threshold)
    assert (one == other).all(), "to the last bit"


def test_not_even_the_rounding_of_a_product_depends_on_the_order(llama: LanguageModel) -> None:
    factors = (0.1, 0.7, 1.3, 0.3)
    products = {math.prod(order) for order in permutations(factors)}
    assert len(products) > 1, "or nothing is shown"
    found = {
        on_tokens(llama, "Anna", *(Control(Span(0, 4), factor) for factor in order))[0]
        for order in permutations(factors)
    }
    assert len(found) == 1


@pytest.mark.parametrize("overlap", ["partial", "complete"])
@pytest.mark.parametrize("threshold", [None, 0.5])
def test_a_tiny_factor_is_not_zero(llama: LanguageModel, overlap: Overlap, threshold: float | None) -> None:
    prompt = (TokenIds((9,), (Control(0, 1e-60),)), Text("Anna", (Control(Span(0, 4), 1e-40),)), TokenIds((9,)))
    similar = 1.0 if threshold is None else 1e-60
    assert combined(llama, prompt, overlap=overlap, threshold=threshold, target="x").tolist() == [
        1,
        1e-60,
        1e-40,
        similar,
    ]


@pytest.mark.parametrize(
    ("item", "place", "factor", "pointer"),
    [
        (Text(SECRET), Span(3, 9), 0.1, ""),
        (Text(SECRET), Span(-1, 2), 0.1, ""),
        (Text(SECRET), Span(3, 2), 0.1, ""),
        (Text(""), Span(0, 1), 0.1, ""),
        (TokenIds((5, 6)), 2, 0.1, ""),
        (TokenIds((5, 6)), -1, 0.1, ""),
        (TokenIds(()), 0, 0.1, ""),
        (Text(SECRET), 0, 0.1, ""),
        (Text(SECRET), Tile(0, 0, 1, 1), 0.1, ""),
        (TokenIds((5, 6)), Span(0, 1), 0.1, ""),
        (TokenIds((5, 6)), Tile(0, 0, 1, 1), 0.1, ""),
        (Text(SECRET), Span(0, 2), -0.1, "/factor"),
        (Text(SECRET), Span(0, 2), math.nan, "/factor"),
        (Text(SECRET), Span(0, 2), math.inf, "/factor"),
        (Text(SECRET), Span(0, 2), -math.inf, "/factor"),
        (Text(SECRET), Span(0, 2), 1e300, "/factor"),
        (TokenIds((5, 6)), 0, -1.0, "/factor"),
    ],
)
def test_bad_controls_are_refused_by_their_place(
    llama: LanguageModel, item: Text | TokenIds, place: Place, factor: float, pointer: str
) -> None:
    good = Control(Span(0, 0), 1.0) if isinstance(item, Text) else Control(place, 1.0)
    listed = (good, Control(place, factor)) if isinstance(item, Text) else (Control(place, factor),)
    prompt = (Text("Anna"), replace(item, controls=listed))
    with pytest.raises(InvalidRequest) as refused:
        resolve(llama.encode(prompt, "x"), prompt, "partial")
    assert refused.value.pointer == f"/prompt/1/controls/{len(listed) - 1}{pointer}"
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("factor", "message"), [(LARGEST_FACTOR, "more than 1e\\+30"), (1e-200, "out of range"), (1e20, "more than")]
)
def test_products_out_of_range_are_refused(llama: LanguageModel, factor: float, message: str) -> None:
    control = Control(Span(0, 4), factor)
    assert on_tokens(llama, "Anna", control) == [factor]
    with pytest.raises(InvalidRequest, match=message):
        on_tokens(llama, "Anna", control, control)


def test_a_thousand_chunks_of_a_thousand_tokens_take_no_time(llama: LanguageModel) -> None:
    """A loop over all tokens for each chunk took a dozen seconds."""
    text = "Anna in " * 500
    sequence = replace(llama, context_length=10_000).encode((Text(text), Text(text)), "x")
    places = words(text)
    assert (len(places), len(sequence.tokens)) == (1000, 3000)
    started = time.process_time()
    found = [addressed(sequence, 1, Control(place, 0.1), "partial") for place in places]
    assert time.process_time() - started < 1.0
    assert [min(factors) for factors in found[:4]] == [1501, 1502, 1504, 1505]


@contextmanager
def embedding(model: LanguageModel, token: int, vector: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Inside, `token` has the embedding that `vector` makes of all."""
    weight = model.network.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    kept = weight[token].clone()
    with torch.inference_mode():
        weight[token] = vector(weight)
    try:
        yield
    finally:
        with torch.inference_mode():
            weight[token] = kept


def test_ids_whose_embeddings_point_the_same_way_are_the_same_to_a_threshold_of_one(llama: LanguageModel) -> None:
    """The rounding of the cosine does not matter."""
    prompt = (TokenIds((9, 30, 31), (Control(0, 0.1),)),)
    for scale in (0.3, 1.0, 2.0, 7.0):
        with embedding(llama, 30, lambda weight, scale=scale: weight[9] * scale):  # type: ignore[misc]
            assert combined(llama, prompt, threshold=0.999999, target="x").tolist() == pytest.approx([1, 0.1, 0.1, 1])
    with embedding(llama, 30, lambda weight: weight[9]):
        assert combined(llama, prompt, threshold=1.0, target="x").tolist() == [1, 0.1, 0.1, 1]


def test_a_token_without_direction_is_like_itself_only(llama: LanguageModel) -> None:
    """Padding tokens often have an embedding of zeros."""
    with embedding(llama, 30, lambda weight: torch.zeros_like(weight[0])):
        prompt = (TokenIds((30, 9, 30), (Control(0, 0.1),)),)
        assert combined(llama, prompt, threshold=0.5, target="x").tolist() == [1, 0.1, 1, 0.1]
