"""The engine against the slow, obvious way, and its invariants."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from explainers import suppression
from explainers.errors import OutOfMemory
from explainers.language_model import Inputs, LanguageModel, TokenSequence
from explainers.suppression import log_probabilities
from explainers.types import Text
from tests.explainers import brute_force

PROMPT = (Text("Anna lives in Oslo. Ben lives in Rome. The key is in the red box. Anna lives in"),)
TARGET = " Oslo, in Norway."


def sequence_of(model: LanguageModel) -> TokenSequence:
    return model.encode(PROMPT, TARGET)


def factors(sequence: TokenSequence, start: int, stop: int, factor: float) -> NDArray[np.float64]:
    values = np.ones(sequence.positions)
    values[start:stop] = factor
    return values


def variants(sequence: TokenSequence, factor: float) -> list[NDArray[np.float64]]:
    """Chunks at the start, in the middle, over the end of the prompt, in the target, and two at once."""
    last = sequence.first_scored
    pieces = [(0, 3), (1, 5), (7, 12), (last - 2, last + 1), (last, last + 1), (last + 1, last + 3)]
    found = [factors(sequence, a, b, factor) for a, b in pieces]
    return [*found, found[1] * found[2], np.ones(sequence.positions)]


@pytest.mark.parametrize("log_additive", [True, False])
@pytest.mark.parametrize("factor", [0.0, 0.1, 3.0])
def test_equals_one_full_forward_per_chunk(any_model: LanguageModel, factor: float, log_additive: bool) -> None:
    sequence = sequence_of(any_model)
    base = np.ones(sequence.positions)
    changed = variants(sequence, factor)
    fast = log_probabilities(any_model, sequence, base, changed, log_additive=log_additive)
    slow_base = brute_force.log_probabilities(any_model, sequence, base, log_additive)
    slow = np.stack([brute_force.log_probabilities(any_model, sequence, v, log_additive) for v in changed])
    np.testing.assert_allclose(fast.base, slow_base, atol=1e-4)
    np.testing.assert_allclose(fast.base - fast.variants, slow_base - slow, atol=1e-4)
    assert np.abs(slow_base - slow).max() > 0.01, "the factors must matter, or the comparison shows nothing"


def test_factors_of_the_base_hold_in_both_passes(any_model: LanguageModel) -> None:
    sequence = sequence_of(any_model)
    base = factors(sequence, 2, 6, 0.3)
    changed = [base * factors(sequence, 4, 9, 0.1), base]
    fast = log_probabilities(any_model, sequence, base, changed, log_additive=True)
    np.testing.assert_allclose(fast.base, brute_force.log_probabilities(any_model, sequence, base), atol=1e-4)
    np.testing.assert_allclose(
        fast.variants[0], brute_force.log_probabilities(any_model, sequence, changed[0]), atol=1e-4
    )
    assert (fast.variants[1] == fast.base).all(), "a variant without a change is the base, exactly"


def test_packing_does_not_change_scores(llama: LanguageModel) -> None:
    sequence = sequence_of(llama)
    base, changed = np.ones(sequence.positions), variants(sequence, 0.1)
    alone = [log_probabilities(llama, sequence, base, [v], log_additive=True).variants[0] for v in changed]
    for rows in (1, 50, 100, 100_000):
        packed = log_probabilities(llama, sequence, base, changed, log_additive=True, packed_rows=rows)
        np.testing.assert_allclose(packed.variants, np.stack(alone), atol=1e-5)


def test_order_does_not_change_scores(llama: LanguageModel) -> None:
    sequence = sequence_of(llama)
    base, changed = np.ones(sequence.positions), variants(sequence, 0.1)
    forwards = log_probabilities(llama, sequence, base, changed, log_additive=True).variants
    backwards = log_probabilities(llama, sequence, base, changed[::-1], log_additive=True).variants
    np.testing.assert_allclose(forwards, backwards[::-1], atol=1e-5)


def test_repetition_is_bit_identical(any_model: LanguageModel) -> None:
    sequence = sequence_of(any_model)
    base, changed = np.ones(sequence.positions), variants(sequence, 0.1)
    first = log_probabilities(any_model, sequence, base, changed, log_additive=True)
    again = log_probabilities(any_model, sequence, base, changed, log_additive=True)
    assert (first.variants == again.variants).all()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_factors_equal_brute_force(llama: LanguageModel, data: st.DataObject) -> None:
    sequence = llama.encode((Text("Anna lives in Oslo. Ben"),), " lives in Rome")
    column = st.lists(
        st.sampled_from([0.0, 0.05, 0.5, 1.0, 1.0, 1.0, 2.0]),
        min_size=sequence.positions,
        max_size=sequence.positions,
    ).map(np.array)
    base, variant, log_additive = data.draw(column), data.draw(column), data.draw(st.booleans())
    fast = log_probabilities(llama, sequence, base, [variant], log_additive=log_additive)
    slow = brute_force.log_probabilities(llama, sequence, variant, log_additive)
    np.testing.assert_allclose(fast.variants[0], slow, atol=2e-4)


def weights_digest(model: LanguageModel) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def test_the_model_is_unchanged_afterwards(any_model: LanguageModel) -> None:
    before = weights_digest(any_model)
    sequence = sequence_of(any_model)
    log_probabilities(any_model, sequence, np.ones(sequence.positions), variants(sequence, 0.1), log_additive=True)
    hooks = [m for m in any_model.network.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert weights_digest(any_model) == before
    assert hooks == []


def test_hooks_go_away_when_a_pass_fails(llama: LanguageModel) -> None:
    sequence = sequence_of(llama)

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        log_probabilities(llama, sequence, np.ones(sequence.positions), [], log_additive=True, checkpoint=stop)
    assert [m for m in llama.network.modules() if m._forward_hooks or m._forward_pre_hooks] == []


def test_a_model_cannot_be_called_unsuppressed_by_accident(llama: LanguageModel) -> None:
    with pytest.raises(RuntimeError, match="outside an attention pass"):
        llama.network(input_ids=torch.tensor([[1, 2, 3]]))


def test_only_changed_rows_are_computed(llama: LanguageModel) -> None:
    sequence = sequence_of(llama)
    late = factors(sequence, 10, 12, 0.1)
    result = log_probabilities(llama, sequence, np.ones(sequence.positions), [late], log_additive=True)
    assert result.forwards == 2
    assert result.rows == sequence.positions + (sequence.positions - 10)


def removed(sequence: TokenSequence, *pieces: tuple[int, int]) -> NDArray[np.float64]:
    values = np.ones(sequence.positions)
    for start, stop in pieces:
        values[start:stop] = 0.0
    return values


@pytest.mark.parametrize(
    ("pieces", "first"),
    [
        ([(4, 9)], 9),  # nobody sees the removed rows
        ([(0, 3)], 3),
        ([(4, 9), (12, 14)], 9),  # the second part is seen by nobody either, but lies behind rows that are
        ([(4, 9), (9, 12)], 12),
        ([(6, 1000)], None),  # removed up to the end: the last prompt row and the target's are scored
    ],
)
def test_removed_rows_that_nobody_sees_are_skipped(
    llama: LanguageModel, pieces: list[tuple[int, int]], first: int | None
) -> None:
    sequence = sequence_of(llama)
    base, variant = np.ones(sequence.positions), removed(sequence, *pieces)
    start = sequence.first_scored if first is None else first
    found = log_probabilities(llama, sequence, base, [variant], log_additive=True)
    assert found.rows == sequence.positions + sequence.positions - start
    np.testing.assert_allclose(found.variants[0], brute_force.log_probabilities(llama, sequence, variant), atol=1e-4)


def test_nothing_is_skipped_where_a_removed_column_is_seen(llama: LanguageModel) -> None:
    sequence = sequence_of(llama)
    last = sequence.first_scored
    base = np.ones(sequence.positions)
    similar = removed(sequence, (4, 9))
    similar[2] = 0.4  # a similar column before the chunk
    cases = [
        (removed(sequence, (4, 9)), False, 4),  # the multiplicative form only lowers a column
        (similar, True, 2),
        (np.maximum(removed(sequence, (4, 9)), 1e-60), True, 4),
        (removed(sequence, (last, last + 1)), True, last),  # the last prompt row itself
        (removed(sequence, (last + 1, last + 3)), True, last + 1),  # in the target
    ]
    for variant, log_additive, first in cases:
        found = log_probabilities(llama, sequence, base, [variant], log_additive=log_additive)
        assert found.rows == sequence.positions + sequence.positions - first
        slow = brute_force.log_probabilities(llama, sequence, variant, log_additive)
        np.testing.assert_allclose(found.variants[0], slow, atol=1e-4)


@pytest.mark.parametrize("factor", [0.0, 0.1, 2.0])
def test_a_uniform_chunk_at_row_0_and_everything_removed(any_model: LanguageModel, factor: float) -> None:
    sequence = sequence_of(any_model)
    base, last = np.ones(sequence.positions), sequence.first_scored
    stops = [1, last, last + 1, sequence.positions]
    if factor == 0 and any_model.architecture == "GptOssForCausalLM":
        del stops[2:]  # beside a sink, a row that lost all its columns has no weights that everyone would agree on
    changed = [factors(sequence, 0, stop, factor) for stop in stops]
    fast = log_probabilities(any_model, sequence, base, changed, log_additive=True)
    slow = np.stack([brute_force.log_probabilities(any_model, sequence, v) for v in changed])
    np.testing.assert_allclose(fast.variants, slow, atol=1e-4)


def test_the_first_layer_and_unread_rows_are_not_computed(any_model: LanguageModel) -> None:
    sequence = sequence_of(any_model)
    counted: dict[str, int] = {}

    def count(name: str) -> Any:
        def add(_: Any, __: Any, output: torch.Tensor) -> None:
            counted[name] = counted.get(name, 0) + output.shape[1]

        return add

    own = {"first": any_model._first_projections, "last": any_model._read_at_rows_only}
    hooks = []
    for name, modules in own.items():
        linear = [part for module in modules for part in module.modules() if not list(part.children())][:1]
        hooks += [part.register_forward_hook(count(name)) for part in linear]
    late = factors(sequence, 10, 12, 0.1)
    try:
        log_probabilities(any_model, sequence, np.ones(sequence.positions), [late], log_additive=True)
    finally:
        for hook in hooks:
            hook.remove()
    assert own["first"], "every family names its projections"
    assert counted["first"] == sequence.positions, "in the base pass only"
    assert counted.get("last", 0) <= 2 * len(sequence.target)


def test_halves_the_packed_row_when_memory_runs_out(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama.packed_rows, "most", None)
    sequence = sequence_of(llama)
    base, changed = np.ones(sequence.positions), variants(sequence, 0.1)
    expected = log_probabilities(llama, sequence, base, changed, log_additive=True).variants
    limit_rows(monkeypatch, 2 * sequence.positions)
    result = log_probabilities(llama, sequence, base, changed, log_additive=True)
    np.testing.assert_allclose(result.variants, expected, atol=1e-5)
    remembered = llama.packed_rows.most
    assert remembered is not None
    assert remembered < sum(sequence.positions - int(np.argmin(v)) for v in changed)
    log_probabilities(llama, sequence, base, changed, log_additive=True)
    assert llama.packed_rows.most == remembered, "what did not fit is not tried again"
    limit_rows(monkeypatch, sequence.positions - 1)
    with pytest.raises(OutOfMemory, match="positions do not fit"):
        log_probabilities(llama, sequence, base, changed, log_additive=True)


def limit_rows(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """A device on which more than `rows` rows at once do not fit."""
    compute = LanguageModel.logits

    def bounded(self: LanguageModel, inputs: Inputs, *args: Any) -> torch.Tensor:
        if len(inputs.ids) > rows:
            raise torch.OutOfMemoryError("simulated")
        return compute(self, inputs, *args)

    monkeypatch.setattr(suppression.LanguageModel, "logits", bounded)
