"""The form of an explanation: which features and targets, at which granularity, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from explainers.errors import ContextLengthExceeded, InvalidRequest, MissingCapability
from explainers.language_model import LanguageModel
from explainers.methods.atman import attribute
from explainers.types import AtmanConfig, Attribution, Control, Image, Prompt, Span, Text, TokenIds
from tests.explainers.odd_texts import TEXTS, TOKENIZERS, odd_text

GRANULARITIES = ("token", "word", "sentence", "paragraph", "custom")
SECRET = "Zanzibar"
NO_DELIMITER = AtmanConfig(granularity="custom", delimiter="")


def config_of(granularity: Any, **options: Any) -> AtmanConfig:
    return AtmanConfig(granularity=granularity, delimiter="i", **options)


def pieces(attribution: Attribution, item: int) -> list[str]:
    return [feature.name for feature in attribution.features if feature.item == item]


def spoken(llama: LanguageModel, tokenizer: str) -> LanguageModel:
    return replace(llama, tokenizer=TOKENIZERS[tokenizer])


@pytest.mark.parametrize(
    ("granularity", "expected"),
    [
        ("token", ["Anna", " lives", " in", " Oslo", ".", "\n", "\n", "Ben"]),
        ("word", ["Anna", "lives", "in", "Oslo.", "Ben"]),
        ("sentence", ["Anna lives in Oslo.", "Ben"]),
        ("paragraph", ["Anna lives in Oslo.", "Ben"]),
        ("custom", ["Anna l", "ves ", "n Oslo.\n\nBen"]),
    ],
)
def test_pieces_of_each_granularity(llama: LanguageModel, granularity: str, expected: list[str]) -> None:
    found = attribute(llama, (Text("Anna lives in Oslo.\n\nBen"),), " is", config_of(granularity))
    assert pieces(found, 0) == expected
    assert found.values.shape == (1, len(expected))
    assert found.facts["granularity"] == granularity


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_features_of_odd_texts_lie_where_their_names_are(
    llama: LanguageModel, tokenizer: str, granularity: str
) -> None:
    prompt = tuple(Text(text) for text in TEXTS)
    found = attribute(spoken(llama, tokenizer), prompt, " Oslo", config_of(granularity))
    order = [(feature.item, feature.place.start) for feature in found.features if isinstance(feature.place, Span)]
    assert order == sorted(order)
    assert len(order) == len(found.features)
    for feature in found.features:
        assert isinstance(feature.place, Span)
        assert TEXTS[feature.item][feature.place.start : feature.place.stop] == feature.name


@settings(deadline=None, max_examples=25)
@given(odd_text, st.sampled_from(sorted(TOKENIZERS)), st.sampled_from(GRANULARITIES))
def test_any_text_can_be_explained(llama: LanguageModel, text: str, tokenizer: str, granularity: str) -> None:
    found = attribute(spoken(llama, tokenizer), (Text(text),), " Oslo", config_of(granularity))
    for feature in found.features:
        assert isinstance(feature.place, Span)
        assert text[feature.place.start : feature.place.stop] == feature.name


@pytest.mark.parametrize("granularity", [None, *GRANULARITIES])
def test_every_token_id_is_a_feature_at_every_granularity(llama: LanguageModel, granularity: Any) -> None:
    prompt = (Text("Anna lives in Oslo."), TokenIds((260, 7, 260)), Text(""), TokenIds((9,)))
    found = attribute(llama, prompt, " Oslo", config_of(granularity))
    by_ids = [(feature.item, feature.place, feature.name) for feature in found.features if feature.item in (1, 3)]
    assert by_ids == [(1, 0, "260"), (1, 1, "7"), (1, 2, "260"), (3, 0, "9")]
    assert pieces(found, 2) == []
    assert (found.values[0][[feature.item == 1 for feature in found.features]] != 0).all()


@pytest.mark.parametrize(
    ("text", "ids", "expected"),
    [
        ("in " * 12, 0, "token"),  # 24, 12, 1, 1
        ("Annabel " * 28, 0, "word"),  # over 100, 28, 1, 1
        ("Annabel lives. " * 30, 0, "sentence"),  # over 100, 60, 30, 1
        ("Anna is in. Ben is. Oslo.\n\n" * 15, 0, "sentence"),  # over 100, 90, 45, 15: of equals the finer
        ("Anna is in. Ben is. Oslo.\n\n" * 15, 1, "paragraph"),  # over 100, 91, 46, 16
        ("x" * 30, 2, "token"),  # 32, 3, 3, 3
        ("", 40, "token"),  # 40 each
        ("Anna lives in Oslo. Ben lives in Rome, too.", 0, "token"),  # over 10, 9, 2, 1
        ("Anna lives in Oslo. Ben lives in Rome, too.", 21, "word"),  # over 31, 30, 23, 22
        ("Anna lives in Oslo. Ben lives in Rome, too.", 28, "sentence"),  # over 38, 37, 30, 29
        ("Anna lives in Oslo. Ben lives in Rome, too.", 29, "paragraph"),  # over 39, 38, 31, 30
    ],
)
def test_the_automatic_granularity_counts_pieces_and_token_ids(
    llama: LanguageModel, text: str, ids: int, expected: str
) -> None:
    prompt = (Text(text), TokenIds((7,) * ids))
    found = attribute(replace(llama, context_length=10_000), prompt, " Oslo", AtmanConfig(delimiter="."))
    assert found.facts["granularity"] == expected
    assert len([feature for feature in found.features if feature.item == 1]) == ids


def test_the_target_does_not_count_for_the_automatic_granularity(llama: LanguageModel) -> None:
    prompt = (Text("Anna lives in Oslo. " * 8),)
    options = [AtmanConfig(), AtmanConfig(target_granularity="token")]
    assert {attribute(llama, prompt, " in" * 40, option).facts["granularity"] for option in options} == {"word"}


@pytest.mark.parametrize("target_granularity", ["complete", "token"])
@pytest.mark.parametrize("granularity", [None, *GRANULARITIES])
@pytest.mark.parametrize("prompt", [(), (Text(""),), (TokenIds(()), Text(""))])
def test_empty_prompts(llama: LanguageModel, prompt: Prompt, granularity: Any, target_granularity: Any) -> None:
    config = config_of(granularity, target_granularity=target_granularity)
    found = attribute(llama, prompt, " Oslo, Anna", config)
    own = [feature.name for feature in found.features]
    assert own == ([] if target_granularity == "complete" else [" Oslo", ",", " "])
    assert all(feature.item == len(prompt) for feature in found.features)
    assert found.facts["prompt_tokens"] == 0
    assert found.base_values is not None
    assert found.base_values.sum() < 0


@pytest.mark.parametrize("start", [True, False])
def test_the_start_token_is_in_no_feature(llama: LanguageModel, start: bool) -> None:
    model = llama if start else replace(llama, start=())
    found = attribute(model, (Text("Anna lives"),), " Oslo", AtmanConfig(granularity="token"))
    assert pieces(found, 0) == ["Anna", " lives"]
    assert found.facts["prompt_tokens"] == 2


def test_a_stand_in_for_the_start_token_is_told_of(llama: LanguageModel) -> None:
    found = attribute(replace(llama, start=(), separator=1), (), " Oslo", AtmanConfig())
    assert len(found.facts["warnings"]) == 1
    assert attribute(llama, (), " Oslo", AtmanConfig()).facts["warnings"] == []


def test_a_one_token_target(llama: LanguageModel) -> None:
    config = AtmanConfig(granularity="word", target_granularity="token")
    found = attribute(llama, (Text("Anna lives in"),), " Oslo", config)
    assert [target.text for target in found.targets] == [" Oslo"]
    assert found.values.shape == (1, 3)
    assert [feature.item for feature in found.features] == [0, 0, 0]


@settings(deadline=None, max_examples=20)
@given(odd_text.filter(bool), st.sampled_from(sorted(TOKENIZERS)))
def test_target_tokens_joined_give_the_target(llama: LanguageModel, target: str, tokenizer: str) -> None:
    model = spoken(llama, tokenizer)
    if not model.tokenizer.encode(target, add_special_tokens=False).ids:
        target += "a"
    found = attribute(model, (Text("Anna"),), target, AtmanConfig(target_granularity="token"))
    assert "".join(part.text for part in found.targets) == target
    assert len(found.targets) == len(model.tokenizer.encode(target, add_special_tokens=False).ids)
    whole = attribute(model, (Text("Anna"),), target, AtmanConfig())
    assert [part.text for part in whole.targets] == [target]


@pytest.mark.parametrize(
    ("tokenizer", "target", "expected"),
    [
        ("byte-level", " Oslo👩.", [" Oslo", "", "", "", "👩", "."]),
        ("byte-level, trimmed", " Oslo is in", [" Oslo", " is", " in"]),
        ("byte-level, untrimmed", " Oslo is in", [" Oslo", " is", " in"]),
        ("byte-level, trimmed", "Anna  in", ["Anna", " ", " in"]),
        ("byte-level", "é\n", ["", "é", "\n"]),
        ("byte-level, NFKC and lower case", "x¨", ["x", "", "", "¨"]),
    ],
)
def test_target_tokens_carry_leading_blanks_and_the_last_of_a_character_the_character(
    llama: LanguageModel, tokenizer: str, target: str, expected: list[str]
) -> None:
    config = AtmanConfig(target_granularity="token")
    found = attribute(spoken(llama, tokenizer), (Text("Anna"),), target, config)
    assert [part.text for part in found.targets] == expected


@pytest.mark.parametrize("granularity", [None, "token", "word", "sentence", "paragraph"])
@pytest.mark.parametrize("delimiter", ["", "i", None])
def test_a_delimiter_means_nothing_to_other_granularities(
    llama: LanguageModel, granularity: Any, delimiter: str | None
) -> None:
    prompt = (Text("Anna lives in Oslo."),)
    with_it = attribute(llama, prompt, "x", AtmanConfig(granularity=granularity, delimiter=delimiter))
    without = attribute(llama, prompt, "x", AtmanConfig(granularity=granularity))
    assert with_it.features == without.features


@pytest.mark.parametrize(
    ("prompt", "target", "config", "error", "pointer"),
    [
        (Text(SECRET), "x", AtmanConfig(-0.1), InvalidRequest, "/control_factor"),
        (Text(SECRET), "x", AtmanConfig(math.nan), InvalidRequest, "/control_factor"),
        (Text(SECRET), "x", AtmanConfig(math.inf), InvalidRequest, "/control_factor"),
        (Text(SECRET), "x", AtmanConfig(1e300), InvalidRequest, "/control_factor"),
        (Text(SECRET), "x", AtmanConfig(threshold=1.01), InvalidRequest, "/contextual_control_threshold"),
        (Text(SECRET), "x", AtmanConfig(threshold=-2), InvalidRequest, "/contextual_control_threshold"),
        (Text(SECRET), "x", AtmanConfig(threshold=math.nan), InvalidRequest, "/contextual_control_threshold"),
        (Text(SECRET), "x", AtmanConfig(granularity="custom"), InvalidRequest, "/prompt_granularity/delimiter"),
        (Text(SECRET), "x", NO_DELIMITER, InvalidRequest, "/prompt_granularity/delimiter"),
        (Text(SECRET), "", AtmanConfig(), InvalidRequest, "/target"),
        (Text(SECRET), SECRET + "\ud83d", AtmanConfig(), InvalidRequest, "/target"),
        (Text(SECRET + "\ud83d"), "x", AtmanConfig(granularity="sentence"), InvalidRequest, "/prompt/0/data"),
        (Text(SECRET, (Control(Span(0, 99), 0.1),)), "x", AtmanConfig(), InvalidRequest, "/prompt/0/controls/0"),
        (Text(SECRET, (Control(0, 0.1),)), "x", AtmanConfig(), InvalidRequest, "/prompt/0/controls/0"),
        (TokenIds((5,), (Control(1, 0.1),)), "x", AtmanConfig(), InvalidRequest, "/prompt/0/controls/0"),
        (TokenIds((5, 999)), "x", AtmanConfig(), InvalidRequest, "/prompt/0/data/1"),
        (Image(b"no image"), "x", AtmanConfig(), MissingCapability, "/prompt/0"),
        (Text(SECRET * 99), "x", AtmanConfig(), ContextLengthExceeded, "/prompt"),
    ],
)  # fmt: skip
def test_refusals_point_to_the_place_and_quote_nothing(
    llama: LanguageModel,
    prompt: Text | TokenIds | Image,
    target: str,
    config: AtmanConfig,
    error: type[InvalidRequest],
    pointer: str,
) -> None:
    with pytest.raises(error) as refused:
        attribute(llama, (prompt,), target, config)
    assert type(refused.value) is error
    assert refused.value.pointer == pointer
    assert SECRET not in str(refused.value)


def test_custom_needs_its_delimiter_even_without_a_text_to_cut(llama: LanguageModel) -> None:
    for prompt in ((), (TokenIds((5,)),)):
        with pytest.raises(InvalidRequest, match="delimiter"):
            attribute(llama, prompt, "x", AtmanConfig(granularity="custom"))


def test_the_facts_are_plain_json(llama: LanguageModel) -> None:
    found = attribute(llama, (Text("Anna lives in"),), " Oslo", AtmanConfig(granularity="word"))
    facts = json.loads(json.dumps(found.facts))
    assert (facts["prompt_tokens"], facts["target_tokens"], facts["forwards"]) == (3, 1, 2)
    assert facts["seconds"] > 0
    assert found.method == "atman"


def test_work_can_be_stopped_between_passes(llama: LanguageModel) -> None:
    calls = []

    def stop_at_the_second() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        attribute(llama, (Text("Anna lives in"),), " Oslo", AtmanConfig(), stop_at_the_second)
    assert len(calls) == 2


@pytest.mark.parametrize("options", list(product(["partial", "complete"], [None, 0.3], [True, False])))
def test_pieces_without_any_token_score_nothing(llama: LanguageModel, options: tuple[Any, Any, bool]) -> None:
    """The tokenizer of word pieces drops what joins emoji: such a word has no token to damp."""
    overlap, threshold, additive = options
    config = AtmanConfig(0.1, additive, threshold, "word", target_granularity="token", overlap=overlap)
    found = attribute(spoken(llama, "word pieces"), (Text("anna \u200d oslo"),), "in oslo", config)
    assert pieces(found, 0) == ["anna", "\u200d", "oslo"]
    assert (found.values[:, 1] == 0).all()
    assert (found.values[:, [0, 2]] != 0).all()
