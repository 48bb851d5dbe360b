"""Input made to be expensive or to break things: one clear error, soon, and the rest of the server keeps breathing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from explainers.errors import ContextLengthExceeded, InvalidRequest, UnreadableModel
from explainers.granularity import split_at
from explainers.language_model import LanguageModel
from explainers.loaders import load_causal_lm
from explainers.methods.atman import attribute
from explainers.types import AtmanConfig, Control, Span, Text, TokenIds


@pytest.mark.parametrize("text", [" " * 8_000_000, "hello world, " * 600_000, "a" * 8_000_000])
def test_a_text_that_can_never_fit_is_not_even_tokenised(llama: LanguageModel, text: str) -> None:
    with pytest.raises(ContextLengthExceeded, match=f"{len(text)} characters .* {llama.context_length} tokens"):
        attribute(llama, (Text(text),), " Oslo", AtmanConfig())
    with pytest.raises(ContextLengthExceeded):
        attribute(llama, (Text("Oslo"),), text, AtmanConfig())


def test_too_many_ids_are_counted_before_they_are_looked_at(llama: LanguageModel) -> None:
    with pytest.raises(ContextLengthExceeded, match="2500000 tokens"):
        attribute(llama, (TokenIds((10**9,) * 2_500_000),), " Oslo", AtmanConfig())


def test_a_delimiter_longer_than_the_text_costs_nothing() -> None:
    assert split_at("a b", "x" * 8_000_000) == [Span(0, 3)]


def test_many_controls_can_be_stopped(llama: LanguageModel) -> None:
    calls = iter(range(10))

    def stop_at_the_tenth() -> None:
        if next(calls, None) is None:
            raise InterruptedError

    controls = (Control(Span(0, 4), 0.5),) * 100_000
    with pytest.raises(InterruptedError):
        attribute(llama, (Text("Anna lives in", controls),), " Oslo", AtmanConfig(), stop_at_the_tenth)


def test_a_text_without_tokens_of_this_tokenizer_is_a_bad_request(llama: LanguageModel) -> None:
    words = Tokenizer(models.WordLevel({"Oslo": 0}, unk_token="[UNK]"))
    model = LanguageModel(llama.network, words, "", 256, (0,), None)
    with pytest.raises(InvalidRequest, match="no tokens for this text"):
        attribute(model, (Text("Rome"),), "Oslo", AtmanConfig())


@pytest.mark.parametrize("change", [{"hidden_size": -1}, {"num_attention_heads": 0}, {"num_hidden_layers": "many"}])
def test_an_impossible_configuration_is_an_unreadable_model(
    llama_folder: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    folder = Path(shutil.copytree(llama_folder, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UnreadableModel):
        load_causal_lm(folder)
