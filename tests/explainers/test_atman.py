"""The scores: against one full forward pass per chunk under rules of their own, and what must hold among them."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from explainers.errors import InvalidRequest, MissingCapability
from explainers.language_model import LanguageModel
from explainers.methods.atman import attribute
from explainers.types import AtmanConfig, Attribution, Control, Feature, Item, Prompt, Span, Text, TokenIds
from tests.explainers import brute_force, golden, plain_rules

TEXT = "Anna lives in Oslo. Ben is in"
PROMPT: Prompt = (Text(TEXT), TokenIds((260, 270, 260)))
TARGET = " Oslo, Anna"
GRANULARITIES = ("token", "word", "sentence", "paragraph", "custom")


def with_controls(*controls: Control, text: str = TEXT) -> Prompt:
    return (Text(text, controls), TokenIds((260, 270, 260)))


def chunk_controls(features: Sequence[Feature], config: AtmanConfig) -> list[plain_rules.Placed]:
    """What damping each feature means, as controls; at token granularity, and in the target, on that very token."""
    placed = []
    for position, feature in enumerate(features):
        exact = config.granularity == "token" or feature.item == len(PROMPT)
        nth = sum(before.item == feature.item for before in features[:position])
        placed.append((feature.item, Control(nth if exact else feature.place, config.control_factor)))
    return placed


def brute_scores(
    model: LanguageModel, prompt: Prompt, target: str, config: AtmanConfig, placed: Sequence[plain_rules.Placed]
) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:  # (T,), F of (T,)
    """Raw scores of controls by one full forward pass each."""
    sequence = model.encode(prompt, target)

    def passed(*extra: plain_rules.Placed) -> NDArray[np.float64]:
        factors = plain_rules.factors(model, prompt, target, extra, overlap=config.overlap, threshold=config.threshold)
        return brute_force.log_probabilities(model, sequence, factors, config.log_additive)

    base = passed()
    return base, [base - passed(chunk) for chunk in placed]


def mine(attribution: Attribution, items: int = len(PROMPT)) -> NDArray[np.float64]:  # (T, F)
    """The scores of the prompt's features only."""
    return attribution.values[:, [feature.item < items for feature in attribution.features]]


def total_base(attribution: Attribution) -> float:
    assert attribution.base_values is not None
    return float(attribution.base_values.sum())


places = st.tuples(st.integers(0, len(TEXT)), st.integers(0, len(TEXT))).map(lambda ends: Span(min(ends), max(ends)))
own_controls = st.lists(
    st.builds(Control, places, st.sampled_from([0.0, 0.2, 1.0, 3.0]), st.sampled_from([None, "partial", "complete"])),
    max_size=3,
)
configs = st.builds(
    AtmanConfig,
    control_factor=st.sampled_from([0.0, 0.1, 0.7, 3.0]),
    log_additive=st.booleans(),
    threshold=st.sampled_from([None, -1.0, 0.0, 0.2, 1.0]),
    granularity=st.sampled_from(GRANULARITIES),
    delimiter=st.just("i"),
    target_granularity=st.just("token"),
    overlap=st.sampled_from(["partial", "complete"]),
)


@settings(deadline=None, max_examples=30)
@given(config=configs, controls=own_controls, data=st.data())
def test_any_request_equals_one_forward_per_chunk(
    llama: LanguageModel, config: AtmanConfig, controls: list[Control], data: st.DataObject
) -> None:
    prompt = with_controls(*controls)
    found = attribute(llama, prompt, TARGET, config)
    placed = chunk_controls(found.features, config)
    columns = data.draw(st.lists(st.sampled_from(range(len(placed))), min_size=1, max_size=3, unique=True))
    base, scores = brute_scores(llama, prompt, TARGET, config, [placed[column] for column in columns])
    assert found.base_values is not None
    np.testing.assert_allclose(found.base_values, base, atol=1e-4)
    for column, expected in zip(columns, scores, strict=True):
        feature = found.features[column]
        first = int(placed[column][1].place) + 1 if feature.item == len(prompt) else 0  # type: ignore[arg-type]
        np.testing.assert_allclose(found.values[first:, column], expected[first:], atol=1e-4)
        assert (found.values[:first, column] == 0).all()


