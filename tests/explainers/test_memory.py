"""Too little memory at any step: the numbers are right with smaller pieces, or the error says so; never a wrong one."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from explainers.errors import OutOfMemory
from explainers.influence.passes import token_log_probs
from explainers.influence.shards import write
from explainers.language_model import LanguageModel
from explainers.memory import told_alike
from explainers.methods import atman
from explainers.types import AtmanConfig, Text
from tests.explainers.influence.test_passes import drawn

PROMPT = (Text("Anna lives in Oslo. Ben lives in Rome. The key is in the red box. Anna lives in"),)


def test_a_processor_without_memory_is_told_as_a_gpu_is() -> None:
    """The allocation is real: no machine has so much."""
    with pytest.raises(torch.OutOfMemoryError), told_alike():
        torch.empty(2**55)


@pytest.mark.parametrize("error", [ValueError("no"), RuntimeError("shapes differ")])
def test_other_errors_stay_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error)), told_alike():
        raise error


@contextmanager
def short_at(network: torch.nn.Module, step: int) -> Iterator[list[int]]:
    """The pass with that number asks a processor for what it has not; how many passes there were."""
    passes = [0]

    def ask(*_: Any) -> None:
        passes[0] += 1
        if passes[0] == step:
            torch.empty(2**55)

    hook = network.register_forward_pre_hook(ask)
    try:
        yield passes
    finally:
        hook.remove()


def scores(model: LanguageModel) -> Any:
    return atman.attribute(model, PROMPT, " Oslo", AtmanConfig()).values


def logs(model: LanguageModel) -> Any:
    return np.concatenate(token_log_probs(model, drawn(7), 60))


@pytest.mark.parametrize("work", [scores, logs])
def test_at_every_step(llama: LanguageModel, work: Callable[[LanguageModel], Any]) -> None:
    with short_at(llama.network, 0) as passes:
        right = work(llama)
    halved = 0
    for step in range(1, passes[0] + 1):
        remembered = llama.packed_rows.most
        with short_at(llama.network, step):
            try:
                np.testing.assert_allclose(work(llama), right, atol=1e-5)
                halved += 1
            except OutOfMemory:
                pass
        llama.packed_rows.most = remembered
        np.testing.assert_allclose(work(llama), right, atol=1e-5)
    assert halved > 0


def test_a_file_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            write(tmp_path / "shard", bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
