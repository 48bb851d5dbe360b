"""Shortcuts of the arithmetic: each against the plain form, and where each must not be taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from explainers import attention_control
from explainers.attention_control import Recorded, Segment, _Kernel, only_rows
from explainers.errors import MissingCapability
from explainers.language_model import LanguageModel
from explainers.suppression import log_probabilities
from tests.explainers.test_suppression import factors, sequence_of, variants

SIZE, HEADS, SHARED, WIDTH = 23, 4, 2, 8


def parts(dtype: torch.dtype = torch.float32, start: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(SHARED, HEADS // SHARED, SIZE, WIDTH, generator=generator)[:, :, start:]
    keys, values = (torch.randn(SHARED, SIZE, WIDTH, generator=generator) for _ in range(2))
    return query.to(dtype), keys.to(dtype), values.to(dtype)


def causal(window: int = SIZE) -> torch.Tensor:
    whole = torch.ones(SIZE, SIZE, dtype=torch.bool)
    return whole.tril() & whole.triu(1 - window)


def kernel(**changes: Any) -> _Kernel:
    return _Kernel(**{"scaling": 0.3, "softcap": None, "sinks": None, "log_additive": True, **changes})


def damped(*columns: int, factor: float = 0.1) -> Segment:
    values = torch.ones(SIZE, dtype=torch.float64)
    values[list(columns)] = factor
    return Segment(0, 0, values)


@pytest.mark.parametrize("start", [0, 1, 9, SIZE - 1])
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_without_a_mask_the_same_attention(
    start: int, dtype: torch.dtype, allowed: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, keys, values = parts(dtype, start)
    factors = torch.rand(SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    segment = Segment(start, start, factors * 3 + 1e-60)
    arguments = (query, keys, values, causal()[start:], segment, start)
    masked = kernel()(*arguments)
    assert (kernel()._unmasked(query, keys, values, segment) - masked).abs().max() < allowed
    monkeypatch.setattr(attention_control, "UNMASKED", frozenset({"cpu"}))
    assert (kernel()(*arguments, plain=True) - masked).abs().max() < allowed


def test_log_factors_keep_their_digits_in_sixteen_bits() -> None:
    segment = Segment(0, 0, torch.tensor([1.0, 0.1, 1e-60, 1e30, 0.9999], dtype=torch.float64))
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        ones, columns = attention_control._extra_dimensions(segment, 0.125, dtype)
        found = columns.double() @ ones.double() * 0.125
        np.testing.assert_allclose(found, segment.factors.log(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "segment", "plain"),
    [
        ({}, damped(3, factor=0.0), True),
        ({}, damped(3), False),
        ({"softcap": 5.0}, damped(3), True),
        ({"sinks": torch.zeros(SHARED, HEADS // SHARED, 1, 1)}, damped(3), True),
        ({"log_additive": False}, damped(3), True),
    ],
)
def test_what_needs_a_mask_gets_one(
    changes: dict[str, Any], segment: Segment, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_control, "UNMASKED", frozenset({"cpu"}))
    monkeypatch.setattr(_Kernel, "_unmasked", None)
    kernel(**changes)(*parts(), causal(), segment, 0, plain=plain)


@pytest.mark.parametrize("changes", [{}, {"softcap": 5.0}, {"log_additive": False}])
@pytest.mark.parametrize("window", [SIZE, 4])
@pytest.mark.parametrize("factor", [0.0, 0.1, 2.0])
def test_blocks_of_rows_change_nothing(
    changes: dict[str, Any], window: int, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = kernel(**changes)(*parts(), causal(window), damped(0, 1, 2, 3, 9, factor=factor), 0)
    for rows in (1, 4, SIZE - 1):
        monkeypatch.setitem(attention_control.BLOCK, "cpu", rows)
        blocks = kernel(**changes)(*parts(), causal(window), damped(0, 1, 2, 3, 9, factor=factor), 0)
        assert (blocks - whole).abs().max() < 1e-6


def test_the_base_pass_tells_plain_masks_from_others() -> None:
    query, keys, values = parts()
    recorded, masks = Recorded(), [causal(), causal(4)]
    for layer, mask in enumerate(masks):
        recorded.add(layer, query.flatten(0, 1), keys, values, mask)
    assert [recorded.plain[mask.data_ptr()] for mask in masks] == [True, False]


def test_masks_that_show_later_columns_are_refused() -> None:
    query, keys, values = parts()
    seeing = causal()
    seeing[3, 5] = True
    with pytest.raises(MissingCapability, match="later"):
        Recorded().add(0, query.flatten(0, 1), keys, values, seeing)
    with pytest.raises(MissingCapability, match="no mask"):
        Recorded().add(0, query.flatten(0, 1), keys, values, None)


def test_scores_without_masks_and_in_small_blocks(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    sequence = sequence_of(llama)
    base = factors(sequence, 1, 4, 0.5)
    changed = [base * variant for factor in (0.0, 0.1, 2.0) for variant in variants(sequence, factor)]
    expected = log_probabilities(llama, sequence, base, changed, log_additive=True)
    monkeypatch.setitem(attention_control.BLOCK, "cpu", 5)
    for devices in ((), ("cpu",)):
        monkeypatch.setattr(attention_control, "UNMASKED", frozenset(devices))
        found = log_probabilities(llama, sequence, base, changed, log_additive=True)
        np.testing.assert_allclose(found.base, expected.base, atol=1e-5)
        np.testing.assert_allclose(found.variants, expected.variants, atol=1e-5)


def test_only_some_rows_are_computed_and_the_hooks_go() -> None:
    module, inputs = nn.Linear(3, 2), torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(0))
    seen: list[int] = []
    with only_rows([module], torch.tensor([1, 4])):
        hook = module.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
        found = module(inputs)
        hook.remove()
    assert seen == [2]
    torch.testing.assert_close(found[:, [1, 4]], module(inputs)[:, [1, 4]])
    assert not found[:, [0, 2, 3]].any()
    with only_rows([module], torch.tensor([], dtype=torch.int64)):
        assert not module(inputs).any()
    assert not module._forward_hooks
    assert not module._forward_pre_hooks
