from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from explainers import continuation
from explainers.completion_text import ScoredToken
from explainers.controls import FactorRule, resolve
from explainers.decoding import Completion, CompletionConfig, Completions, Piece, complete, encoded, end_ids
from explainers.errors import ContextLengthExceeded, InvalidRequest, MissingCapability
from explainers.language_model import LanguageModel, TokenSequence
from explainers.loaders import load_causal_lm
from explainers.sampling import Sampling
from explainers.suppression import log_probabilities
from explainers.types import Control, Prompt, Span, Text, TokenIds
from tests import tiny_models
from tests.explainers import brute_force

FIRST = Control(Span(0, 19), 0.1)
LAST = Control(Span(44, 48), 3.0)
PROMPT: Prompt = (Text("Anna lives in Oslo. Ben lives in Rome. Anna lives in", (FIRST, LAST)),)
HOT = Sampling(temperature=1.0)
ON = CompletionConfig(maximum_tokens=12, ends=False)


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a dozen tokens fill several blocks."""
    monkeypatch.setattr(continuation, "FIRST_BLOCK", 3)


def factors_of(model: LanguageModel, sequence: TokenSequence, config: CompletionConfig) -> NDArray[np.float64]:
    controls = resolve(sequence, PROMPT, config.overlap)
    return FactorRule(model, sequence, config.threshold).combine(controls).factors


def evaluated(model: LanguageModel, completion: Completion, config: CompletionConfig) -> float:
    """Log-probability of the same tokens by the engine of /explain."""
    sequence = replace(encoded(model, PROMPT), target=completion.generated)
    factors = factors_of(model, sequence, config)
    return float(log_probabilities(model, sequence, factors, [], log_additive=config.log_additive).base.sum())


@pytest.mark.parametrize(
    "config",
    [ON, replace(ON, log_additive=False), replace(ON, threshold=0.1)],
    ids=["additive", "multiplicative", "similar"],
)
def test_greedy_is_the_slow_obvious_way(any_model: LanguageModel, config: CompletionConfig) -> None:
    """A full forward pass of everything so far for each token, plain softmax, nothing reused."""
    (completion,) = complete(any_model, PROMPT, config).items
    sequence = encoded(any_model, PROMPT)
    ids: list[int] = []
    for token in completion.tokens:
        so_far = replace(sequence, target=(*ids, *sequence.target))
        factors = factors_of(any_model, so_far, config)
        row = brute_force.logits(any_model, so_far.read, factors, config.log_additive)[-1]
        ids.append(int(row.argmax()))
        assert token.log_prob == pytest.approx(float(row.log_softmax(-1).max()), abs=1e-4)
    assert completion.generated == tuple(ids)
    assert len(ids) == 12


@pytest.mark.parametrize("threshold", [None, 0.05])
def test_every_candidate_has_the_log_probability_of_its_tokens(
    any_model: LanguageModel, threshold: float | None
) -> None:
    config = replace(ON, n=3, sampling=HOT, threshold=threshold)
    found = complete(any_model, PROMPT, config)
    assert len({completion.generated for completion in found.items}) > 1
    for completion in found.items:
        assert completion.log_prob == pytest.approx(evaluated(any_model, completion, config), abs=1e-4)
        assert completion.log_prob == pytest.approx(sum(token.log_prob or 0.0 for token in completion.tokens))


def test_similar_generated_tokens_get_a_factor_too(llama: LanguageModel) -> None:
    """Else the comparisons with a threshold would show nothing."""
    config = replace(ON, threshold=0.05)
    sequence = replace(encoded(llama, PROMPT), target=complete(llama, PROMPT, config).items[0].generated)
    assert (factors_of(llama, sequence, config)[len(sequence.start) + len(sequence.prompt) :] != 1).any()


def test_controls_act_while_tokens_are_generated(llama: LanguageModel) -> None:
    plain = complete(llama, (Text(PROMPT[0].data),), ON) if isinstance(PROMPT[0], Text) else None
    assert plain is not None and plain.items[0].generated != complete(llama, PROMPT, ON).items[0].generated


def test_candidates_do_not_disturb_each_other(llama: LanguageModel) -> None:
    many = complete(llama, PROMPT, replace(ON, n=3, sampling=HOT)).items
    assert complete(llama, PROMPT, replace(ON, sampling=HOT)).items[0].generated == many[0].generated
    again = complete(llama, PROMPT, replace(ON, n=3, sampling=HOT)).items
    assert again == many
    assert complete(llama, PROMPT, replace(ON, n=3, sampling=replace(HOT, seed=1))).items != many


def test_best_of_returns_the_best_per_token(llama: LanguageModel) -> None:
    config = replace(ON, sampling=HOT, n=5)
    every = complete(llama, PROMPT, config)
    best = complete(llama, PROMPT, replace(config, n=2, best_of=5))
    ranked = sorted(every.items, key=lambda one: one.log_prob / len(one.generated), reverse=True)[:2]
    assert [one.generated for one in best.items] == [one.generated for one in ranked]
    assert [one.index for one in best.items] == [0, 1]
    assert best.generated_tokens == every.generated_tokens == 60


def heard(model: LanguageModel, config: CompletionConfig) -> tuple[list[Piece | Completion], Completions]:
    events: list[Piece | Completion] = []
    return events, complete(model, PROMPT, config, listen=events.append)


@pytest.mark.parametrize(
    "config",
    [ON, replace(ON, n=3, sampling=HOT, log_probs=2), replace(ON, echo=True, log_probs=0), CompletionConfig(0)],
)
def test_pieces_join_to_the_completion(llama: LanguageModel, config: CompletionConfig) -> None:
    events, whole = heard(llama, config)
    for completion in whole.items:
        mine = [event for event in events if event.index == completion.index]
        pieces = [event for event in mine if isinstance(event, Piece)]
        assert pieces and mine == [*pieces, completion]
        assert "".join(piece.text for piece in pieces) == completion.text
        assert tuple(token for piece in pieces for token in piece.tokens) == completion.tokens
        assert all(piece.text for piece in pieces[:-1])


def test_the_end_of_text_is_not_shown(llama: LanguageModel) -> None:
    (end,) = end_ids(llama)
    surely = Sampling(logit_bias=((end, 1000.0),), minimum_tokens=4)
    found = complete(llama, PROMPT, CompletionConfig(sampling=surely))
    (completion,) = found.items
    assert (completion.finish_reason, len(completion.tokens)) == ("end_of_text", 4)
    assert completion.generated[-1] == end and end not in completion.generated[:-1]
    assert found.generated_tokens == 5
    assert complete(llama, PROMPT, replace(ON, sampling=surely)).items[0].finish_reason == "maximum_tokens"


def test_stop_sequences_never_show(llama: LanguageModel) -> None:
    text = complete(llama, PROMPT, ON).items[0].text
    for start in range(1, len(text) - 2):
        stop = text[start : start + 3]
        config = replace(ON, stop_sequences=("\N{SNOWMAN}", stop, stop + "more"))
        events, whole = heard(llama, config)
        (completion,) = whole.items
        assert completion.finish_reason == "stop_sequence_reached"
        assert completion.text == text[: text.index(stop)]
        assert completion.text.startswith("".join(event.text for event in events if isinstance(event, Piece)))


def test_the_context_is_the_end(llama: LanguageModel) -> None:
    long: Prompt = (TokenIds(tuple([70, 71] * 120)),)
    found = complete(llama, long, CompletionConfig(ends=False))
    assert found.generated_tokens == llama.context_length - 241  # with the start token
    assert found.items[0].finish_reason == "maximum_tokens"
    assert complete(llama, long, CompletionConfig(ends=False, default_tokens=5)).generated_tokens == 5
    assert complete(llama, long, CompletionConfig(ends=False, default_tokens=50)).generated_tokens == 15
    with pytest.raises(ContextLengthExceeded):
        complete(llama, long, CompletionConfig(maximum_tokens=16))


def test_nothing_to_generate(llama: LanguageModel) -> None:
    found = complete(llama, PROMPT, CompletionConfig(maximum_tokens=0, n=2))
    assert [(one.text, one.finish_reason) for one in found.items] == [("", "maximum_tokens")] * 2
    assert found.generated_tokens == 0


def test_the_echo_has_the_prompt_and_its_scores(any_model: LanguageModel) -> None:
    text = "Anna lives in Oslo."
    prompt: Prompt = (Text(text, (FIRST,)), TokenIds((70, 71)))
    config = replace(ON, maximum_tokens=3, echo=True, log_probs=1)
    (completion,) = complete(any_model, prompt, config).items
    sequence = encoded(any_model, prompt)
    assert completion.text.startswith(text)
    assert [token.id for token in completion.tokens] == [*sequence.prompt, *completion.generated]
    factors = FactorRule(any_model, sequence, None).combine(resolve(sequence, prompt, "partial")).factors
    rows = brute_force.logits(any_model, sequence.read, factors).log_softmax(-1)[len(sequence.start) :]
    assert completion.tokens[0].log_prob is None
    for token, row in zip(completion.tokens[1 : len(sequence.prompt)], rows, strict=False):
        assert token.log_prob == pytest.approx(float(row[token.id]), abs=1e-4)
        assert token.alternatives[0][1] == pytest.approx(float(row.max()), abs=1e-4)


def test_an_empty_prompt_counts_one_token(llama: LanguageModel) -> None:
    assert complete(llama, (), replace(ON, maximum_tokens=2)).prompt_tokens == 1
    assert complete(llama, (TokenIds((70, 71)),), replace(ON, maximum_tokens=2)).prompt_tokens == 2


class Halt(BaseException):
    pass


def test_the_work_stops_at_a_checkpoint(llama: LanguageModel) -> None:
    tokens: list[ScoredToken] = []

    def listen(event: Piece | Completion) -> None:
        tokens.extend(event.tokens)

    def checkpoint() -> None:
        if len(tokens) >= 4:
            raise Halt

    with pytest.raises(Halt):
        complete(llama, PROMPT, CompletionConfig(ends=False), checkpoint, listen)
    assert len(tokens) < 8


def test_nothing_of_the_model_changes(llama: LanguageModel) -> None:
    def state() -> Any:
        hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in llama.network.modules()]
        return hooks, [parameter.sum().item() for parameter in llama.network.parameters()]

    before = state()
    complete(llama, PROMPT, replace(ON, n=2, sampling=HOT))
    assert state() == before


@pytest.mark.parametrize(
    ("config", "pointer"),
    [
        (CompletionConfig(best_of=1), "/best_of"),
        (CompletionConfig(stop_sequences=("",)), "/stop_sequences"),
        (CompletionConfig(maximum_tokens=1000), "/maximum_tokens"),
    ],
)
def test_mistakes(llama: LanguageModel, config: CompletionConfig, pointer: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        complete(llama, PROMPT, config)
    assert error.value.pointer == pointer


@pytest.fixture(scope="module")
def longrope(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """A model that turns its positions by other angles beyond 48 of them."""
    angles = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "factor": 4.0, "rope_theta": 10000.0}
    places = {"rope_type": "longrope", "original_max_position_embeddings": 48, **angles}
    folder = tmp_path_factory.mktemp("longrope") / "phi3"
    return load_causal_lm(tiny_models.save(folder, "phi3", rope_parameters=places, original_max_position_embeddings=48))


def test_nothing_goes_on_past_where_all_tokens_are_placed_anew(longrope: LanguageModel) -> None:
    text = "Anna lives in Oslo. Ben lives in Rome. " * 6
    for length in (60, 120, 160):
        prompt: Prompt = (Text(text[:length]),)
        read = encoded(longrope, prompt).positions
        room = 48 - read + 1 if read <= 48 else 20
        completion = complete(longrope, prompt, replace(ON, maximum_tokens=room)).items[0]
        sequence = replace(encoded(longrope, prompt), target=completion.generated)
        slow = brute_force.log_probabilities(longrope, sequence, np.ones(sequence.positions))
        assert completion.log_prob == pytest.approx(slow.sum(), abs=1e-4)
        if read <= 48:
            assert len(complete(longrope, prompt, replace(ON, maximum_tokens=None)).items[0].generated) == room
            with pytest.raises(MissingCapability, match="beyond 48 positions"):
                complete(longrope, prompt, replace(ON, maximum_tokens=room + 1))
