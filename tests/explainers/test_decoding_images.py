"""Completing prompts with images: every token has the log-probability that the engine of /explain gives it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from explainers import continuation
from explainers.controls import FactorRule, resolve
from explainers.decoding import CompletionConfig, complete, encoded
from explainers.loaders import load_image_text_lm
from explainers.suppression import log_probabilities
from explainers.types import Control, Image, Prompt, Text, Tile
from tests import tiny_models
from tests.explainers.plain_images import png

PROMPT: Prompt = (
    Text("Anna "),
    Image(png(40, 24, 1), (Control(Tile(0.0, 0.0, 0.5, 0.5), 0.1),)),
    Text(" lives in"),
)


@pytest.mark.parametrize("family", list(tiny_models.IMAGE_FAMILIES))
def test_tokens_behind_an_image(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuation, "FIRST_BLOCK", 3)
    model = load_image_text_lm(tiny_models.save_image_text(tmp_path / family, family))
    for threshold in (None, 0.2):
        config = CompletionConfig(maximum_tokens=8, ends=False, n=2, threshold=threshold)
        (completion, _) = complete(model, PROMPT, config).items
        sequence = replace(encoded(model, PROMPT), target=completion.generated)
        factors = FactorRule(model, sequence, threshold).combine(resolve(sequence, PROMPT, "partial")).factors
        scores = log_probabilities(model, sequence, factors, [], log_additive=True).base
        assert [token.log_prob for token in completion.tokens] == pytest.approx(scores.tolist(), abs=1e-4)