@pytest.mark.parametrize("log_additive", [True, False])
def test_a_factor_of_three_over_half_a_token_acts_as_two(llama: LanguageModel, log_additive: bool) -> None:
    def base(factor: float, stop: int) -> float:
        prompt = with_controls(Control(Span(0, stop), factor))
        return total_base(attribute(llama, prompt, TARGET, AtmanConfig(log_additive=log_additive)))

    assert llama.tokenizer.encode(TEXT, add_special_tokens=False).offsets[0] == (0, 4)
    assert base(3.0, 2) == base(2.0, 4)
    assert base(3.0, 4) != base(2.0, 4)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("threshold", [None, 0.2])
def test_complete_is_the_sum_of_the_token_explanations(
    llama: LanguageModel, granularity: Any, threshold: float | None
) -> None:
    config = AtmanConfig(granularity=granularity, delimiter=" ", threshold=threshold)
    complete = attribute(llama, PROMPT, TARGET, config)
    tokens = attribute(llama, PROMPT, TARGET, replace(config, target_granularity="token"))
    assert complete.values.shape == (1, len(complete.features))
    np.testing.assert_allclose(complete.values[0], mine(tokens).sum(axis=0), atol=1e-5)
    assert total_base(complete) == pytest.approx(total_base(tokens))
    assert complete.features == tokens.features[: len(complete.features)]


@pytest.mark.parametrize(("postprocessing", "applied"), [("absolute", np.abs), ("square", np.square)])
def test_postprocessing_comes_before_the_sum(llama: LanguageModel, postprocessing: Any, applied: Any) -> None:
    config = AtmanConfig(granularity="word", target_granularity="token")
    raw = attribute(llama, PROMPT, TARGET, config).values
    assert (raw < 0).any()
    processed = replace(config, postprocessing=postprocessing)
    np.testing.assert_allclose(attribute(llama, PROMPT, TARGET, processed).values, applied(raw))
    complete = attribute(llama, PROMPT, TARGET, replace(processed, target_granularity="complete")).values
    np.testing.assert_allclose(complete[0], applied(raw[:, : complete.shape[1]]).sum(axis=0), atol=1e-4)


@pytest.mark.parametrize("postprocessing", ["none", "absolute", "square"])
@pytest.mark.parametrize("target_granularity", ["complete", "token"])
def test_normalising_is_min_max_over_what_each_explanation_shows(
    llama: LanguageModel, postprocessing: Any, target_granularity: Any
) -> None:
    config = AtmanConfig(granularity="word", target_granularity=target_granularity, postprocessing=postprocessing)
    raw = attribute(llama, PROMPT, TARGET, config)
    found = attribute(llama, PROMPT, TARGET, replace(config, normalize=True)).values
    prompt_features = mine(raw).shape[1]
    for t, scores in enumerate(raw.values):
        shown = scores[: prompt_features + t]
        expected = (shown - shown.min()) / (shown.max() - shown.min())
        np.testing.assert_allclose(found[t, : len(shown)], expected, atol=1e-9)
        assert (found[t, len(shown) :] == 0).all()
        assert (found[t].min(), found[t].max()) == (0, 1)


