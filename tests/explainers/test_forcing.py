"""Token logits behind many prompts, held against one plain forward pass for each."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from explainers import forcing as module
from explainers.continuation import turning_point
from explainers.errors import OutOfMemory
from explainers.forcing import LARGEST, Forced, forcing
from explainers.language_model import LanguageModel, TokenSequence
from explainers.loaders import load_causal_lm, load_image_text_lm
from explainers.types import Text
from tests import tiny_models
from tests.explainers import brute_force

TARGET = " Oslo, Anna lives."
PROMPTS = (
    "Anna lives in Oslo. Ben lives in Rome. The key is in the red box.\nWhere?",
    "Anna lives in Oslo. The key is in the red box.\nWhere?",
    "Ben lives in Rome. The key is in the red box.\nWhere?",
    "Anna lives in Oslo. Ben lives in Rome.\nWhere?",
    "Anna lives in Oslo. Ben lives in Rome. The key is in the red box.\nWhere?",
    "Anna lives in Oslo. Ben",
    "Where?",
    "Wh",
)


def encoded(model: LanguageModel, prompts: tuple[str, ...] = PROMPTS, target: str = TARGET) -> list[TokenSequence]:
    return [model.encode((Text(prompt),), target) for prompt in prompts]


def done(steps: Generator[None, None, Forced]) -> Forced:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: Forced = end.value
            return found


def one_by_one(model: LanguageModel, sequences: list[TokenSequence]) -> NDArray[np.float64]:
    """One whole forward pass for each, in which every row is computed; logits by the formula, in 64 bits."""
    found = []
    for sequence in sequences:
        rows = brute_force.logits(model, sequence.read, np.ones(sequence.positions))[-len(sequence.target) :]
        p = rows.softmax(-1)[range(len(sequence.target)), sequence.target].numpy().clip(1e-7, 1 - 1e-7)
        found.append(np.log(p) - np.log1p(-p))
    return np.array(found)


@pytest.mark.parametrize("packed_rows", [None, 1, 40])
def test_it_is_one_forward_for_each(any_model: LanguageModel, packed_rows: int | None) -> None:
    sequences = encoded(any_model)
    found = done(forcing(any_model, sequences, packed_rows=packed_rows))
    np.testing.assert_allclose(found.logits, one_by_one(any_model, sequences), atol=2e-4)
    assert (found.logits[0] == found.logits[4]).all()


def test_each_beginning_is_read_once(llama: LanguageModel) -> None:
    sequences = encoded(llama)
    beginnings = {sequence.read[: end + 1] for sequence in sequences for end in range(sequence.positions)}
    found = done(forcing(llama, sequences))
    assert found.rows == len(beginnings) + 1  # `Wh` predicts the response from a row that `Where?` reads too
    assert found.forwards == 2
    assert done(forcing(llama, sequences, packed_rows=1)).forwards == len(PROMPTS) - 1


def test_one_prompt_that_another_begins_with(llama: LanguageModel) -> None:
    """The longer one goes on with what the shorter one is asked about."""
    sequences = encoded(llama, ("Anna lives in", "Anna lives in Oslo, Anna lives", "Anna"))
    np.testing.assert_allclose(done(forcing(llama, sequences)).logits, one_by_one(llama, sequences), atol=2e-4)


def test_without_prompt_or_start_token(tmp_path: Path) -> None:
    model = load_causal_lm(tiny_models.save(tmp_path / "bare", "qwen2", start_token=False))
    sequences = encoded(model, (*PROMPTS, ""), target=" Oslo")
    np.testing.assert_allclose(done(forcing(model, sequences)).logits, one_by_one(model, sequences), atol=2e-4)


def test_a_model_that_also_reads_images(tmp_path: Path) -> None:
    model = load_image_text_lm(tiny_models.save_image_text(tmp_path / "qwen", "qwen2_vl"))
    sequences = encoded(model)
    np.testing.assert_allclose(done(forcing(model, sequences)).logits, one_by_one(model, sequences), atol=2e-4)


def test_a_model_that_places_tokens_by_the_length(tmp_path: Path) -> None:
    """Some prompts are longer than the length at which all its positions change."""
    factors = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "rope_theta": 10000.0}
    rope = {**factors, "original_max_position_embeddings": 24}
    folder = tiny_models.save(tmp_path / "phi", "phi3", rope_parameters=rope, original_max_position_embeddings=24)
    model = load_causal_lm(folder)
    sequences = encoded(model)
    turn = turning_point(model)
    assert turn == 24 and {sequence.positions > turn for sequence in sequences} == {True, False}
    np.testing.assert_allclose(done(forcing(model, sequences)).logits, one_by_one(model, sequences), atol=2e-4)


def test_logits_keep_their_digits_near_certainty() -> None:
    logits = torch.tensor([[0.0, 14.0, 1.0], [0.0, 40.0, 1.0], [0.0, 40.0, 1.0], [0.0, -torch.inf, 1.0]])
    found = module._token_logits(logits, torch.tensor([1, 1, 0, 1]))
    exact = 14 - float(torch.tensor([0.0, 1.0], dtype=torch.float64).logsumexp(0))
    assert found.tolist() == pytest.approx([exact, LARGEST, -LARGEST, -LARGEST], abs=1e-5)
    assert pytest.approx(np.log((1 - 1e-7) / 1e-7)) == LARGEST


def test_it_pauses_after_each_pass_and_asks_before(llama: LanguageModel) -> None:
    asked: list[int] = []
    steps = forcing(llama, encoded(llama), lambda: asked.append(len(asked)), packed_rows=1)
    passes = [len(asked) for _ in steps]
    assert passes == list(range(1, len(PROMPTS)))


def test_a_stop_leaves_the_model_as_it_was(llama: LanguageModel) -> None:
    class Stop(BaseException):
        pass

    def stop() -> None:
        raise Stop

    sequences = encoded(llama)
    before = done(forcing(llama, sequences))
    with pytest.raises(Stop):
        done(forcing(llama, sequences, stop))
    assert (done(forcing(llama, sequences)).logits == before.logits).all()


def test_what_does_not_fit_is_read_in_smaller_passes(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    sequences, forward = encoded(llama), module._Reader._forward
    whole = done(forcing(llama, sequences))
    most = max(sequence.positions for sequence in sequences)

    def small(self: module._Reader, inputs: object, attention: object) -> object:
        if sum(segment.rows for segment in attention.segments) > most:  # type: ignore[attr-defined]
            raise torch.OutOfMemoryError
        return forward(self, inputs, attention)  # type: ignore[arg-type]

    monkeypatch.setattr(module._Reader, "_forward", small)
    found = done(forcing(llama, sequences))
    np.testing.assert_allclose(found.logits, whole.logits, atol=1e-4)
    assert found.forwards > whole.forwards
    most = 0
    with pytest.raises(OutOfMemory, match="positions do not fit"):
        done(forcing(llama, sequences))
    llama.packed_rows.most = None