@pytest.mark.parametrize("prompt", [(), (Text(""),), (Text("Anna"),), (Text("Anna lives"),)])
@pytest.mark.parametrize("factor", [0.1, 1.0])
@pytest.mark.parametrize("target_granularity", ["complete", "token"])
def test_normalising_equal_or_no_scores_gives_zeros(
    llama: LanguageModel, prompt: Prompt, factor: float, target_granularity: Any
) -> None:
    """Explanations of one score, of none, and of equal ones: zeros, never NaN."""
    config = AtmanConfig(
        control_factor=factor, granularity="paragraph", target_granularity=target_granularity, normalize=True
    )
    found = attribute(llama, prompt, TARGET, config).values
    own = len(TARGETS) - 1 if target_granularity == "token" else 0
    assert found.shape[1] - own == (prompt not in ((), (Text(""),)))
    assert np.isfinite(found).all()
    assert (found[0] == 0).all()
    assert factor != 1 or (found == 0).all()


TARGETS = (" Oslo", ",", " ", "Anna")
"""The target's tokens under the tiny tokenizer."""


@pytest.mark.parametrize("threshold", [None, -1.0, 0.5])
def test_target_tokens_explain_only_later_ones(llama: LanguageModel, threshold: float | None) -> None:
    config = AtmanConfig(granularity="word", target_granularity="token", threshold=threshold)
    found = attribute(llama, PROMPT, TARGET, config)
    assert tuple(target.text for target in found.targets) == TARGETS
    columns = [column for column, feature in enumerate(found.features) if feature.item == len(PROMPT)]
    assert [found.features[column].name for column in columns] == list(TARGETS[:-1])
    for position, column in enumerate(columns):
        assert (found.values[: position + 1, column] == 0).all()
        assert (found.values[position + 1 :, column] != 0).all()


@pytest.mark.parametrize("log_additive", [True, False])
@pytest.mark.parametrize("threshold", [None, -1.0, 0.2])
@pytest.mark.parametrize("controls", [(), (Control(Span(2, 16), 0.3), Control(Span(4, 20), 2.0))])
def test_a_control_factor_of_one_scores_nothing(
    llama: LanguageModel, log_additive: bool, threshold: float | None, controls: tuple[Control, ...]
) -> None:
    config = AtmanConfig(1.0, log_additive, threshold, "word", target_granularity="token")
    found = attribute(llama, with_controls(*controls), TARGET, config)
    assert np.abs(found.values).max() < 1e-5


def test_the_control_factor_changes_the_scores(llama: LanguageModel) -> None:
    found = [
        attribute(llama, PROMPT, TARGET, AtmanConfig(factor, additive, granularity="word")).values
        for factor in (0.0, 0.1, 0.5, 2.0, 9.0)
        for additive in (True, False)
    ]
    for one, first in enumerate(found):
        assert all(np.abs(first - other).max() > 0.01 for other in found[:one])


@pytest.mark.parametrize("log_additive", [True, False])
def test_own_controls_hold_in_both_passes(llama: LanguageModel, log_additive: bool) -> None:
    """A chunk that the caller has removed already can lose nothing more; the others lose against the reduced base."""
    config = AtmanConfig(log_additive=log_additive, granularity="word")
    reduced = attribute(llama, with_controls(Control(Span(0, 4), 0.0)), TARGET, config)
    plain = attribute(llama, PROMPT, TARGET, config)
    assert total_base(reduced) != pytest.approx(total_base(plain), abs=0.01)
    assert reduced.features[0].name == "Anna"
    assert reduced.values[0, 0] == 0
    assert np.abs(reduced.values - plain.values)[0, 1:].max() > 0.01


@pytest.mark.parametrize("threshold", [None, 0.2])
def test_the_order_of_controls_never_matters(llama: LanguageModel, threshold: float | None) -> None:
    controls = [Control(Span(a, a + 9), factor) for a, factor in ((0, 0.3), (3, 3.0), (5, 0.7), (6, 1.3))]
    config = AtmanConfig(threshold=threshold, granularity="word")
    found = [attribute(llama, with_controls(*order), TARGET, config) for order in (controls, controls[::-1])]
    assert (found[0].values == found[1].values).all()
    assert total_base(found[0]) == total_base(found[1])


@pytest.mark.parametrize("overlap", ["partial", "complete"])
@pytest.mark.parametrize("threshold", [None, 0.2])
@pytest.mark.parametrize("granularity", ["word", "sentence", "custom"])
def test_a_score_is_what_one_more_control_does_to_the_log_perplexity(
    llama: LanguageModel, overlap: Any, threshold: float | None, granularity: Any
) -> None:
    own = Control(Span(3, 12), 0.4, "partial")
    config = AtmanConfig(0.1, True, threshold, granularity, "iv", overlap=overlap)
    found = attribute(llama, with_controls(own), TARGET, config)
    for feature, score in zip(found.features, found.values[0], strict=True):
        if isinstance(feature.place, Span):
            prompt = with_controls(own, Control(feature.place, 0.1, overlap))
            more = -total_base(attribute(llama, prompt, TARGET, config))
            assert score == pytest.approx(more + total_base(found), abs=1e-4)


def test_idle_controls_change_nothing(llama: LanguageModel) -> None:
    idle = (Control(Span(0, 12), 1.0), Control(Span(5, 5), 0.0), Control(Span(5, 5), 9.0, "complete"))
    for config in (AtmanConfig(granularity="word"), AtmanConfig(granularity="word", threshold=0.1)):
        one, other = attribute(llama, PROMPT, TARGET, config), attribute(llama, with_controls(*idle), TARGET, config)
        assert (one.values == other.values).all()
        assert total_base(one) == total_base(other)


def test_a_tiny_factor_on_the_whole_context_cancels_and_zero_does_not(llama: LanguageModel) -> None:
    """Without a start token all a row sees carries the factor; 1e-60 is not yet 0, in whatever precision."""
    model = replace(llama, start=())
    whole: list[Item] = [Text(TEXT, (Control(Span(0, len(TEXT)), factor),)) for factor in (1.0, 1e-60, 1e-300, 0.0)]
    bases = [total_base(attribute(model, (item,), " Oslo", AtmanConfig())) for item in whole]
    assert bases[1:3] == pytest.approx([bases[0]] * 2, abs=1e-4)
    assert abs(bases[3] - bases[0]) > 0.01


@pytest.mark.parametrize("log_additive", [True, False])
def test_the_largest_factor_gives_numbers_and_a_larger_one_an_error(llama: LanguageModel, log_additive: bool) -> None:
    config = AtmanConfig(1e30, log_additive, granularity="word", target_granularity="token")
    found = attribute(llama, PROMPT, TARGET, config)
    assert np.isfinite(found.values).all()
    assert np.abs(found.values).max() > 0.1
    with pytest.raises(InvalidRequest, match="multiply"):
        attribute(llama, with_controls(Control(Span(0, 4), 2.0)), TARGET, config)


def test_a_model_that_overflows_is_no_source_of_scores(llama: LanguageModel) -> None:
    network = copy.deepcopy(llama.network)
    with torch.inference_mode():
        network.lm_head.weight.mul_(torch.finfo(torch.float32).max)
    with pytest.raises(MissingCapability, match="overflow in float32"):
        attribute(replace(llama, network=network), PROMPT, TARGET, AtmanConfig())


def test_the_same_request_gives_the_same_bits(llama: LanguageModel) -> None:
    config = AtmanConfig(threshold=0.2, target_granularity="token")
    assert (attribute(llama, PROMPT, TARGET, config).values == attribute(llama, PROMPT, TARGET, config).values).all()


@pytest.mark.parametrize("case", golden.CASES)
def test_recorded_explanations(llama: LanguageModel, case: str) -> None:
    recorded = json.loads(golden.FILE.read_text(encoding="utf-8"))[case]
    found = golden.explained(llama, case)
    for numbers in ("values", "base_values"):
        np.testing.assert_allclose(found.pop(numbers), recorded.pop(numbers), atol=1e-4)
    assert found == recorded
